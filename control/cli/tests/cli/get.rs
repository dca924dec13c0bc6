//! `get`, `wait` and `events`: tables, formats, selectors, watches.

use std::io::{BufRead as _, BufReader};

use serde_json::{Value, json};

use crate::node::Node;
use crate::run::{Bench, cells};

fn pod(name: &str, labels: &Value, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "app", "image": "foil/app:1"}]}})
}

fn three_pods() -> (Bench, [Node; 2]) {
    let bench = Bench::new();
    let nodes = [bench.node("n1"), bench.node("n2")];
    nodes[1].set(|script| script.restarts.extend([("web-b".to_owned(), 4)]));
    bench.put(&pod("web-a", &json!({"app": "web", "v": "1"}), "n1"));
    bench.put(&pod("web-b", &json!({"app": "web", "v": "2"}), "n2"));
    bench.put(&pod("other", &json!({}), "n1"));
    bench.until_ready(3);
    (bench, nodes)
}

/// Rows of words, "|" between two cells.
fn rows(table: &str) -> Vec<String> {
    cells(table).iter().map(|row| row.join("|")).collect()
}

#[test]
fn tables() {
    let (bench, _nodes) = three_pods();
    let header = "NAME|READY|STATUS|RESTARTS|AGE";
    let address = bench.get("pods", "other")["status"]["podIP"].clone();
    let address = address.as_str().unwrap();
    let (web_a, web_b) = ("web-a|1/1|Running|0|AGE", "web-b|1/1|Running|4|AGE");
    let other = "other|1/1|Running|0|AGE";
    for (words, want) in [
        (
            vec!["get", "pods"],
            vec![header.to_owned(), other.into(), web_a.into(), web_b.into()],
        ),
        (
            vec!["get", "po", "web-a", "--no-headers"],
            vec![web_a.into()],
        ),
        (
            vec!["get", "po/other", "-o", "wide"],
            vec![
                format!("{header}|IP|NODE|NOMINATED NODE|READINESS GATES"),
                format!("{other}|{address}|n1|<none>|<none>"),
            ],
        ),
        (
            vec!["get", "pods", "-l", "app=web,v!=1", "--no-headers"],
            vec![web_b.into()],
        ),
        (
            vec![
                "get",
                "pods",
                "--field-selector",
                "spec.nodeName=n2",
                "-o",
                "name",
            ],
            vec!["pod/web-b".into()],
        ),
        (
            vec!["get", "pods", "-A", "-l", "v=1", "--show-labels"],
            vec![
                format!("NAMESPACE|{header}|LABELS"),
                format!("default|{web_a}|app=web,v=1"),
            ],
        ),
        (
            vec!["get", "pods", "-L", "app,v", "-l", "app"],
            vec![
                format!("{header}|APP|V"),
                format!("{web_a}|web|1"),
                format!("{web_b}|web|2"),
            ],
        ),
        (
            vec![
                "get",
                "pods",
                "-o",
                "custom-columns=NAME:.metadata.name,V:.metadata.labels.v",
                "--sort-by",
                ".metadata.name",
            ],
            vec![
                "NAME|V".into(),
                "other|<none>".into(),
                "web-a|1".into(),
                "web-b|2".into(),
            ],
        ),
        (
            vec![
                "get",
                "pods",
                "-o",
                "jsonpath={range .items[*]}{.metadata.name}={.spec.nodeName} {end}",
            ],
            vec!["other=n1 web-a=n1 web-b=n2".into()],
        ),
        (
            vec!["get", "pod", "other", "-o", "jsonpath={.kind}"],
            vec!["Pod".into()],
        ),
    ] {
        assert_eq!(rows(&bench.foil(&words).ok()), want, "{words:?}");
    }
}

#[test]
fn several_kinds_are_told_apart() {
    let (bench, _nodes) = three_pods();
    bench.put(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}}));
    let table = bench.foil(&["get", "svc,pods", "-l", "!app"]).ok();
    let (services, pods) = table.split_once("\n\n").unwrap();
    assert_eq!(
        rows(services),
        [
            "NAME|TYPE|CLUSTER-IP|EXTERNAL-IP|PORT(S)|AGE",
            "service/web|ClusterIP|10.96.0.9|<none>|80/TCP|AGE"
        ]
    );
    assert_eq!(
        rows(pods),
        [
            "NAME|READY|STATUS|RESTARTS|AGE",
            "pod/other|1/1|Running|0|AGE"
        ]
    );
    assert_eq!(
        bench.foil(&["get", "all", "-o", "name"]).ok(),
        "pod/other\npod/web-a\npod/web-b\nservice/web\n"
    );
}

