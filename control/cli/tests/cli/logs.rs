//! `logs`: which pods and containers are asked, and with what.

use serde_json::json;
use tests_control::deployment;

use crate::node::Node;
use crate::run::Bench;

/// Two pods, and a deployment that selects them.
fn bench() -> (Bench, Node) {
    let bench = Bench::new();
    let node = bench.node("n1");
    for name in ["web-1", "web-2"] {
        bench.put(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}}, "spec": {"containers": [{"name": "app", "image": "i"}]}}));
    }
    bench.put(&deployment("web", 0, "i"));
    bench.until_ready(2);
    (bench, node)
}

#[test]
fn of_pods_and_of_what_has_pods() {
    let (bench, _node) = bench();
    assert_eq!(
        bench.foil(&["logs", "web-1"]).ok(),
        "web-1/app one\nweb-1/app two\n"
    );
    let ended = bench.foil(&["logs", "deploy/web"]);
    assert_eq!(
        (ended.out.as_str(), ended.err.as_str()),
        (
            "web-2/app one\nweb-2/app two\n",
            "Found 2 pods, using pod/web-2\n"
        )
    );
    let out = bench.foil(&["logs", "-l", "app=web", "--prefix"]).ok();
    assert_eq!(
        out,
        "[pod/web-1/app] web-1/app one\n[pod/web-1/app] web-1/app two\n[pod/web-2/app] web-2/app one\n[pod/web-2/app] web-2/app two\n"
    );
    // Both at once: whole lines, in any order.
    let out = bench.foil(&["logs", "-f", "-l", "app=web"]).ok();
    let mut lines: Vec<&str> = out.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "web-1/app one",
            "web-1/app two",
            "web-2/app one",
            "web-2/app two"
        ]
    );
}

#[test]
fn options_reach_the_node() {
    let (bench, node) = bench();
    bench
        .foil(&[
            "logs",
            "web-1",
            "--tail=5",
            "--since=1m",
            "--previous",
            "--timestamps",
        ])
        .ok();
    let asked = node.asked_for_logs();
    assert_eq!(
        (
            asked.tail_lines,
            asked.since_seconds,
            asked.previous,
            asked.timestamps
        ),
        (Some(5), Some(60), true, true)
    );
    bench.foil(&["logs", "web-1", "--tail=-1"]).ok();
    assert_eq!(node.asked_for_logs().tail_lines, None);
}

#[test]
fn refused() {
    let (bench, _node) = bench();
    assert_eq!(
        bench.foil(&["logs", "web-1", "-c", "x"]).refused(),
        "error: container x is not valid for pod web-1; choose one of: app\n"
    );
    assert_eq!(
        bench.foil(&["logs", "-l", "app=none"]).refused(),
        "error: no pods found for the labels app=none in namespace default\n"
    );
    assert_eq!(bench.foil(&["logs"]).code, 2);
}
