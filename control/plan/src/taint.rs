//! Taints of nodes, and pods' tolerations of them.
//!
//! Which node has which taint is decided by `node.rs` and `zone.rs`.

use k8s_openapi::api::core::v1::{Node, PodSpec, Taint};

/// The node's condition Ready is False, or was never said.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The node is not heard of: its condition Ready is Unknown.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The node is cordoned.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
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

/// The taint of a cordoned node.
pub fn unschedulable() -> Taint {
    Taint {
        key: UNSCHEDULABLE.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    }
}

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

/// True when one of the pod's tolerations is for this taint.
pub fn tolerates(spec: &PodSpec, taint: &Taint) -> bool {
    toleration(spec, taint).is_some()
}

/// How long the pod tolerates the taint: `Some(None)` for ever.
pub fn toleration(spec: &PodSpec, taint: &Taint) -> Option<Option<i64>> {
    let mut found: Option<Option<i64>> = None;
    for t in spec.tolerations.iter().flatten() {
        let key = t.key.as_deref().unwrap_or("");
        let effect = t.effect.as_deref().unwrap_or("");
        let exists = t.operator.as_deref() == Some("Exists");
        let same_value = t.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or("");
        let applies = (effect.is_empty() || effect == taint.effect)
            && (key == taint.key || (key.is_empty() && exists))
            && (exists || same_value);
        if applies {
            found = Some(match (found, t.toleration_seconds) {
                (Some(Some(a)), Some(b)) => Some(a.min(b)),
                (Some(Some(a)), None) => Some(a),
                (_, seconds) => seconds,
            });
        }
    }
    found
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
