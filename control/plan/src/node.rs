//! Nodes: their range of pod addresses, their taints, and what becomes of the
//! pods of a node that is lost.
//!
//! What conditions say is `readiness.rs`; which nodes their pods are driven off
//! `zone.rs`; pods of nodes that do not exist are `podgc.rs`. Called by
//! [`crate::plan`].

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;

use crate::action::{Notice, Plan, Severity, Write};
use crate::claim::{ClaimKey, ClaimWrite};
use crate::index::{Indexes, Offer};
use crate::object::{self, Key, Name, zone};
use crate::pool::Pool;
use crate::readiness::{is_lost, is_ready, ready_status};
use crate::registry::Object;
use crate::task::Task;
use crate::usage::Usage;
use crate::watched::Watched;
use crate::world::World;
use crate::{eviction, ipam, podgc, readiness, taint};

const COMPONENT: &str = "node-controller";

impl Watched for Node {
    const CLAIMS_BY_NAME: bool = true;

    fn reconcile(name: &Name) -> Option<Task> {
        Some(Task::Node(name.name.clone()))
    }

    fn index(&self, name: &Name, indexes: &mut Indexes) {
        let taints = self.spec.iter().flat_map(|s| s.taints.iter().flatten());
        let offer = Offer {
            evicts: taints.into_iter().any(|t| t.effect == "NoExecute"),
            ready: is_ready(self),
            allocatable: Usage::allocatable(self),
        };
        indexes.nodes.insert(name.name.clone(), offer);
        indexes.absent_nodes.remove(&name.name);
        for range in object::pod_cidrs(self) {
            indexes.claims.register(Pool::PodAddresses(range));
        }
        if counts(self) {
            let zone = indexes.zones.entry(zone(self)).or_default();
            *zone.of(is_ready(self)) += 1;
        }
        if readiness::is_troubled(self) {
            let troubled = indexes.troubled.entry(zone(self)).or_default();
            troubled.insert(name.name.clone());
        }
    }

    fn unindex(&self, name: &Name, indexes: &mut Indexes) {
        indexes.nodes.remove(&name.name);
        let key = zone(self);
        if let Some(troubled) = indexes.troubled.get_mut(&key) {
            troubled.remove(&name.name);
            if troubled.is_empty() {
                indexes.troubled.remove(&key);
            }
        }
        if counts(self)
            && let Some(zone) = indexes.zones.get_mut(&key)
        {
            let count = zone.of(is_ready(self));
            *count = count.saturating_sub(1);
            if zone.ready + zone.lost == 0 {
                indexes.zones.remove(&key);
            }
        }
    }

    fn changed(_name: &Name, old: Option<&Self>, new: Option<&Self>, indexes: &mut Indexes) {
        if let Some(new) = new
            && old.is_none_or(|old| !same_for_pods(old, new))
        {
            indexes.wake_pods(false);
        }
        let seen = |node: Option<&Self>| {
            node.map(|n| {
                (
                    ready_status(n).to_owned(),
                    zone(n),
                    taint::evicting(n).cloned(),
                )
            })
        };
        if seen(old) != seen(new) {
            indexes.make_due(Task::Zones);
        }
        let all_lost = indexes.all_lost();
        if std::mem::replace(&mut indexes.were_all_lost, all_lost) && !all_lost {
            // What is silent still is lost now.
            let lost = indexes.nodes.iter().filter(|(_, offer)| !offer.ready);
            let tasks: Vec<Task> = lost.map(|(name, _)| Task::Node(name.clone())).collect();
            indexes.due.extend(tasks);
        }
    }
}

/// True when the node counts for whether its zone is disrupted.
fn counts(node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    !labels.is_some_and(|l| l.contains_key("node.kubernetes.io/exclude-disruption"))
}

/// True when the scheduler finds the same in both.
fn same_for_pods(a: &Node, b: &Node) -> bool {
    a.spec == b.spec
        && a.metadata.labels == b.metadata.labels
        && is_ready(a) == is_ready(b)
        && Usage::allocatable(a) == Usage::allocatable(b)
}

