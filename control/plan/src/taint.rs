//! Taints of nodes, and pods' tolerations of them.
//!
//! Which node has which taint is decided by `node.rs` and `zone.rs`.

pub use control_api::taint::{UNSCHEDULABLE, tolerates, toleration, unschedulable};
use k8s_openapi::api::core::v1::{Node, PodSpec, Taint};

/// The node's condition Ready is False, or was never said.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The node is not heard of: its condition Ready is Unknown.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Conditions, each with the taint of a node for which it is True.
pub const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "node.kubernetes.io/network-unavailable",
    ),
];

/// The taint that drives pods off a node that is lost or not ready.
pub fn evicting(node: &Node) -> Option<&Taint> {
    let mut taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints.find(|t| evicts_from_lost(t))
}

/// True for a taint that says that the node is lost or not ready, and drives pods
/// off it.
pub fn evicts_from_lost(taint: &Taint) -> bool {
    taint.effect == "NoExecute" && (taint.key == NOT_READY || taint.key == UNREACHABLE)
}

/// The first taint for which `counts` that the pod does not tolerate.
pub fn untolerated<'a>(
    node: &'a Node,
    spec: &PodSpec,
    counts: impl Fn(&Taint) -> bool,
) -> Option<&'a Taint> {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints.filter(|t| counts(t)).find(|t| !tolerates(spec, t))
}
