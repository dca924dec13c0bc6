//! The pods of a node that is lost or tainted: they are no endpoints any more, and are
//! deleted when they do not tolerate it for longer.
//!
//! Which nodes get such taints is `zone.rs`. Called by `node.rs`.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::action::{Notice, Plan, Severity};
use crate::object::{self, Key, Name};
use crate::registry::Object;
use crate::time::after;
use crate::world::World;
use crate::{podgc, taint};

const COMPONENT: &str = "node-controller";

/// Deletes the pod when it has tolerated a NoExecute taint for long enough.
pub(crate) fn evict(world: &World, node: &Node, pod: &Arc<Pod>, now: Timestamp, plan: &mut Plan) {
    let Some(spec) = &pod.spec else { return };
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    for taint in taints.filter(|t| t.effect == "NoExecute") {
        let lost = taint::evicts_from_lost(taint);
        if lost && world.indexes.all_lost() {
            continue;
        }
        let seconds = match taint::toleration(spec, taint) {
            Some(None) => continue,
            Some(Some(seconds)) => seconds.max(0),
            None if lost => world.settings.eviction_seconds,
            None => 0,
        };
        let mut since = taint.time_added.as_ref().map_or(now, |t| t.0);
        if lost {
            // No heartbeat could arrive in that time, so it does not count.
            since = since.max(world.lost_since());
        }
        let end = after(since, seconds);
        if end > now {
            plan.again(end);
            continue;
        }
        podgc::delete(pod, None, plan);
        plan.tell(Notice {
            about: Key::new("", "Pod", Name::of(&pod.metadata)),
            uid: object::uid(&pod.metadata).to_owned(),
            severity: Severity::Normal,
            reason: "TaintManagerEviction",
            message: format!("Deleting pod {}", Name::of(&pod.metadata)),
            component: COMPONENT,
            write: None,
        });
        return;
    }
}

/// A pod of a node without heartbeats is not ready.
pub(crate) fn not_ready(pod: &Arc<Pod>, now: Timestamp, plan: &mut Plan) {
    if !object::pod_ready(pod) {
        return;
    }
    let mut changed = Pod::clone(pod);
    let conditions = changed
        .status
        .iter_mut()
        .flat_map(|s| s.conditions.iter_mut().flatten());
    for ready in conditions.filter(|c| c.type_ == "Ready") {
        ready.status = "False".to_owned();
        ready.reason = Some("NodeNotReady".to_owned());
        ready.message = None;
        ready.last_transition_time = Some(Time(now));
    }
    plan.put(Object::Pod(Arc::new(changed)));
    plan.tell(Notice {
        about: Key::new("", "Pod", Name::of(&pod.metadata)),
        uid: object::uid(&pod.metadata).to_owned(),
        severity: Severity::Warning,
        reason: "NodeNotReady",
        message: "Node is not ready".to_owned(),
        component: COMPONENT,
        write: None,
    });
}
