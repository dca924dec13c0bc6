//! Nodes: their range of pod addresses, their taints, and what becomes of the
//! pods of a node that is lost or was taken out.
//!
//! Whether a node is heard of is known to control-server alone, which says so
//! with [`unheard`]; all else follows from the Node object. Called by
//! [`crate::plan`].

use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodSpec, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::action::{Notice, Plan, Severity, Write};
use crate::index::{Indexes, Offer};
use crate::ipam;
use crate::object::{self, Key, Name};
use crate::pool::Pool;
use crate::registry::Object;
use crate::task::Task;
use crate::time::after;
use crate::usage::Usage;
use crate::watched::Watched;
use crate::world::World;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const COMPONENT: &str = "node-controller";

impl Watched for Node {
    const CLAIMS_BY_NAME: bool = true;

    fn reconcile(name: &Name) -> Option<Task> {
        Some(Task::Node(name.name.clone()))
    }

    fn index(&self, name: &Name, indexes: &mut Indexes) {
        let taints = self.spec.iter().flat_map(|s| s.taints.iter().flatten());
        let evicts = taints.into_iter().any(|t| t.effect == "NoExecute");
        let allocatable = Usage::allocatable(self);
        let offer = Offer {
            evicts,
            allocatable,
        };
        indexes.nodes.insert(name.name.clone(), offer);
        for range in ranges(self) {
            indexes.claims.register(Pool::PodAddresses(range));
        }
    }

    fn unindex(&self, name: &Name, indexes: &mut Indexes) {
        indexes.nodes.remove(&name.name);
    }

    fn changed(_name: &Name, old: Option<&Self>, new: Option<&Self>, indexes: &mut Indexes) {
        if let Some(new) = new
            && old.is_none_or(|old| !same_for_pods(old, new))
        {
            indexes.wake_pods(false);
        }
    }
}

/// True when the scheduler finds the same in both.
fn same_for_pods(a: &Node, b: &Node) -> bool {
    a.spec == b.spec
        && a.metadata.labels == b.metadata.labels
        && is_ready(a) == is_ready(b)
        && Usage::allocatable(a) == Usage::allocatable(b)
}

/// The ranges that the node's pods have their addresses from.
pub fn ranges(node: &Node) -> impl Iterator<Item = IpNet> + '_ {
    let ranges = node.spec.iter().flat_map(|s| s.pod_cidrs.iter().flatten());
    ranges.filter_map(|range| range.parse().ok())
}

/// What is due for one node.
pub fn plan(world: &World, name: &str, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(node) = world.nodes.get(name) else {
        // Nobody will ever say that these pods are gone.
        for pod in world.pods_on(name) {
            delete(pod, Some(0), &mut plan);
        }
        return plan;
    };
    if object::deleting(&node.metadata) {
        return plan;
    }
    let mut changed = Node::clone(node);
    let mut claims = Vec::new();
    if changed.spec.as_ref().is_none_or(|s| s.pod_cidr.is_none()) {
        match ipam::node_range(world, name) {
            Some((range, claim)) => {
                let spec = changed.spec.get_or_insert_default();
                spec.pod_cidr = Some(range.to_string());
                spec.pod_cidrs = Some(vec![range.to_string()]);
                claims.push(claim);
            }
            None => plan.notices.push(Notice {
                about: Key::new("", "Node", Name::new("", name)),
                uid: object::uid(&node.metadata).to_owned(),
                severity: Severity::Warning,
                reason: "CIDRNotAvailable",
                message: format!(
                    "{} has no range left for this node",
                    world.settings.pod_cidr
                ),
                component: COMPONENT,
            }),
        }
    }
    taint(&mut changed, now);
    if changed != **node {
        plan.writes.push(Write::Put {
            object: Object::Node(Arc::new(changed.clone())),
            claims,
        });
    }
    for pod in world.pods_on(name).filter(|p| !object::pod_finished(p)) {
        if !is_ready(node) {
            not_ready(pod, now, &mut plan);
        }
        if !object::deleting(&pod.metadata) {
            evict(world, &changed, pod, now, &mut plan);
        }
    }
    plan
}

