//! Pods that no agent will ever say are gone, as their nodes do not exist; and
//! finished pods, where there are too many of them.
//!
//! As Kubernetes' pod garbage collector (pkg/controller/podgc). Called by `node.rs`
//! and [`crate::plan`].

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::action::{Plan, Write};
use crate::index::{Indexes, Terminated};
use crate::object::{self, Key, Name};
use crate::registry::Object;
use crate::task::Task;
use crate::time::after;
use crate::world::World;

const REASON: &str = "DeletionByPodGC";
/// Finished pods deleted in one plan at most.
const BURST: usize = 500;

/// Fails and deletes the pods of a node that was removed, or never came. A node is
/// given the time to come back, or to appear, that a silent one has: 40 s by default
/// (Kubernetes' `quarantineTime`).
pub(crate) fn plan(world: &World, node: &str, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if world.may_have_node(node) || world.pods_on(node).next().is_none() {
        return plan;
    }
    let Some(found) = world.indexes.absent_nodes.get(node) else {
        plan.absent = Some(node.to_owned());
        plan.again(after(now, world.settings.lost_seconds));
        return plan;
    };
    for pod in world.pods_on(node) {
        let created = pod.metadata.creation_timestamp.as_ref();
        // A pod of the future is from before the clock was set back.
        let created = created.filter(|t| t.0 <= now);
        let since = created.map_or(*found, |t| t.0.max(*found));
        let until = after(since, world.settings.lost_seconds);
        if until > now {
            plan.again(until);
        } else if object::pod_finished(pod) || object::deleting(&pod.metadata) {
            delete(pod, Some(0), &mut plan);
        } else {
            fail(pod, now, &mut plan);
        }
    }
    plan
}

/// Where a finished pod stands in the order in which they are deleted: those that
/// were evicted, then the oldest. `None`: it has not finished, or is being deleted.
pub(crate) fn terminated(pod: &Pod) -> Option<Terminated> {
    if !object::pod_finished(pod) || object::deleting(&pod.metadata) {
        return None;
    }
    let status = pod.status.as_ref();
    let evicted = status.is_some_and(|s| {
        s.phase.as_deref() == Some("Failed") && s.reason.as_deref() == Some("Evicted")
    });
    let created = pod.metadata.creation_timestamp.as_ref();
    let created = created.map_or(Timestamp::MIN, |t| t.0);
    Some((!evicted, created, Name::of(&pod.metadata)))
}

/// Makes the deletion of finished pods due if there are too many.
pub(crate) fn check(indexes: &mut Indexes) {
    if indexes.surplus() > 0 {
        indexes.make_due(Task::FinishedPods);
    }
}

