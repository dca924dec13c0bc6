//! Which pods of a replica set go first when it shrinks, in Kubernetes' order.
//!
//! Called by `replicaset.rs`.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::object;

/// Annotation by which a user says which pods to keep: lower goes first.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What a pod is judged by; the smallest goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Worth {
    bound: bool,
    phase: u8,
    ready: bool,
    cost: i32,
    /// More pods of this set on the same node: goes earlier.
    neighbours: Reverse<usize>,
    /// Ready for less time goes earlier; in powers of two, so that nearly
    /// equal ages do not decide.
    ready_age: u32,
    restarts: Reverse<i32>,
    /// Younger goes earlier.
    created: Reverse<Timestamp>,
    name: String,
}

/// `count` of `pods`, the ones that are missed least.
pub fn choose<'a>(pods: &[&'a Arc<Pod>], count: usize, now: Timestamp) -> Vec<&'a Arc<Pod>> {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in pods {
        *on_node
            .entry(object::pod_node(pod).unwrap_or(""))
            .or_default() += 1;
    }
    let mut judged: Vec<(Worth, &'a Arc<Pod>)> = pods
        .iter()
        .map(|pod| (worth(pod, &on_node, now), *pod))
        .collect();
    judged.sort_by(|a, b| a.0.cmp(&b.0).then(Ordering::Equal));
    judged.into_iter().take(count).map(|(_, pod)| pod).collect()
}

fn worth(pod: &Pod, on_node: &HashMap<&str, usize>, now: Timestamp) -> Worth {
    let status = pod.status.as_ref();
    let node = object::pod_node(pod);
    let phase = match status.and_then(|s| s.phase.as_deref()) {
        Some("Running") => 2,
        Some("Unknown") => 1,
        _ => 0,
    };
    let ready = object::pod_ready(pod);
    let since = object::pod_condition(pod, "Ready")
        .filter(|_| ready)
        .and_then(|c| c.last_transition_time.as_ref());
    let age = since.map_or(0, |t| now.duration_since(t.0).as_secs().max(0));
    let restarts = status.map(|s| {
        s.container_statuses
            .iter()
            .flatten()
            .map(|c| c.restart_count)
            .max()
            .unwrap_or(0)
    });
    let cost = object::annotation(&pod.metadata, DELETION_COST).and_then(|c| c.parse().ok());
    let created = pod
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(Timestamp::MIN, |t| t.0);
    Worth {
        bound: node.is_some(),
        phase,
        ready,
        cost: cost.unwrap_or(0),
        neighbours: Reverse(on_node.get(node.unwrap_or("")).copied().unwrap_or(0)),
        ready_age: i64::BITS - age.leading_zeros(),
        restarts: Reverse(restarts.unwrap_or(0)),
        created: Reverse(created),
        name: pod.metadata.name.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::for_tests::{now, pod, running};

    #[test]
    fn in_the_order_of_kubernetes() {
        let ready = |name: &str, node: &str| running(pod(name, "0", "rs"), node, "10.0.0.1", true);
        let mut cheap = ready("cheap", "n3");
        cheap.metadata.annotations = Some([(DELETION_COST.to_owned(), "-5".to_owned())].into());
        let pods = [
            ready("alone", "n2"),
            ready("together-b", "n1"),
            ready("together-a", "n1"),
            running(pod("unready", "0", "rs"), "n2", "10.0.0.2", false),
            pod("unbound", "0", "rs"),
            cheap,
        ];
        let pods: Vec<Arc<Pod>> = pods.into_iter().map(Arc::new).collect();
        let references: Vec<&Arc<Pod>> = pods.iter().collect();
        let chosen = choose(&references, 6, now());
        let names: Vec<&str> = chosen
            .iter()
            .filter_map(|p| p.metadata.name.as_deref())
            .collect();
        let expected = [
            "unbound",
            "unready",
            "cheap",
            "alone",
            "together-a",
            "together-b",
        ];
        // "alone" shares n2 with "unready": two neighbours each; names decide.
        assert_eq!(names, expected);
    }
}
