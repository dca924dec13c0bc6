//! `describe`: what belongs to an object is found.

use serde_json::json;

use crate::run::Bench;

#[test]
fn objects_with_what_belongs_to_them() {
    let bench = Bench::new();
    bench.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "status": {"capacity": {"cpu": "2"}}}));
    bench.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-1", "uid": "u1"},
        "spec": {"nodeName": "n1", "containers": [{"name": "app", "image": "i", "resources": {"requests": {"cpu": "250m", "memory": "16Mi"}}}]}, "status": {"phase": "Running"}}));
    let event = |name: &str, uid: &str, reason: &str| {
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "involvedObject": {"kind": "Pod", "name": "web-1", "uid": uid},
            "type": "Warning", "reason": reason, "message": "because", "count": 3, "source": {"component": "foil-agent"}})
    };
    bench.put(event("e1", "u1", "BackOff"));
    bench.put(event("e2", "u0", "FromAnEarlierPodOfThatName"));
    bench.put(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}]}}));
    bench.put(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": [{"addresses": ["10.244.1.5"]}]}));
    for (words, wanted, unwanted) in [
        (
            vec!["describe", "pod", "web-1"],
            "Warning   BackOff   <unknown> (x3 over <unknown>)   foil-agent   because",
            "FromAnEarlier",
        ),
        (
            vec!["describe", "pod", "we"],
            "Name:            web-1",
            "Kind",
        ),
        (vec!["describe", "svc/web"], "10.244.1.5:8080", "<unset>"),
        (
            vec!["describe", "node", "n1"],
            "web-1   250m           0m           16Mi",
            "Kind",
        ),
        (
            vec!["describe", "endpointslices", "web-x"],
            "addressType: IPv4",
            "managedFields",
        ),
    ] {
        let text = bench.foil(&words).ok();
        assert!(
            text.contains(wanted) && !text.contains(unwanted),
            "{words:?}: {text}"
        );
    }
    assert_eq!(
        bench.foil(&["describe", "pod", "zzz"]).refused(),
        "Error from server (NotFound): pods \"zzz\" not found\n"
    );
}
