//! `describe`: what belongs to an object is found.

use serde_json::json;

use crate::run::{Bench, cells};

#[test]
fn objects_with_what_belongs_to_them() {
    let bench = Bench::new();
    let _node = bench.node("n1");
    let pod = bench.put(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-1"},
        "spec": {"containers": [{"name": "app", "image": "i", "resources": {"requests": {"cpu": "250m", "memory": "16Mi"}}}]}}));
    bench.until_ready(1);
    let event = |name: &str, uid: &str, reason: &str| {
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "web-1", "uid": uid},
            "type": "Warning", "reason": reason, "message": "because", "count": 3, "source": {"component": "foil-agent"}})
    };
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    bench.put(&event("e1", uid, "BackOff"));
    bench.put(&event("e2", "u0", "FromAnEarlierPodOfThatName"));
    bench.put(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}]}}));
    bench.put(&json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": [{"addresses": ["10.244.1.5"]}]}));
    for (words, wanted, unwanted) in [
        (
            vec!["describe", "pod", "web-1"],
            "Warning|BackOff|AGE (x3 over AGE)|foil-agent|because",
            "FromAnEarlier",
        ),
        (vec!["describe", "pod", "we"], "Name:|web-1", "Kind"),
        (vec!["describe", "svc/web"], "10.244.1.5:8080", "<unset>"),
        (vec!["describe", "node", "n1"], "web-1|250m|0m|16Mi", "Kind"),
        (
            vec!["describe", "endpointslices", "web-x"],
            "addressType: IPv4",
            "managedFields",
        ),
    ] {
        let text = bench.foil(&words).ok();
        // Quantities look like ages: the lines as they are, too.
        let plain = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join("|"));
        let lines: Vec<String> = cells(&text)
            .iter()
            .map(|row| row.join("|"))
            .chain(plain)
            .collect();
        assert!(
            lines.iter().any(|line| line.contains(wanted)) && !text.contains(unwanted),
            "{words:?}: {text}"
        );
    }
    assert_eq!(
        bench.foil(&["describe", "pod", "zzz"]).refused(),
        "Error from server (NotFound): pods \"zzz\" not found\n"
    );
}
