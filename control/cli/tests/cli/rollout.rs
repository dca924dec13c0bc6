//! `rollout`: sentences, revisions, and the way back.

use std::io::{BufRead as _, BufReader};

use serde_json::Value;
use tests_control::deployment;

use crate::node::Node;
use crate::run::Bench;

/// A deployment in its second revision.
fn bench() -> (Bench, Node) {
    let bench = Bench::new();
    let node = bench.node("n1");
    let mut web = deployment("web", 3, "foil/app:1");
    web["metadata"]["annotations"]["kubernetes.io/change-cause"] = "first".into();
    bench.put(&web);
    let rolled_out = ["rollout", "status", "deploy/web", "--timeout=60s"];
    assert_eq!(bench.foil(&rolled_out).code, 0);
    web["metadata"]["annotations"] = Value::Null;
    web["spec"]["template"]["spec"]["containers"][0]["image"] = "foil/app:2".into();
    bench.put(&web);
    assert_eq!(bench.foil(&rolled_out).code, 0);
    (bench, node)
}

#[test]
fn status_and_history() {
    let (bench, _node) = bench();
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
    let (bench, _node) = bench();
    assert_eq!(
        bench.foil(&["rollout", "undo", "deploy/web"]).ok(),
        "deployment.apps/web rolled back\n"
    );
    let template = &bench.get("deployments", "web")["spec"]["template"];
    assert_eq!(template["spec"]["containers"][0]["image"], "foil/app:1");
    assert!(
        template["metadata"]["labels"]
            .get("pod-template-hash")
            .is_none()
    );
    // The revision that is gone back to is the newest now.
    bench.foil(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    assert_eq!(
        bench
            .foil(&["rollout", "undo", "deploy/web", "--to-revision=3"])
            .ok(),
        "deployment.apps/web skipped rollback (current template already matches revision 3)\n"
    );
}

#[test]
fn pause_resume_restart() {
    let (bench, _node) = bench();
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
    let (bench, node) = bench();
    node.set(|script| script.broken_images.extend(["foil/app:3".to_owned()]));
    bench.put(&deployment("web", 3, "foil/app:3"));
    let mut child = bench.spawn(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    // One new pod, which does not become ready.
    let stuck = "Waiting for deployment \"web\" rollout to finish: 1 out of 3 new replicas have been updated...";
    assert!(lines.by_ref().any(|line| line == stuck));
    // Seen waiting: only now may it come to its end.
    node.set(|script| script.broken_images.clear());
    assert_eq!(
        lines.last().unwrap(),
        "deployment \"web\" successfully rolled out"
    );
    assert!(child.wait().unwrap().success());
}