/// Status of condition Ready: "True", "False", "Unknown"; "" when there is none.
fn ready_status(node: &Node) -> &str {
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

/// The address that the node is reached by.
pub fn address(node: &Node) -> Option<&str> {
    let mut all = node
        .status
        .iter()
        .flat_map(|s| s.addresses.iter().flatten());
    all.find(|a| a.type_ == "InternalIP")
        .map(|a| a.address.as_str())
}

/// The taint of a cordoned node.
pub fn unschedulable_taint() -> Taint {
    Taint {
        key: UNSCHEDULABLE.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    }
}

/// Sets the taints that follow from readiness and from `spec.unschedulable`;
/// those of people stay.
fn taint(node: &mut Node, now: Timestamp) {
    let wanted: &[(&str, &str)] = match ready_status(node) {
        "True" => &[],
        "Unknown" => &[(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")],
        _ => &[(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")],
    };
    let mut wanted = wanted.to_vec();
    let spec = node.spec.get_or_insert_default();
    if spec.unschedulable == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let mut taints = spec.taints.take().unwrap_or_default();
    taints.retain(|t| {
        let ours = [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&t.key.as_str());
        !ours || wanted.contains(&(t.key.as_str(), t.effect.as_str()))
    });
    for (key, effect) in wanted {
        if !taints.iter().any(|t| t.key == key && t.effect == effect) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added: Some(Time(now)).filter(|_| effect == "NoExecute"),
                value: None,
            });
        }
    }
    spec.taints = Some(taints).filter(|t| !t.is_empty());
}

/// True when one of the pod's tolerations is for this taint.
pub fn tolerates(spec: &PodSpec, taint: &Taint) -> bool {
    toleration(spec, taint).is_some()
}

/// How long the pod tolerates the taint: `Some(None)` for ever.
fn toleration(spec: &PodSpec, taint: &Taint) -> Option<Option<i64>> {
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

/// Deletes the pod when it has tolerated a NoExecute taint for long enough.
fn evict(world: &World, node: &Node, pod: &Arc<Pod>, now: Timestamp, plan: &mut Plan) {
    let Some(spec) = &pod.spec else { return };
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    for taint in taints.filter(|t| t.effect == "NoExecute") {
        let lost = taint.key == NOT_READY || taint.key == UNREACHABLE;
        let seconds = match toleration(spec, taint) {
            Some(None) => continue,
            Some(Some(seconds)) => seconds.max(0),
            None if lost => world.settings.eviction_seconds,
            None => 0,
        };
        let since = taint.time_added.as_ref().map_or(now, |t| t.0);
        let end = after(since, seconds);
        if end > now {
            plan.again(end);
            continue;
        }
        delete(pod, None, plan);
        plan.notices.push(Notice {
            about: Key::new("", "Pod", Name::of(&pod.metadata)),
            uid: object::uid(&pod.metadata).to_owned(),
            severity: Severity::Normal,
            reason: "TaintManagerEviction",
            message: format!("Deleting pod {}", Name::of(&pod.metadata)),
            component: COMPONENT,
        });
        return;
    }
}

fn delete(pod: &Pod, grace_seconds: Option<i64>, plan: &mut Plan) {
    plan.writes.push(Write::Delete {
        key: Key::new("", "Pod", Name::of(&pod.metadata)),
        uid: object::uid(&pod.metadata).to_owned(),
        grace_seconds,
        foreground: false,
    });
}

/// A pod of a node that is not heard of serves nobody.
fn not_ready(pod: &Arc<Pod>, now: Timestamp, plan: &mut Plan) {
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
    plan.notices.push(Notice {
        about: Key::new("", "Pod", Name::of(&pod.metadata)),
        uid: object::uid(&pod.metadata).to_owned(),
        severity: Severity::Warning,
        reason: "NodeNotReady",
        message: "Node is not ready".to_owned(),
        component: COMPONENT,
    });
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
    for condition in conditions {
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
    use crate::for_tests::{node, now, pod, put_node, put_pod, running, typed, world};

    /// Names of the pods that are deleted.
    fn deleted(plan: &Plan) -> Vec<&str> {
        (plan.writes.iter())
            .filter_map(|w| {
                if let Write::Delete { key, .. } = w {
                    Some(&*key.name.name)
                } else {
                    None
                }
            })
            .collect()
    }

    fn lost(world: &World, name: &str) -> Node {
        unheard(&world.nodes[name], now()).unwrap()
    }

    #[test]
    fn a_new_node_gets_the_next_range() {
        let mut world = world();
        let taken = crate::ClaimKey::NodeRange("10.244.0.0/24".parse().unwrap());
        let claim = crate::claim::Claim {
            owner: "n0".to_owned(),
            revision: 1,
        };
        put_node(&mut world, node("n0", 0));
        world.put_claim(taken, Some(claim));
        let mut fresh = node("n1", 1);
        fresh.spec = None;
        put_node(&mut world, fresh);
        let plan = plan(&world, "n1", now());
        let [
            Write::Put {
                object: Object::Node(node),
                claims,
            },
        ] = plan.writes.as_slice()
        else {
            panic!("{plan:?}");
        };
        assert_eq!(
            node.spec.as_ref().unwrap().pod_cidr.as_deref(),
            Some("10.244.1.0/24")
        );
        assert_eq!(claims.len(), 1);
    }

    #[test]
    fn pods_of_a_lost_node_go_when_they_no_longer_tolerate_it() {
        let tolerating = |name: &str, seconds: Option<i64>| {
            let mut pod = running(pod(name, "0", ""), "n1", "10.244.1.2", true);
            let toleration = json!({"key": UNREACHABLE, "operator": "Exists",
                "effect": "NoExecute", "tolerationSeconds": seconds});
            pod.spec.as_mut().unwrap().tolerations = Some(vec![typed(toleration)]);
            pod
        };
        let mut world = world();
        put_node(&mut world, node("n1", 1));
        put_pod(
            &mut world,
            running(pod("default", "0", ""), "n1", "10.244.1.3", true),
        );
        put_pod(&mut world, tolerating("short", Some(10)));
        put_pod(&mut world, tolerating("never", None));
        assert_eq!(plan(&world, "n1", now()), Plan::default());
        let gone = lost(&world, "n1");
        put_node(&mut world, gone);
        let first = plan(&world, "n1", now());
        assert_eq!(deleted(&first), [""; 0]);
        assert_eq!(first.again_at, Some(after(now(), 10)));
        // Tainted, and none of its pods is ready any more.
        for write in &first.writes {
            if let Write::Put { object, .. } = write {
                world.put(object.clone());
            }
        }
        assert!(world.pods.values().all(|p| !object::pod_ready(p)));
        assert_eq!(
            world.nodes["n1"]
                .spec
                .as_ref()
                .unwrap()
                .taints
                .as_ref()
                .unwrap()
                .len(),
            2
        );
        let rows: [(i64, &[&str]); 3] = [(9, &[]), (10, &["short"]), (300, &["default", "short"])];
        for (seconds, expected) in rows {
            let plan = plan(&world, "n1", after(now(), seconds));
            assert_eq!(deleted(&plan), expected, "after {seconds} s");
        }
        assert!(unheard(&world.nodes["n1"], now()).is_none());
        // The node is taken out: nobody will ever say that its pods are gone.
        world.remove(&Key::new("", "Node", Name::new("", "n1")));
        let plan = plan(&world, "n1", now());
        assert_eq!(deleted(&plan), ["default", "never", "short"]);
    }

    #[test]
    fn people_s_taints_stay() {
        let mut world = world();
        let mut tainted = node("n1", 1);
        let spec = tainted.spec.as_mut().unwrap();
        spec.unschedulable = Some(true);
        spec.taints = Some(vec![
            typed(json!({"key": "mine", "effect": "NoSchedule"})),
            typed(json!({"key": NOT_READY, "effect": "NoSchedule"})),
        ]);
        put_node(&mut world, tainted);
        let plan = plan(&world, "n1", now());
        let [
            Write::Put {
                object: Object::Node(node),
                ..
            },
        ] = plan.writes.as_slice()
        else {
            panic!("{plan:?}");
        };
        let taints = node.spec.as_ref().unwrap().taints.as_ref().unwrap();
        let keys: Vec<&str> = taints.iter().map(|t| t.key.as_str()).collect();
        assert_eq!(keys, ["mine", UNSCHEDULABLE]);
    }
}
