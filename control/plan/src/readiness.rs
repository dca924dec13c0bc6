//! What a node's conditions say: whether it is ready or lost, and the taints that follow
//! from them.
//!
//! What becomes of its pods then is `eviction.rs` and `zone.rs`. Called by `node.rs`,
//! and by control-server, which alone knows when a node was heard of.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::taint::{self, NOT_READY, PRESSURES, UNREACHABLE, UNSCHEDULABLE};

/// Status of condition Ready: "True", "False", "Unknown"; "" when there is none.
pub(crate) fn ready_status(node: &Node) -> &str {
    let conditions = node
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    let mut ready = conditions.filter(|c| c.type_ == "Ready");
    ready.next().map_or("", |c| c.status.as_str())
}

/// True when condition Ready is True.
pub fn is_ready(node: &Node) -> bool {
    ready_status(node) == "True"
}

/// True when the node counts as lost: it is not heard of.
pub fn is_lost(node: &Node) -> bool {
    ready_status(node) == "Unknown"
}

/// Key of the taint that drives the pods off the node; `None`: it is ready, or was
/// never there.
pub(crate) fn evicting_key(node: &Node) -> Option<&'static str> {
    match ready_status(node) {
        "True" | "" => None,
        "Unknown" => Some(UNREACHABLE),
        _ => Some(NOT_READY),
    }
}

/// True when the node is to have a taint that drives its pods off, or has one.
pub(crate) fn is_troubled(node: &Node) -> bool {
    evicting_key(node).is_some() || taint::evicting(node).is_some()
}

/// Sets the taints that follow from conditions and from `spec.unschedulable`; those
/// of people stay. Taints that drive pods off are given by `zone.rs`, and taken
/// off here when the node is ready.
pub(crate) fn taint(node: &mut Node) {
    let mut wanted = Vec::new();
    match ready_status(node) {
        "True" => {}
        "Unknown" => wanted.push(UNREACHABLE),
        _ => wanted.push(NOT_READY),
    }
    let conditions = node
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    for condition in conditions.filter(|c| c.status == "True") {
        let pressure = PRESSURES.iter().find(|(kind, _)| *kind == condition.type_);
        wanted.extend(pressure.map(|(_, key)| *key));
    }
    let ready = is_ready(node);
    let spec = node.spec.get_or_insert_default();
    if spec.unschedulable == Some(true) {
        wanted.push(UNSCHEDULABLE);
    }
    let mut taints = spec.taints.take().unwrap_or_default();
    taints.retain(|t| {
        if taint::evicts_from_lost(t) {
            return !ready;
        }
        let named = [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&t.key.as_str());
        let ours = named || PRESSURES.iter().any(|(_, key)| *key == t.key);
        t.effect != "NoSchedule" || !ours || wanted.contains(&t.key.as_str())
    });
    for key in wanted {
        let has = |t: &Taint| t.key == key && t.effect == "NoSchedule";
        if !taints.iter().any(has) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: "NoSchedule".to_owned(),
                ..Taint::default()
            });
        }
    }
    spec.taints = Some(taints).filter(|t| !t.is_empty());
}

/// The node as it is to be written when nothing was heard of it for too long.
/// `None`: that is known already.
pub fn unheard(node: &Node, now: Timestamp) -> Option<Node> {
    if ready_status(node) == "Unknown" {
        return None;
    }
    let mut changed = node.clone();
    let conditions = changed
        .status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default();
    if !conditions.iter().any(|c| c.type_ == "Ready") {
        conditions.push(NodeCondition {
            type_: "Ready".to_owned(),
            ..NodeCondition::default()
        });
    }
    let reported = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
    for condition in conditions {
        if !reported.contains(&condition.type_.as_str()) {
            continue;
        }
        condition.status = "Unknown".to_owned();
        condition.reason = Some("NodeStatusUnknown".to_owned());
        condition.message = Some("The agent stopped reporting.".to_owned());
        condition.last_transition_time = Some(Time(now));
    }
    Some(changed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::for_tests::{node, typed};

    #[test]
    fn conditions_make_taints() {
        let rows: [(&str, &str, &[&str]); 6] = [
            (
                "MemoryPressure",
                "True",
                &["node.kubernetes.io/memory-pressure"],
            ),
            (
                "DiskPressure",
                "True",
                &["node.kubernetes.io/disk-pressure"],
            ),
            ("PIDPressure", "True", &["node.kubernetes.io/pid-pressure"]),
            ("PIDPressure", "Unknown", &[]),
            ("Ready", "False", &[NOT_READY]),
            ("Ready", "Unknown", &[UNREACHABLE]),
        ];
        for (kind, status, expected) in rows {
            let mut node = node("n1", 1);
            let conditions = node.status.as_mut().unwrap().conditions.as_mut().unwrap();
            conditions.retain(|c| c.type_ != kind);
            conditions.push(typed(json!({"type": kind, "status": status})));
            taint(&mut node);
            let keys = |node: &Node| -> Vec<String> {
                let taints = node.spec.as_ref().unwrap().taints.iter().flatten();
                taints.map(|t| t.key.clone()).collect()
            };
            assert_eq!(keys(&node), expected, "{kind} {status}");
            let conditions = node.status.as_mut().unwrap().conditions.as_mut().unwrap();
            conditions.retain(|c| c.type_ != kind);
            conditions.push(typed(json!({"type": "Ready", "status": "True"})));
            taint(&mut node);
            assert_eq!(keys(&node), [""; 0], "{kind} {status}");
        }
    }
}
