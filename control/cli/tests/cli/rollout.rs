//! `rollout`: sentences, revisions, and the way back.

use std::io::{BufRead as _, BufReader};

use serde_json::{Value, json};

use crate::run::Bench;

fn template(image: &str, hash: Option<&str>) -> Value {
    let mut labels = json!({"app": "web"});
    if let Some(hash) = hash {
        labels["pod-template-hash"] = json!(hash);
    }
    json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "app", "image": image}]}})
}

fn bench() -> Bench {
    let bench = Bench::new();
    let spec = |template: Value| json!({"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template});
    bench.put(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "uid": "d", "generation": 2},
        "spec": spec(template("foil/app:2", None)),
        "status": {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}}));
    for (name, image, revision, cause) in [
        ("web-1", "foil/app:1", "1", "first"),
        ("web-2", "foil/app:2", "2", ""),
    ] {
        bench.put(json!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": name, "annotations": {"deployment.kubernetes.io/revision": revision, "kubernetes.io/change-cause": cause},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d"}]},
            "spec": spec(template(image, Some(name)))}));
    }
    bench
}

#[test]
fn status_and_history() {
    let bench = bench();
    assert_eq!(
        bench.foil(&["rollout", "status", "deploy/web"]).ok(),
        "deployment \"web\" successfully rolled out\n"
    );
    assert_eq!(
        bench.foil(&["rollout", "history", "deploy", "web"]).ok(),
        "deployment.apps/web \nREVISION   CHANGE-CAUSE\n1          first\n2          <none>\n"
    );
    assert!(
        bench
            .foil(&["rollout", "history", "deploy/web", "--revision=1"])
            .ok()
            .contains("image: foil/app:1")
    );
    assert_eq!(
        bench
            .foil(&["rollout", "history", "deploy/web", "--revision=7"])
            .refused(),
        "error: deployment \"web\" has no revision 7; it has: 1, 2\n"
    );
}

#[test]
fn undo_takes_the_older_template() {
    let bench = bench();
    assert_eq!(
        bench.foil(&["rollout", "undo", "deploy/web"]).ok(),
        "deployment.apps/web rolled back\n"
    );
    let words = ["get", "deploy", "web", "-o", "jsonpath={.spec.template}"];
    let now: Value = serde_json::from_str(&bench.foil(&words).ok()).unwrap();
    assert_eq!(now, template("foil/app:1", None));
    assert_eq!(
        bench
            .foil(&["rollout", "undo", "deploy/web", "--to-revision=1"])
            .ok(),
        "deployment.apps/web skipped rollback (current template already matches revision 1)\n"
    );
}

#[test]
fn pause_resume_restart() {
    let bench = bench();
    let paused = || {
        bench
            .foil(&["get", "deploy", "web", "-o", "jsonpath={.spec.paused}"])
            .ok()
    };
    assert_eq!(
        bench.foil(&["rollout", "pause", "deploy/web"]).ok(),
        "deployment.apps/web paused\n"
    );
    assert_eq!(paused(), "true");
    assert!(
        bench
            .foil(&["rollout", "restart", "deploy/web"])
            .refused()
            .contains("is paused")
    );
    assert_eq!(
        bench.foil(&["rollout", "resume", "deploy/web"]).ok(),
        "deployment.apps/web resumed\n"
    );
    assert_eq!(paused(), "");
    assert_eq!(
        bench.foil(&["rollout", "restart", "deploy/web"]).ok(),
        "deployment.apps/web restarted\n"
    );
    let words = [
        "get",
        "deploy",
        "web",
        "-o",
        "jsonpath={.spec.template.metadata.annotations}",
    ];
    assert!(
        bench
            .foil(&words)
            .ok()
            .contains("kubectl.kubernetes.io/restartedAt")
    );
}

#[test]
fn status_follows_to_the_end() {
    let bench = bench();
    let mut deployment = bench.control.store.lock().unwrap().objects[0].clone();
    deployment["status"]["availableReplicas"] = json!(2);
    bench.put(deployment.clone());
    let mut child = bench.spawn(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert_eq!(
        lines.next().unwrap(),
        "Waiting for deployment \"web\" rollout to finish: 2 of 3 updated replicas are available..."
    );
    // Seen waiting: only now may it come to its end.
    deployment["status"]["availableReplicas"] = json!(3);
    bench.put(deployment);
    assert_eq!(
        lines.next().unwrap(),
        "deployment \"web\" successfully rolled out"
    );
    assert!(child.wait().unwrap().success());
}
