//! `get`, `wait` and `events`: tables, formats, selectors, watches.

use std::io::{BufRead as _, BufReader};

use serde_json::{Value, json};

use crate::run::Bench;

fn pod(name: &str, labels: Value, node: &str, restarts: i32) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "app", "image": "foil/app:1"}]},
        "status": {"phase": "Running", "podIP": "10.244.1.5", "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "app", "image": "foil/app:1", "imageID": "", "ready": true, "restartCount": restarts, "state": {"running": {}}}]}})
}

fn three_pods() -> Bench {
    let bench = Bench::new();
    bench.put(pod("web-a", json!({"app": "web", "v": "1"}), "n1", 0));
    bench.put(pod("web-b", json!({"app": "web", "v": "2"}), "n2", 4));
    bench.put(pod("other", json!({}), "n1", 0));
    bench
}

#[test]
fn tables() {
    let bench = three_pods();
    let header = "NAME    READY   STATUS    RESTARTS   AGE";
    for (words, want) in [
        (vec!["get", "pods"], format!("{header}\nweb-a   1/1     Running   0          <unknown>\nweb-b   1/1     Running   4          <unknown>\nother   1/1     Running   0          <unknown>\n")),
        (vec!["get", "po", "web-a", "--no-headers"], "web-a   1/1   Running   0     <unknown>\n".into()),
        (vec!["get", "po/other", "-o", "wide"], format!("{header}         IP           NODE   NOMINATED NODE   READINESS GATES\nother   1/1     Running   0          <unknown>   10.244.1.5   n1     <none>           <none>\n")),
        (vec!["get", "pods", "-l", "app=web,v!=1", "--no-headers"], "web-b   1/1   Running   4     <unknown>\n".into()),
        (vec!["get", "pods", "--field-selector", "spec.nodeName=n2", "-o", "name"], "pod/web-b\n".into()),
        (vec!["get", "pods", "-A", "-l", "v=1", "--show-labels"], "NAMESPACE   NAME    READY   STATUS    RESTARTS   AGE         LABELS\ndefault     web-a   1/1     Running   0          <unknown>   app=web,v=1\n".into()),
        (vec!["get", "pods", "-L", "app,v", "-l", "app"], "NAME    READY   STATUS    RESTARTS   AGE         APP   V\nweb-a   1/1     Running   0          <unknown>   web   1\nweb-b   1/1     Running   4          <unknown>   web   2\n".into()),
        (vec!["get", "pods", "-o", "custom-columns=NAME:.metadata.name,V:.metadata.labels.v", "--sort-by", ".metadata.name"], "NAME    V\nother   <none>\nweb-a   1\nweb-b   2\n".into()),
        (vec!["get", "pods", "-o", "jsonpath={range .items[*]}{.metadata.name}={.spec.nodeName} {end}"], "web-a=n1 web-b=n2 other=n1 ".into()),
        (vec!["get", "pod", "other", "-o", "jsonpath={.kind}"], "Pod".into()),
    ] {
        assert_eq!(bench.foil(&words).ok(), want, "{words:?}");
    }
}

#[test]
fn several_kinds_are_told_apart() {
    let bench = three_pods();
    bench.put(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}}));
    assert_eq!(
        bench.foil(&["get", "svc,pods", "-l", "!app"]).ok(),
        "NAME          TYPE        CLUSTER-IP   EXTERNAL-IP   PORT(S)   AGE\nservice/web   ClusterIP   10.96.0.9    <none>        80/TCP    <unknown>\n\n\
         NAME        READY   STATUS    RESTARTS   AGE\npod/other   1/1     Running   0          <unknown>\n"
    );
    assert_eq!(
        bench.foil(&["get", "all", "-o", "name"]).ok(),
        "pod/web-a\npod/web-b\npod/other\nservice/web\n"
    );
}

#[test]
fn whole_objects() {
    let bench = Bench::new();
    bench.put(json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "c", "managedFields": [{}]}, "data": {"b": "yes", "a": "x\ny\n"}}));
    assert_eq!(
        bench.foil(&["get", "cm", "c", "-o", "yaml"]).ok(),
        "apiVersion: v1\ndata:\n  a: |\n    x\n    y\n  b: \"yes\"\nkind: ConfigMap\nmetadata:\n  name: c\n  namespace: default\n  resourceVersion: \"1\"\n  uid: uid-1\n"
    );
    let list: Value = serde_json::from_str(&bench.foil(&["get", "cm", "-o", "json"]).ok()).unwrap();
    assert_eq!(
        (&list["kind"], &list["items"][0]["metadata"]["name"]),
        (&json!("List"), &json!("c"))
    );
}

#[test]
fn what_is_not_there() {
    let bench = three_pods();
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
        "error: the control plane doesn't have a resource type \"gadgets\"; `foil api-resources` lists those that it has\n"
    );
    // A kind that only the control plane knows is asked for there.
    assert!(
        bench
            .foil(&["get", "gz"])
            .refused()
            .contains("there is no such kind")
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
    let bench = three_pods();
    let mut child = bench.spawn(&["get", "pods", "-w"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let first: Vec<String> = lines.by_ref().take(4).collect();
    assert!(first[3].starts_with("other"), "{first:?}");
    // The watch begins after the list was printed: changes are repeated until one is seen.
    let store = bench.control.store.clone();
    let (seen, stop) = std::sync::mpsc::channel::<()>();
    let changing = std::thread::spawn(move || {
        for restarts in 1.. {
            let changed = pod("other", json!({}), "n1", restarts);
            store.lock().unwrap().put(changed);
            let pause = stop.recv_timeout(std::time::Duration::from_millis(20));
            if pause != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                return;
            }
        }
    });
    let row = lines.next().unwrap();
    drop(seen);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(row.starts_with("other   1/1     Running   "), "{row}");
    changing.join().unwrap();
}

#[test]
fn wait_for_conditions() {
    let bench = three_pods();
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
    let there = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "there", "namespace": "team"}, "spec": {"containers": []}});
    bench.put(there.clone());
    assert_eq!(
        bench
            .foil_with(&["wait", "-f", "-", "--for=create"], &there.to_string())
            .ok(),
        "pod/there created\n"
    );
    // One that comes about while we wait.
    let child = bench.spawn(&["wait", "po/late", "--for=create", "--timeout=30s"]);
    bench.put(pod("late", json!({}), "n1", 0));
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "pod/late created\n"
    );
}

#[test]
fn events_in_order() {
    let bench = three_pods();
    let event = |name: &str, of: &str, reason: &str, time: &str| {
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "involvedObject": {"kind": "Pod", "name": of}, "type": "Normal",
            "reason": reason, "message": "m", "lastTimestamp": time})
    };
    bench.put(event("e2", "web-a", "Started", "2026-01-01T00:00:02Z"));
    bench.put(event("e1", "web-a", "Pulled", "2026-01-01T00:00:01Z"));
    bench.put(event("e3", "other", "Killing", "2026-01-01T00:00:03Z"));
    let reasons = |words: &[&str]| -> Vec<String> {
        let table = bench.foil(words).ok();
        table
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().nth(2).unwrap().to_string())
            .collect()
    };
    assert_eq!(reasons(&["events"]), ["Pulled", "Started", "Killing"]);
    assert_eq!(
        reasons(&["events", "--for", "pod/web-a"]),
        ["Pulled", "Started"]
    );
}
