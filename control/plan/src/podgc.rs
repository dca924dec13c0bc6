//! Pods of nodes that do not exist: no agent will ever say that they are gone.
//!
//! As Kubernetes' pod garbage collector (pkg/controller/podgc). Called by `node.rs`.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::action::{Plan, Write};
use crate::object::{self, Key, Name};
use crate::registry::Object;
use crate::time::after;
use crate::world::World;

/// Seconds that a pod's node may take to appear, from the pod's creation.
const QUARANTINE: i64 = 40;

const REASON: &str = "DeletionByPodGC";

/// Fails and deletes the pods of a node that was removed, or never came.
pub(crate) fn plan(world: &World, node: &str, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if world.may_have_node(node) {
        return plan;
    }
    let removed = world.indexes.removed_nodes.contains(node);
    for pod in world.pods_on(node) {
        let created = pod.metadata.creation_timestamp.as_ref();
        let until = created.map_or(Timestamp::MIN, |t| after(t.0, QUARANTINE));
        if until > now && !removed {
            plan.again(until);
        } else if object::pod_finished(pod) || object::deleting(&pod.metadata) {
            delete(pod, Some(0), &mut plan);
        } else {
            fail(pod, now, &mut plan);
        }
    }
    plan
}

/// True when the pod was failed here and is still to be deleted: also if its node
/// came back meanwhile.
pub(crate) fn is_condemned(pod: &Pod) -> bool {
    let condition = object::pod_condition(pod, "DisruptionTarget");
    object::pod_finished(pod) && condition.is_some_and(|c| c.reason.as_deref() == Some(REASON))
}

/// Deletes a pod gracefully, or at once.
pub(crate) fn delete(pod: &Pod, grace_seconds: Option<i64>, plan: &mut Plan) {
    plan.writes.push(Write::Delete {
        key: Key::new("", "Pod", Name::of(&pod.metadata)),
        uid: object::uid(&pod.metadata).to_owned(),
        revision: None,
        grace_seconds,
        foreground: false,
    });
}

/// Says that the pod has come to its end; it is deleted when that shows.
fn fail(pod: &Arc<Pod>, now: Timestamp, plan: &mut Plan) {
    let mut changed = Pod::clone(pod);
    let status = changed.status.get_or_insert_default();
    status.phase = Some("Failed".to_owned());
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|c| c.type_ != "DisruptionTarget");
    conditions.push(PodCondition {
        type_: "DisruptionTarget".to_owned(),
        status: "True".to_owned(),
        reason: Some(REASON.to_owned()),
        message: Some("PodGC: node no longer exists".to_owned()),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    });
    plan.put(Object::Pod(Arc::new(changed)));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::for_tests::{node, now, pod, put_node, put_pod, running, told, typed, world};

    /// What is remembered of nodes and owners goes with the last of their pods.
    #[test]
    fn nothing_is_remembered_for_ever() {
        let mut world = world();
        put_node(&mut world, node("n1", 1));
        world.put(crate::for_tests::map("rs", &json!({})));
        for name in ["p", "q"] {
            let pod = running(pod(name, "0", "rs"), "n1", "10.244.1.2", false);
            put_pod(&mut world, pod);
        }
        world.remove(&Key::new("", "Node", Name::new("", "n1")));
        let remove = |world: &mut World, kind: &str, name: &str| {
            world.remove(&Key::new("", kind, Name::new("default", name)));
        };
        remove(&mut world, "Pod", "p");
        assert_eq!(world.indexes.removed_nodes.len(), 1);
        assert_eq!(world.indexes.losses.len(), 1);
        world.indexes.losses.clear();
        remove(&mut world, "ConfigMap", "rs");
        remove(&mut world, "Pod", "q");
        assert!(world.indexes.removed_nodes.is_empty() && world.indexes.losses.is_empty());
    }

    #[test]
    fn pods_of_absent_nodes_are_failed_and_deleted() {
        // (seconds since its creation, the node was there, its phase, done)
        let rows: [(i64, bool, &str, &[&str]); 6] = [
            (39, false, "Running", &[]),
            (40, false, "Running", &["put p"]),
            (40, false, "Failed", &["delete p"]),
            (1, true, "Running", &["put p"]),
            (1, true, "Succeeded", &["delete p"]),
            (39, false, "Succeeded", &[]),
        ];
        for (age, was_there, phase, expected) in rows {
            let mut world = world();
            if was_there {
                put_node(&mut world, node("n1", 1));
            }
            let mut pod = running(pod("p", "0", ""), "n1", "10.244.1.2", true);
            pod.metadata.creation_timestamp = Some(typed(json!(after(now(), -age).to_string())));
            pod.status.as_mut().unwrap().phase = Some(phase.to_owned());
            put_pod(&mut world, pod);
            world.remove(&Key::new("", "Node", Name::new("", "n1")));
            let plan = plan(&world, "n1", now());
            let case = format!("{age} {was_there} {phase}");
            assert_eq!(told(&plan), expected, "{case}");
            let waits = expected.is_empty();
            assert_eq!(
                plan.again_at,
                waits.then(|| after(now(), 40 - age)),
                "{case}"
            );
            // What was begun is brought to its end, also if the node comes back.
            if expected == ["put p"] {
                let [Write::Put { object, .. }] = plan.writes.as_slice() else {
                    panic!("{plan:?}");
                };
                let mut world = crate::for_tests::world();
                put_node(&mut world, node("n1", 1));
                world.put(object.clone());
                let plan = crate::node::plan(&world, "n1", now());
                assert_eq!(told(&plan), ["delete p"], "{case}");
            }
            // A node that cannot be read may be there.
            world.mark_unreadable(Key::new("", "Node", Name::new("", "n1")), None);
            assert_eq!(super::plan(&world, "n1", now()), Plan::default(), "{case}");
        }
    }
}