#[test]
fn whole_objects() {
    let bench = Bench::new();
    let stored = bench.put(&json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "c"}, "data": {"b": "yes", "a": "x\ny\n"}}));
    let of = |field: &str| stored["metadata"][field].as_str().unwrap();
    let want = format!(
        "apiVersion: v1\ndata:\n  a: |\n    x\n    y\n  b: \"yes\"\nkind: ConfigMap\nmetadata:\n  creationTimestamp: \"{}\"\n  name: c\n  namespace: default\n  resourceVersion: \"{}\"\n  uid: {}\n",
        of("creationTimestamp"),
        of("resourceVersion"),
        of("uid")
    );
    // A uid that begins with a digit may need quotes.
    let yaml = bench.foil(&["get", "cm", "c", "-o", "yaml"]).ok();
    assert_eq!(yaml.replace(&format!("\"{}\"", of("uid")), of("uid")), want);
    let list: Value = serde_json::from_str(&bench.foil(&["get", "cm", "-o", "json"]).ok()).unwrap();
    assert_eq!(
        (&list["kind"], &list["items"][0]["metadata"]["name"]),
        (&json!("List"), &json!("c"))
    );
}

#[test]
fn lists_of_several_pages() {
    let bench = Bench::new();
    let maps = (0..501).map(|number| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c{number:03}")}}));
    let texts: Vec<String> = maps.map(|map| map.to_string()).collect();
    bench
        .foil_with(&["apply", "-f", "-"], &texts.join("\n---\n"))
        .ok();
    let names = bench.foil(&["get", "cm", "-o", "name"]).ok();
    assert_eq!(names.lines().count(), 501);
    assert!(names.ends_with("configmap/c500\n"));
}

#[test]
fn by_manifest() {
    let bench = Bench::new();
    bench.foil(&["create", "ns", "team"]).ok();
    for (name, namespace) in [("a", "team"), ("b", "default")] {
        bench.put(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}}));
    }
    // A manifest says which namespace it means; one that does not means that of -n.
    bench.write("both.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: team}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n");
    let shown = [
        "get",
        "-f",
        "both.yaml",
        "-o",
        "jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {end}",
    ];
    assert_eq!(bench.foil(&shown).ok(), "team/a default/b ");
    let ended = bench.foil(&["get", "-f", "both.yaml", "-n", "team", "-o", "name"]);
    assert_eq!(
        (ended.code, ended.out.as_str(), ended.err.as_str()),
        (
            1,
            "configmap/a\n",
            "Error from server (NotFound): configmaps \"b\" not found\n"
        )
    );
    assert!(
        bench
            .foil(&["get", "-f", "both.yaml", "-n", "default"])
            .refused()
            .contains("configmap/a is in namespace \"team\"")
    );
    bench.foil(&["get", "-f", "both.yaml", "-A"]).refused();
}

#[test]
fn what_is_not_there() {
    let (bench, _nodes) = three_pods();
    let ended = bench.foil(&["get", "pods", "web-a", "nope", "-o", "name"]);
    assert_eq!(
        (ended.code, ended.out.as_str(), ended.err.as_str()),
        (
            1,
            "pod/web-a\n",
            "Error from server (NotFound): pods \"nope\" not found\n"
        )
    );
    assert_eq!(
        bench
            .foil(&["get", "pods", "nope", "--ignore-not-found"])
            .ok(),
        ""
    );
    assert_eq!(
        bench.foil(&["get", "gadgets"]).refused(),
        "error: the control plane doesn't have a resource type \"gadgets\"; see `foil api-resources`\n"
    );
    assert!(
        bench
            .foil(&["get", "pods", "-l", "a in"])
            .refused()
            .starts_with("Error from server")
    );
}

