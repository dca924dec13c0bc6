//! Packets: pod to pod, and through the ClusterIP, counted in the maps.

use super::web_and_client;
use crate::demo::connect::node_index;
use crate::{counters, objects, traffic};
use tests_harness::Cluster;

const CALLS: u32 = 300;

pub(super) fn pods_reach_each_other_directly(cluster: &mut Cluster) {
    let (web, _) = web_and_client(cluster);
    for pod in &web {
        let calls = traffic::call_from_pod(cluster, "client", &format!("{}:8080", pod.ip), 50);
        assert_eq!((calls.ok, calls.failed), (50, 0), "{pod:?}: {calls:?}");
        assert_eq!(calls.by_pod().keys().collect::<Vec<_>>(), [&pod.name]);
    }
}

pub(super) fn cluster_ip_reaches_every_backend_and_counts_it(cluster: &mut Cluster) {
    let (web, target) = web_and_client(cluster);
    let node = node_index(cluster, &objects::ready(cluster, "client").node);
    let before = counters::connections(cluster, node, "web");
    let calls = traffic::call_from_pod(cluster, "client", &target, CALLS);
    assert_eq!((calls.ok, calls.failed), (u64::from(CALLS), 0), "{calls:?}");
    let after = counters::connections(cluster, node, "web");
    let answered = calls.by_pod();
    for pod in &web {
        let counted = after.get(&pod.ip).unwrap_or(&0) - before.get(&pod.ip).unwrap_or(&0);
        let answered = answered.get(&pod.name).copied().unwrap_or_default();
        assert!(answered > 0, "{} never answered: {calls:?}", pod.name);
        assert_eq!(counted, answered, "{}: {before:?} {after:?}", pod.name);
    }
}

pub(super) fn cluster_ip_answers_the_nodes_themselves(cluster: &mut Cluster) {
    let (web, target) = web_and_client(cluster);
    for index in 0..cluster.nodes().len() {
        let calls = traffic::call_from_node(cluster, index, &target, CALLS);
        assert_eq!(
            (calls.ok, calls.failed),
            (u64::from(CALLS), 0),
            "node {index}: {calls:?}"
        );
        assert_eq!(calls.backends.len(), web.len(), "{calls:?}");
    }
}

pub(super) fn service_without_backends_refuses_at_once(cluster: &mut Cluster) {
    web_and_client(cluster);
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: empty}\nspec:\n  \
                   selector: {app: nobody}\n  ports: [{port: 80}]\n";
    cluster
        .foil_with_input(&["apply", "-f", "-"], service)
        .success();
    let target = format!("{}:80", objects::cluster_ip(cluster, "empty"));
    // Until the service has come to the node there is no answer at all: wait for the first.
    tests_harness::wait_until("a refusal", || {
        let calls = traffic::call_from_pod(cluster, "client", &target, 1);
        let refused = calls.errors.iter().any(|error| error.contains("refused"));
        if refused {
            Ok(())
        } else {
            Err(format!("{calls:?}"))
        }
    });
    let calls = traffic::call_from_pod(cluster, "client", &target, 20);
    assert_eq!((calls.ok, calls.failed), (0, 20), "{calls:?}");
    assert!(
        calls.errors.iter().all(|error| error.contains("refused")),
        "{calls:?}"
    );
    cluster.foil(&["delete", "service", "empty"]).success();
}

pub(super) fn maps_are_read_by_bpftool_and_foil(cluster: &mut Cluster) {
    let (web, target) = web_and_client(cluster);
    traffic::call_from_pod(cluster, "client", &target, 20);
    let node = node_index(cluster, &objects::ready(cluster, "client").node);
    for (what, word) in [
        ("service", "web"),
        ("backend", web[0].ip.as_str()),
        ("endpoint", "client"),
        ("flow", "TCP"),
    ] {
        let text = objects::bpf(cluster, node, &[what, "list"]);
        assert!(
            text.contains(word),
            "{word} in `foil bpf {what} list`:\n{text}"
        );
        let json = objects::bpf(cluster, node, &[what, "list", "-o", "json"]);
        let rows: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert!(
            rows.as_array().is_some_and(|rows| !rows.is_empty()),
            "{what}: {json}"
        );
    }
    for (map, field) in [
        ("frontends", "\"service_port\""),
        ("backends", "\"service_port\""),
        ("endpoints", "\"id\""),
        ("flows", "\"key\""),
    ] {
        let text = counters::dump(cluster, node, map);
        assert!(
            text.contains(field),
            "{field} in the dump of {map}:\n{text:.2000}"
        );
    }
}
