//! `cordon`, `uncordon` and `drain`.

use std::io::{BufRead as _, BufReader};

use serde_json::{Value, json};
use tests_control::deployment;

use crate::run::Bench;

fn node_of(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or_default()
}

#[test]
fn cordoned_nodes_get_no_pods() {
    let bench = Bench::new();
    let _nodes = [bench.node("n1"), bench.node("n2")];
    assert_eq!(bench.foil(&["cordon", "n1"]).ok(), "node/n1 cordoned\n");
    assert_eq!(
        bench.foil(&["cordon", "node/n1"]).ok(),
        "node/n1 already cordoned\n"
    );
    assert!(
        bench
            .foil(&["get", "nodes"])
            .ok()
            .contains("SchedulingDisabled")
    );
    bench.put(&deployment("web", 3, "i"));
    bench.until_ready(3);
    assert!(bench.list("pods").iter().all(|pod| node_of(pod) == "n2"));
    assert_eq!(bench.foil(&["uncordon", "n1"]).ok(), "node/n1 uncordoned\n");
    let spec = bench.get("nodes", "n1")["spec"].clone();
    assert!(spec.get("unschedulable").is_none(), "{spec}");
    assert_eq!(
        bench.foil(&["uncordon", "n1"]).ok(),
        "node/n1 already uncordoned\n"
    );
    assert_eq!(
        bench.foil(&["cordon", "n9"]).refused(),
        "Error from server (NotFound): nodes \"n9\" not found\n"
    );
    assert_eq!(
        bench.foil(&["cordon", "-l", "a=b"]).refused(),
        "error: no nodes found\n"
    );
    assert_eq!(bench.foil(&["cordon"]).code, 2);
}

#[test]
fn a_drained_node_has_no_pods() {
    let bench = Bench::new();
    let _nodes = [bench.node("n1"), bench.node("n2")];
    bench.put(&deployment("web", 4, "i"));
    bench.until_ready(4);
    bench.put(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "alone"},
        "spec": {"nodeName": "n1", "containers": [{"name": "main", "image": "i"}]}}),
    );
    bench.until_ready(5);
    let before = bench.list("pods");
    let there = before.iter().filter(|pod| node_of(pod) == "n1").count();
    let ended = bench.foil(&["drain", "n1"]);
    assert_eq!((ended.code, ended.out.as_str()), (1, "node/n1 cordoned\n"));
    assert_eq!(
        ended.err,
        "error: unable to drain node n1: cannot delete Pods that declare no controller (use --force to override): default/alone\n"
    );
    // Nothing was evicted.
    assert_eq!(bench.list("pods").len(), before.len());
    let ended = bench.foil(&["drain", "n1", "--force", "--timeout=60s"]);
    assert_eq!(
        (ended.code, ended.err.as_str()),
        (
            0,
            "Warning: deleting Pods that declare no controller: default/alone\n"
        ),
        "{ended:?}"
    );
    let lines: Vec<&str> = ended.out.lines().collect();
    let of = |begin: &str, end: &str| {
        let matching = |line: &&&str| line.starts_with(begin) && line.ends_with(end);
        lines.iter().filter(matching).count()
    };
    assert_eq!(lines[0], "node/n1 already cordoned");
    assert_eq!(of("evicting pod default/", ""), there);
    assert_eq!(of("pod/", " evicted"), there);
    assert_eq!(lines.last(), Some(&"node/n1 drained"));
    bench.until_ready(4);
    assert!(bench.list("pods").iter().all(|pod| node_of(pod) == "n2"));
}

fn fixed(name: &str, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "i"}]}})
}

#[test]
fn all_nodes_are_judged_before_a_pod_goes() {
    let bench = Bench::new();
    let _nodes = [bench.node("n1"), bench.node("n2"), bench.node("n3")];
    bench.put(&deployment("web", 6, "i"));
    bench.until_ready(6);
    bench.put(&fixed("alone", "n2"));
    bench.until_ready(7);
    let uids = |pods: &[Value]| -> Vec<String> {
        let uid = |pod: &Value| pod["metadata"]["uid"].to_string();
        pods.iter().map(uid).collect()
    };
    let before = uids(&bench.list("pods"));
    let ended = bench.foil(&["drain", "n1", "n2"]);
    assert_eq!(
        (ended.code, ended.out.as_str(), ended.err.as_str()),
        (
            1,
            "node/n1 cordoned\nnode/n2 cordoned\n",
            "error: unable to drain node n2: cannot delete Pods that declare no controller (use --force to override): default/alone\n"
        )
    );
    // Neither from n2 nor from n1.
    assert_eq!(uids(&bench.list("pods")), before);
    let ended = bench.foil(&["drain", "n1", "n2", "--force", "--timeout=60s"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(
        ended.out.ends_with("node/n1 drained\nnode/n2 drained\n"),
        "{ended:?}"
    );
    bench.until_ready(6);
    assert!(bench.list("pods").iter().all(|pod| node_of(pod) == "n3"));
}

#[test]
fn pods_that_come_while_a_node_is_drained_go_too() {
    let bench = Bench::new();
    let node = bench.node("n1");
    node.set(|script| script.holds_pods = true);
    bench.put(&fixed("first", "n1"));
    bench.until_ready(1);
    let ended = bench.foil(&["drain", "n1", "--force", "--timeout=1s"]);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(
        ended
            .err
            .ends_with("error: timed out waiting for pods/first to be deleted\n"),
        "{ended:?}"
    );
    let mut drain = bench.spawn(&["drain", "n1", "--force"]);
    let mut lines = BufReader::new(drain.stdout.take().unwrap()).lines();
    let mut out = Vec::new();
    // It has looked at the node's pods, and waits for this one.
    while out
        .last()
        .is_none_or(|line| line != "evicting pod default/first")
    {
        out.push(lines.next().unwrap().unwrap());
    }
    bench.put(&fixed("second", "n1"));
    bench.until_ready(2);
    node.set(|script| script.holds_pods = false);
    out.extend(lines.map(Result::unwrap));
    assert!(drain.wait().unwrap().success(), "{out:?}");
    for line in [
        "pod/first evicted",
        "evicting pod default/second",
        "pod/second evicted",
    ] {
        assert!(out.iter().any(|l| l == line), "{line}: {out:?}");
    }
    assert_eq!(out.last().unwrap(), "node/n1 drained");
    assert!(bench.list("pods").is_empty());
}
