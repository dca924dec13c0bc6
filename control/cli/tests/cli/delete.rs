//! `delete` and `scale`.

use serde_json::{Value, json};
use tests_control::deployment;

use crate::node::Node;
use crate::run::Bench;

/// Three pods that run.
fn bench() -> (Bench, Node) {
    let bench = Bench::new();
    let node = bench.node("n1");
    for (name, app) in [("a", "x"), ("b", "x"), ("c", "y")] {
        bench.put(&pod(name, "default", app));
    }
    bench.until_ready(3);
    (bench, node)
}

fn pod(name: &str, namespace: &str, app: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": app}},
        "spec": {"containers": [{"name": "main", "image": "busybox"}]}})
}

fn names(bench: &Bench) -> String {
    bench.foil(&["get", "pods", "-A", "-o", "name"]).out
}

#[test]
fn waits_until_gone() {
    let (bench, node) = bench();
    assert_eq!(
        bench.foil(&["delete", "pod", "a"]).ok(),
        "pod \"a\" deleted\n"
    );
    assert_eq!(names(&bench), "pod/b\npod/c\n");
    node.set(|script| script.holds_pods = true);
    assert_eq!(
        bench.foil(&["delete", "po/b", "--wait=false"]).ok(),
        "pod \"b\" deleted\n"
    );
    assert_eq!(names(&bench), "pod/b\npod/c\n");
    node.set(|script| script.holds_pods = false);
    bench
        .foil(&["wait", "po/b", "--for=delete", "--timeout=60s"])
        .ok();
    assert_eq!(names(&bench), "pod/c\n");
}

#[test]
fn by_label_file_and_all() {
    let (bench, _node) = bench();
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
fn across_namespaces() {
    let (bench, _node) = bench();
    bench.foil(&["create", "ns", "team"]).ok();
    bench.put(&pod("a", "team", "x"));
    bench.put(&pod("d", "team", "y"));
    // A name in all namespaces is ambiguous.
    for words in [
        ["delete", "pod", "a", "-A"].as_slice(),
        &["delete", "pods", "-A"],
        &["delete", "pods", "--all", "-A", "-n", "team"],
    ] {
        bench.foil(words).refused();
    }
    assert_eq!(names(&bench), "pod/a\npod/b\npod/c\npod/a\npod/d\n");
    assert_eq!(
        bench.foil(&["delete", "pods", "-A", "-l", "app=x"]).ok(),
        "pod \"a\" deleted\npod \"b\" deleted\npod \"a\" deleted\n"
    );
    assert_eq!(
        bench.foil(&["delete", "pods", "--all", "-n", "team"]).ok(),
        "pod \"d\" deleted\n"
    );
    assert_eq!(names(&bench), "pod/c\n");
}

#[test]
fn grace_periods_reach_the_pods() {
    let (bench, node) = bench();
    node.set(|script| script.holds_pods = true);
    for (words, grace) in [
        (
            ["delete", "po/a", "--wait=false", "--grace-period=5"].as_slice(),
            5,
        ),
        (&["delete", "po/b", "--wait=false", "--now"], 1),
        (&["delete", "po/c", "--wait=false"], 30),
    ] {
        bench.foil(words).ok();
        let name = words[1].trim_start_matches("po/");
        let pod = bench.get("pods", name);
        assert_eq!(
            pod["metadata"]["deletionGracePeriodSeconds"], grace,
            "{words:?}"
        );
    }
}

#[test]
fn dependents_stay_go_first_or_go_after() {
    let bench = Bench::new();
    for name in ["orphan", "foreground", "background"] {
        bench.put(&deployment(name, 1, "busybox"));
    }
    bench.until("pods", "a pod of each", |pods| pods.len() == 3);
    bench
        .foil(&["delete", "deploy/orphan", "--cascade=orphan"])
        .ok();
    bench.until("replicasets", "a set without an owner", |sets| {
        let set = sets
            .iter()
            .find(|set| set["metadata"]["labels"]["app"] == "orphan");
        set.unwrap()["metadata"].get("ownerReferences").is_none()
    });
    // What goes in the foreground is there as long as its dependents.
    bench
        .foil(&["delete", "deploy/foreground", "--cascade=foreground"])
        .ok();
    let left: Vec<Value> = bench.list("replicasets");
    assert!(
        left.iter()
            .all(|set| set["metadata"]["labels"]["app"] != "foreground")
    );
    bench.foil(&["delete", "deploy/background"]).ok();
    bench.until("pods", "one pod", |pods| {
        pods.len() == 1 && pods[0]["metadata"]["labels"]["app"] == "orphan"
    });
}

#[test]
fn nothing_is_deleted_by_accident() {
    let (bench, _node) = bench();
    for words in [
        vec!["delete", "pods"],
        vec!["delete"],
        vec!["delete", "po/a", "--all"],
    ] {
        bench.foil(&words).refused();
    }
    let pods = bench.list("pods");
    let going = |pod: &Value| pod["metadata"].get("deletionTimestamp").is_some();
    assert!(pods.len() == 3 && !pods.iter().any(going), "{pods:#?}");
}

#[test]
fn builtin_namespaces_stay() {
    let bench = Bench::new();
    assert_eq!(
        bench.foil(&["delete", "ns", "default"]).refused(),
        "Error from server (Forbidden): namespaces \"default\" is forbidden: this namespace may not be deleted\n"
    );
}

#[test]
fn scale() {
    let bench = Bench::new();
    bench.put(&deployment("web", 3, "busybox"));
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
        "error: deployment.apps/web: expected replicas to be 3, was 5\n"
    );
    assert_eq!(
        bench.foil(&["scale", "deploy/web", "--replicas=-1"]).code,
        2
    );
}