#[test]
fn a_watch_prints_rows_as_they_come() {
    let (bench, nodes) = three_pods();
    let mut child = bench.spawn(&["get", "pods", "-w"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let first: Vec<String> = lines.by_ref().take(4).collect();
    assert!(first[1].starts_with("other"), "{first:?}");
    nodes[0].set(|script| script.restarts.extend([("other".to_owned(), 1)]));
    let row = lines.next().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(rows(&row), ["other|1/1|Running|1|AGE"]);
}

#[test]
fn wait_for_conditions() {
    let (bench, _nodes) = three_pods();
    assert_eq!(
        bench
            .foil(&["wait", "po/other", "--for=condition=Ready"])
            .ok(),
        "pod/other condition met\n"
    );
    assert_eq!(
        bench
            .foil(&[
                "wait",
                "pods",
                "-l",
                "app=web",
                "--for=jsonpath={.status.phase}=Running"
            ])
            .ok(),
        "pod/web-a condition met\npod/web-b condition met\n"
    );
    assert_eq!(
        bench.foil(&["wait", "po/nope", "--for=delete"]).ok(),
        "pod/nope deleted\n"
    );
    assert_eq!(
        bench
            .foil(&[
                "wait",
                "po/other",
                "--for=condition=Gone",
                "--timeout=100ms"
            ])
            .refused(),
        "error: timed out waiting for the condition Gone on pod/other\n"
    );
    // One that is not ready takes all the time; what is ready is said to be all the same.
    assert_eq!(
        bench
            .foil(&[
                "wait",
                "po/web-a",
                "po/other",
                "--for=create",
                "--timeout=0"
            ])
            .ok(),
        "pod/web-a created\npod/other created\n"
    );
    assert_eq!(
        bench
            .foil(&["wait", "po/nope", "--for=condition=Ready"])
            .refused(),
        "error: pod/nope: not found\n"
    );
    // A manifest says which namespace it means.
    bench.foil(&["create", "ns", "team"]).ok();
    let mut there = pod("there", &json!({}), "n1");
    there["metadata"]["namespace"] = json!("team");
    bench.put(&there);
    assert_eq!(
        bench
            .foil_with(&["wait", "-f", "-", "--for=create"], &there.to_string())
            .ok(),
        "pod/there created\n"
    );
    // One that comes about while we wait.
    let child = bench.spawn(&["wait", "po/late", "--for=create", "--timeout=30s"]);
    bench.put(&pod("late", &json!({}), "n1"));
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "pod/late created\n"
    );
}

#[test]
fn events_in_order() {
    let bench = Bench::new();
    let event = |name: &str, of: &str, reason: &str, more: Value| {
        let mut event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name},
            "involvedObject": {"kind": "Pod", "namespace": "default", "name": of},
            "type": "Normal", "reason": reason, "message": "m"});
        let fields = more.as_object().unwrap().clone();
        event.as_object_mut().unwrap().extend(fields);
        bench.put(&event);
    };
    // Older events are removed.
    let begin = jiff::Timestamp::now().as_second() - 60;
    let at = |seconds: i64| {
        jiff::Timestamp::from_second(begin + seconds)
            .unwrap()
            .to_string()
    };
    event("e2", "web-a", "Started", json!({"lastTimestamp": at(2)}));
    event("e1", "web-a", "Pulled", json!({"lastTimestamp": at(1)}));
    // Within a second by the finer time, and those without one by their revision.
    for (name, reason, micros) in [
        ("f1", "Third", 900),
        ("f3", "First", 7),
        ("f2", "Second", 80),
    ] {
        let fine = at(3).replace('Z', &format!(".{micros:06}Z"));
        event(
            name,
            "other",
            reason,
            json!({"lastTimestamp": at(3), "eventTime": fine}),
        );
    }
    event("e3", "other", "Killing", json!({"lastTimestamp": at(4)}));
    event("e0", "other", "Killed", json!({"lastTimestamp": at(4)}));
    let reasons = |words: &[&str]| -> Vec<String> {
        let table = bench.foil(words).ok();
        let rows = table.lines().skip(1);
        rows.map(|line| line.split_whitespace().nth(2).unwrap().to_string())
            .collect()
    };
    assert_eq!(
        reasons(&["events"]),
        [
            "Pulled", "Started", "First", "Second", "Third", "Killing", "Killed"
        ]
    );
    assert_eq!(
        reasons(&["events", "--for", "pod/web-a"]),
        ["Pulled", "Started"]
    );
}

/// A node tells much at once: the order is kept.
#[test]
fn events_of_a_node_in_order() {
    let bench = Bench::new();
    let node = bench.node("n1");
    let reasons: Vec<String> = (10..30).map(|number| format!("Reason{number}")).collect();
    bench.with_server(async |_| node.tell(&reasons).await);
    bench.until("events", "all events", |events| {
        let of_node = |event: &&Value| event["reason"].as_str().unwrap().starts_with("Reason");
        events.iter().filter(of_node).count() == reasons.len()
    });
    let table = bench.foil(&["events"]).ok();
    let words = table.split_whitespace().map(str::to_owned);
    let shown: Vec<String> = words.filter(|word| word.starts_with("Reason")).collect();
    assert_eq!(shown, reasons);
}
