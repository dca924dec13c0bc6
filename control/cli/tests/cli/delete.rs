//! `delete` and `scale`.

use serde_json::json;

use crate::run::Bench;

fn bench() -> Bench {
    let bench = Bench::new();
    for (name, app) in [("a", "x"), ("b", "x"), ("c", "y")] {
        bench.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": app}, "finalizers": ["test/wait"]}, "spec": {"containers": []}}));
    }
    bench
}

#[test]
fn waits_until_gone() {
    let bench = bench();
    assert_eq!(
        bench.foil(&["delete", "pod", "a"]).ok(),
        "pod \"a\" deleted\n"
    );
    assert_eq!(
        bench.foil(&["get", "pods", "-o", "name"]).ok(),
        "pod/b\npod/c\n"
    );
    assert_eq!(
        bench.foil(&["delete", "po/b", "--wait=false"]).ok(),
        "pod \"b\" deleted\n"
    );
    assert_eq!(
        bench.foil(&["get", "pods", "-o", "name"]).ok(),
        "pod/b\npod/c\n"
    );
}

#[test]
fn by_label_file_and_all() {
    let bench = bench();
    assert_eq!(
        bench.foil(&["delete", "pods", "-l", "app=x"]).ok(),
        "pod \"a\" deleted\npod \"b\" deleted\n"
    );
    bench.write("m.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: c}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: never}\n");
    let ended = bench.foil(&["delete", "-f", "m.yaml"]);
    assert_eq!(
        (ended.code, ended.out.as_str(), ended.err.as_str()),
        (
            1,
            "pod \"c\" deleted\n",
            "Error from server (NotFound): pods \"never\" not found\n"
        )
    );
    assert_eq!(
        bench
            .foil(&["delete", "-f", "m.yaml", "--ignore-not-found"])
            .ok(),
        ""
    );
    let ended = bench.foil(&["delete", "pods", "--all"]);
    assert_eq!(
        (ended.code, ended.err.as_str()),
        (0, "No resources found\n")
    );
}

#[test]
fn options_reach_the_server() {
    let bench = bench();
    for (words, grace, policy) in [
        (
            vec!["delete", "po/a", "--grace-period=5", "--cascade=orphan"],
            Some(5),
            "Orphan",
        ),
        (
            vec!["delete", "po/b", "--now", "--cascade=foreground"],
            Some(1),
            "Foreground",
        ),
        (vec!["delete", "po/c"], None, "Background"),
    ] {
        bench.foil(&words).ok();
        let asked = bench.control.deletions.lock().unwrap().pop().unwrap();
        assert_eq!(
            (
                asked.grace_period_seconds,
                asked.propagation_policy.as_str()
            ),
            (grace, policy),
            "{words:?}"
        );
    }
}

#[test]
fn nothing_is_deleted_by_accident() {
    let bench = bench();
    for words in [
        vec!["delete", "pods"],
        vec!["delete"],
        vec!["delete", "po/a", "--all"],
    ] {
        bench.foil(&words).refused();
    }
    assert!(bench.control.deletions.lock().unwrap().is_empty());
}

#[test]
fn scale() {
    let bench = Bench::new();
    bench.put(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 3, "selector": {}, "template": {}}}));
    assert_eq!(
        bench.foil(&["scale", "deploy/web", "--replicas=5"]).ok(),
        "deployment.apps/web scaled\n"
    );
    assert_eq!(
        bench
            .foil(&["get", "deploy", "web", "-o", "jsonpath={.spec.replicas}"])
            .ok(),
        "5"
    );
    assert_eq!(
        bench
            .foil(&[
                "scale",
                "deploy/web",
                "--replicas=1",
                "--current-replicas=3"
            ])
            .refused(),
        "error: deployment.apps/web: expected 3 replicas, and there are 5\n"
    );
    assert_eq!(
        bench.foil(&["scale", "deploy/web", "--replicas=-1"]).code,
        2
    );
}