/// What is due for one node.
pub fn plan(world: &World, name: &str, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(node) = world.nodes.get(name) else {
        return podgc::plan(world, name, now);
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
                write: None,
            }),
        }
    }
    occupy(world, node, &mut plan);
    readiness::taint(&mut changed);
    if changed != **node {
        plan.writes.push(Write::Put {
            object: Object::Node(Arc::new(changed.clone())),
            claims,
        });
    }
    for pod in world.pods_on(name).filter(|p| podgc::is_condemned(p)) {
        podgc::delete(pod, Some(0), &mut plan);
    }
    let believed = world.lost_since();
    let serves = is_ready(node) || (is_lost(node) && world.indexes.all_lost());
    for pod in world.pods_on(name).filter(|p| !object::pod_finished(p)) {
        if is_lost(node) && believed > now {
            plan.again(believed);
        } else if !serves {
            eviction::not_ready(pod, now, &mut plan);
        }
        if !object::deleting(&pod.metadata) {
            eviction::evict(world, &changed, pod, now, &mut plan);
        }
    }
    plan
}

/// Takes the claims of the ranges that the node was made with, so that no other node is
/// given them (as `occupyCIDRs` of Kubernetes' nodeipam).
fn occupy(world: &World, node: &Node, plan: &mut Plan) {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let settings = &world.settings;
    let mut free = Vec::new();
    let mut taken = None;
    for range in ipam::parts(settings, object::pod_cidrs(node)) {
        let key = ClaimKey::NodeRange(range);
        let claim = world.claims().get(&key);
        match claim.map_or("", |claim| claim.owner.as_str()) {
            "" => free.push(ClaimWrite {
                key,
                revision: claim.map_or(0, |claim| claim.revision),
                owner: name.to_owned(),
            }),
            owner if owner == name => {}
            owner => taken = Some((range, owner.to_owned())),
        }
    }
    for part in free.chunks(64) {
        plan.writes.push(Write::Claims(part.to_vec()));
    }
    if let Some((range, owner)) = taken {
        plan.notices.push(Notice {
            about: Key::new("", "Node", Name::new("", name)),
            uid: object::uid(&node.metadata).to_owned(),
            severity: Severity::Warning,
            reason: "CIDRAssignmentFailed",
            message: format!("{range} of the node's podCIDRs is in use by node {owner}"),
            component: COMPONENT,
            write: None,
        });
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::for_tests::{node, now, pod, put_node, put_pod, running, typed, world};
    use crate::readiness::unheard;
    use crate::taint::{NOT_READY, UNREACHABLE, UNSCHEDULABLE};
    use crate::time::after;

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

    fn carry_out(world: &mut World, plan: &Plan) {
        for write in &plan.writes {
            if let Write::Put { object, .. } = write {
                world.put(object.clone());
            }
        }
    }

    fn lost(world: &World, name: &str) -> Node {
        unheard(&world.nodes[name], now()).unwrap()
    }

    #[test]
    fn a_new_node_gets_the_next_range() {
        let mut world = world();
        put_node(&mut world, node("n0", 0));
        assert!(plan(&world, "n0", now()).writes.is_empty());
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

    /// One that was exported and applied again, or that an operator made.
    #[test]
    fn the_range_that_a_node_was_made_with_is_given_to_no_other() {
        let mut world = world();
        let mut made = node("n0", 0);
        let spec = made.spec.get_or_insert_default();
        // Larger than what nodes are given, and one that is not the cluster's.
        let ranges = ["10.244.0.0/23", "192.0.2.0/24"];
        spec.pod_cidr = Some(ranges[0].to_owned());
        spec.pod_cidrs = Some(ranges.map(str::to_owned).to_vec());
        world.put(Object::Node(Arc::new(made.clone())));
        let mut fresh = node("n1", 1);
        fresh.spec = None;
        put_node(&mut world, fresh);
        // Planned before the claims are there, and after.
        let given = |world: &World| {
            let plan = plan(world, "n1", now());
            let [
                Write::Put {
                    object: Object::Node(node),
                    ..
                },
            ] = plan.writes.as_slice()
            else {
                panic!("{plan:?}");
            };
            node.spec.as_ref().unwrap().pod_cidr.clone().unwrap()
        };
        assert_eq!(given(&world), "10.244.2.0/24");
        let outcome = plan(&world, "n0", now());
        let [Write::Claims(claims)] = outcome.writes.as_slice() else {
            panic!("{outcome:?}")
        };
        assert_eq!(claims.len(), 2);
        for claim in claims {
            let (owner, revision) = (claim.owner.clone(), 7);
            let claimed = crate::claim::Claim { owner, revision };
            world.put_claim(claim.key.clone(), Some(claimed));
        }
        assert_eq!(given(&world), "10.244.2.0/24");
        let outcome = plan(&world, "n0", now());
        assert_eq!((outcome.writes, outcome.notices), (vec![], vec![]));
        // Another one with the same.
        made.metadata.name = Some("n2".to_owned());
        made.metadata.uid = Some("n2".to_owned());
        world.put(Object::Node(Arc::new(made)));
        let outcome = plan(&world, "n2", now());
        assert_eq!(outcome.writes, []);
        assert_eq!(outcome.notices[0].reason, "CIDRAssignmentFailed");
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
        put_node(&mut world, node("n2", 2));
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
        carry_out(&mut world, &first);
        let driven = crate::zone::plan(&world, now());
        carry_out(&mut world, &driven);
        // Tainted, and none of its pods is ready any more.
        assert!(world.pods.values().all(|p| !object::pod_ready(p)));
        let spec = world.nodes["n1"].spec.as_ref().unwrap();
        assert_eq!(spec.taints.as_ref().unwrap().len(), 2);
        let first = plan(&world, "n1", now());
        assert_eq!(
            (deleted(&first), first.again_at),
            (vec![], Some(after(now(), 10)))
        );
        let rows: [(i64, &[&str]); 3] = [(9, &[]), (10, &["short"]), (300, &["default", "short"])];
        for (seconds, expected) in rows {
            let plan = plan(&world, "n1", after(now(), seconds));
            assert_eq!(deleted(&plan), expected, "after {seconds} s");
        }
        assert!(unheard(&world.nodes["n1"], now()).is_none());
        // A control plane that starts then gives the node the time to come back,
        // and the pods their whole toleration.
        world.hear(after(now(), 300));
        let rows: [(i64, &[&str]); 3] =
            [(340, &[]), (350, &["short"]), (640, &["default", "short"])];
        for (seconds, expected) in rows {
            let plan = plan(&world, "n1", after(now(), seconds));
            assert_eq!(deleted(&plan), expected, "after {seconds} s");
        }
    }

    /// While no node is ready, and for a while after, nothing is concluded from
    /// silence: neither are pods driven off, nor do they leave their services.
    #[test]
    fn a_control_plane_that_was_cut_off_evicts_no_pod() {
        let mut world = world();
        for n in ["n1", "n2"] {
            put_node(&mut world, node(n, 1));
            let pod = running(pod(n, "0", ""), n, "10.244.1.3", true);
            put_pod(&mut world, pod);
        }
        let both: Vec<Node> = ["n1", "n2"].map(|n| lost(&world, n)).into();
        for node in both {
            put_node(&mut world, node);
        }
        let steps = |world: &mut World, time: Timestamp| {
            let mut changed = Vec::new();
            for n in ["n1", "n2"] {
                let plan = plan(world, n, time);
                carry_out(world, &plan);
                changed.extend(deleted(&plan).into_iter().map(str::to_owned));
            }
            let plan = crate::zone::plan(world, time);
            carry_out(world, &plan);
            let ready = world.pods.values().filter(|p| object::pod_ready(p)).count();
            let driven = world
                .nodes
                .values()
                .filter(|n| taint::evicting(n).is_some());
            (changed, ready, driven.count())
        };
        for seconds in [0, 1000, 10_000] {
            let got = steps(&mut world, after(now(), seconds));
            assert_eq!(got, (vec![], 2, 0), "after {seconds} s");
        }
        // One is heard of again: the other has the time to be heard of, too.
        put_node(&mut world, node("n2", 1));
        world.hear(after(now(), 10_000));
        let due = world.take_due();
        assert!(due.contains(&Task::Node("n1".to_owned())));
        assert_eq!(steps(&mut world, after(now(), 10_039)), (vec![], 2, 0));
        assert_eq!(steps(&mut world, after(now(), 10_040)), (vec![], 1, 1));
        assert_eq!(steps(&mut world, after(now(), 10_339)), (vec![], 1, 1));
        let last = steps(&mut world, after(now(), 10_340));
        assert_eq!(last.0, ["n1"]);
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