/// Deletes the finished pods that are more than the cluster is to keep.
pub(crate) fn collect_finished(world: &World) -> Plan {
    let mut plan = Plan::default();
    let surplus = world.indexes.surplus().min(BURST);
    let oldest = world.indexes.terminated.iter().take(surplus);
    for pod in oldest.filter_map(|(_, _, name)| world.pods.get(name)) {
        delete(pod, Some(0), &mut plan);
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
        let outcome = plan(&world, "n1", now());
        world.note(&outcome, now());
        assert_eq!(world.indexes.absent_nodes.len(), 1);
        assert_eq!(world.indexes.losses.len(), 1);
        world.indexes.losses.clear();
        remove(&mut world, "ConfigMap", "rs");
        remove(&mut world, "Pod", "q");
        assert!(world.indexes.absent_nodes.is_empty() && world.indexes.losses.is_empty());
    }

    /// From when on the pods of a node that does not exist are failed and deleted.
    #[test]
    fn pods_of_absent_nodes_are_failed_and_deleted() {
        // (the pod's age in seconds when its node is found absent, its phase, seconds
        // until something is done, what)
        let rows: [(i64, &str, i64, &str); 5] = [
            // The node may be on its way: the pod was bound before it came.
            (0, "Running", 40, "put p"),
            // The node was deleted: it may be registered again.
            (3600, "Running", 40, "put p"),
            (3600, "Failed", 40, "delete p"),
            (3600, "Succeeded", 40, "delete p"),
            // Created later than its node was found absent.
            (-30, "Running", 70, "put p"),
        ];
        for (age, phase, seconds, expected) in rows {
            let case = format!("{age} {phase}");
            let mut world = world();
            put_node(&mut world, node("n1", 1));
            let mut pod = running(pod("p", "0", ""), "n1", "10.244.1.2", true);
            pod.metadata.creation_timestamp = Some(typed(json!(after(now(), -age).to_string())));
            pod.status.as_mut().unwrap().phase = Some(phase.to_owned());
            put_pod(&mut world, pod);
            world.remove(&Key::new("", "Node", Name::new("", "n1")));
            let mut time = now();
            for _ in 0..3 {
                let plan = plan(&world, "n1", time);
                world.note(&plan, time);
                if !plan.writes.is_empty() {
                    break;
                }
                time = plan.again_at.unwrap();
            }
            assert_eq!(time, after(now(), seconds), "{case}");
            let outcome = plan(&world, "n1", time);
            assert_eq!(told(&outcome), [expected], "{case}");
            // A second before nothing was due.
            let early = plan(&world, "n1", after(time, -1));
            assert_eq!(early.writes, [], "{case}");
            // What was begun is brought to its end, also if the node comes back.
            if expected == "put p" {
                let [Write::Put { object, .. }] = outcome.writes.as_slice() else {
                    panic!("{outcome:?}");
                };
                let mut world = crate::for_tests::world();
                put_node(&mut world, node("n1", 1));
                world.put(object.clone());
                let plan = crate::node::plan(&world, "n1", now());
                assert_eq!(told(&plan), ["delete p"], "{case}");
            }
            // A node that cannot be read may be there.
            world.mark_unreadable(Key::new("", "Node", Name::new("", "n1")), None);
            assert_eq!(plan(&world, "n1", time), Plan::default(), "{case}");
        }
    }

    #[test]
    fn a_node_that_comes_back_in_time_keeps_its_pods() {
        let mut world = world();
        let pod = running(pod("p", "0", ""), "n1", "10.244.1.2", true);
        put_pod(&mut world, pod);
        let first = plan(&world, "n1", now());
        world.note(&first, now());
        put_node(&mut world, node("n1", 1));
        world.remove(&Key::new("", "Node", Name::new("", "n1")));
        // It is gone again: it has the whole time once more.
        let time = after(now(), 39);
        let second = plan(&world, "n1", time);
        world.note(&second, time);
        assert_eq!(plan(&world, "n1", after(now(), 78)).writes, []);
        assert_eq!(told(&plan(&world, "n1", after(now(), 79))), ["put p"]);
    }

    #[test]
    fn finished_pods_are_kept_up_to_a_number() {
        let mut settings = world().settings;
        settings.terminated_pods = 2;
        let finished = |name: &str, age: i64, phase: &str, reason: &str| {
            let mut pod = running(pod(name, "0", ""), "n1", "10.244.1.2", false);
            pod.metadata.creation_timestamp = Some(typed(json!(after(now(), -age).to_string())));
            let status = pod.status.as_mut().unwrap();
            status.phase = Some(phase.to_owned());
            status.reason = Some(reason.to_owned());
            pod
        };
        let mut world = World::new(settings);
        put_pod(&mut world, finished("running", 100, "Running", ""));
        put_pod(&mut world, finished("old", 90, "Succeeded", ""));
        put_pod(&mut world, finished("new", 10, "Failed", ""));
        assert!(!world.take_due().contains(&Task::FinishedPods));
        put_pod(&mut world, finished("newer", 5, "Succeeded", ""));
        assert!(world.take_due().contains(&Task::FinishedPods));
        assert_eq!(told(&collect_finished(&world)), ["delete old"]);
        put_pod(&mut world, finished("evicted", 1, "Failed", "Evicted"));
        let plan = crate::plan(&world, &Task::FinishedPods, now());
        assert_eq!(told(&plan), ["delete evicted", "delete old"]);
        for name in ["evicted", "old"] {
            world.remove(&Key::new("", "Pod", Name::new("default", name)));
        }
        assert_eq!(collect_finished(&world), Plan::default());
        // One that is being deleted already counts no more.
        put_pod(&mut world, finished("newest", 0, "Succeeded", ""));
        let mut going = finished("new", 10, "Failed", "");
        going.metadata.deletion_timestamp = Some(typed(json!(now().to_string())));
        put_pod(&mut world, going);
        assert_eq!(collect_finished(&world), Plan::default());
        // None: all are kept.
        let mut settings = world.settings.clone();
        settings.terminated_pods = 0;
        let mut world = World::new(settings);
        for n in 0..10 {
            put_pod(&mut world, finished(&format!("p{n}"), n, "Failed", ""));
        }
        assert_eq!(collect_finished(&world), Plan::default());
    }
}
