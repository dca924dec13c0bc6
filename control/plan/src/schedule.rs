//! The scheduler: a node, an address and an identity for each pod that has none.
//!
//! Filter (`filter.rs`), then score (`score.rs`); many pods in one pass, each seeing
//! what the ones before it took (`place.rs`). Which ones is `queue.rs`. Called by
//! [`crate::plan`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{HostIP, Pod, PodCondition, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::action::{Notice, Plan, Severity, Unschedulable, Write};
use crate::claim::{ClaimKey, ClaimWrite};
use crate::filter::{Nowhere, Unfit, nowhere, unfit};
use crate::hash::fnv64;
use crate::hostport::{HostPort, host_ports};
use crate::identity::Numbers;
use crate::object::{self, Key, Name};
use crate::place::Places;
use crate::pod::lacks_address;
use crate::registry::Object;
use crate::usage::Usage;
use crate::world::World;
use crate::{identity, node, score};

/// Pods in one pass at most: bindings become visible after each pass.
const MOST: usize = 1000;
/// Nodes that are looked at in one pass, for all its pods together, at most:
/// other tasks wait meanwhile.
const LOOKS: usize = 200_000;
const COMPONENT: &str = "default-scheduler";

/// Binds what fits; says why the others do not.
pub fn plan(world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let turn = world.indexes.queue.turn(now, MOST);
    if let Some(next) = turn.next {
        plan.again(next);
    }
    if turn.pods.is_empty() {
        return plan;
    }
    let mut pass = Pass {
        world,
        now,
        places: Places::of(world),
        taken: BTreeSet::new(),
        numbers: Numbers::of(world),
    };
    for pod in turn.pods.iter().filter_map(|name| world.pods.get(name)) {
        if pass.places.looks > LOOKS {
            plan.again(now);
            break;
        }
        pass.try_pod(pod, &mut plan);
    }
    plan
}

/// How many nodes that can take a pod are found before the best of them is taken
/// (Kubernetes' numFeasibleNodesToFind): all of a small cluster, a part of a large one.
fn enough(nodes: usize) -> usize {
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(100)
}

/// Index of the node that is best for a pod.
fn choose(world: &World, pod: &Pod, places: &mut Places<'_>) -> Result<usize, Nowhere> {
    if let Some(name) = object::pod_node(pod) {
        return named(name, places);
    }
    let asked = Usage::of(pod);
    let ports: Vec<HostPort> = host_ports(pod).collect();
    let owner = object::controller(&pod.metadata).map_or("", |o| o.uid.as_str());
    let mut reasons: BTreeMap<Unfit<'_>, u32> = BTreeMap::new();
    let mut fit: Vec<(usize, u32)> = Vec::new();
    // Not from the same node each time: not all of them are looked at.
    let from = fnv64(&[object::uid(&pod.metadata).as_bytes()]) % places.len().max(1) as u64;
    let from = usize::try_from(from).unwrap_or(0);
    for at in (from..places.len()).chain(0..from) {
        let place = places.get(at);
        let mut fits = true;
        unfit(pod, &asked, &ports, place, &mut |why| {
            fits = false;
            *reasons.entry(why).or_default() += 1;
        });
        if fits {
            let key = (owner.to_owned(), place.name.to_owned());
            let before = world.indexes.spread.get(&key).copied().unwrap_or(0);
            let now = place.bound.get(owner).copied().unwrap_or(0);
            fit.push((at, if owner.is_empty() { 0 } else { before + now }));
            if fit.len() >= enough(places.len()) {
                break;
            }
        }
    }
    score::best(pod, &asked, fit, places).ok_or_else(|| nowhere(places.len(), &reasons))
}

/// A pod whose spec names its node lacks an address of that node, no more.
fn named(name: &str, places: &mut Places<'_>) -> Result<usize, Nowhere> {
    let Some(at) = places.find(name) else {
        return Err(Nowhere {
            message: format!("node {name:?} not found"),
            room: false,
        });
    };
    if places.get(at).addresses == 0 {
        return Err(Nowhere {
            message: format!("node {name:?} has no free pod IP addresses"),
            room: true,
        });
    }
    Ok(at)
}

/// What the bindings of one pass have in common.
struct Pass<'a> {
    world: &'a World,
    now: Timestamp,
    places: Places<'a>,
    taken: BTreeSet<ClaimKey>,
    numbers: Numbers<'a>,
}

impl Pass<'_> {
    /// Binds the pod to the best node that can be bound to.
    fn try_pod(&mut self, pod: &Arc<Pod>, plan: &mut Plan) {
        loop {
            let at = match choose(self.world, pod, &mut self.places) {
                Ok(at) => at,
                Err(why) => return unschedulable(pod, &why, self.now, plan),
            };
            let address = if lacks_address(pod) {
                let Some(address) = self.address(at, object::uid(&pod.metadata)) else {
                    // Its ranges are another node's as well. The next node, then.
                    self.places.get(at).addresses = 0;
                    continue;
                };
                Some(address)
            } else {
                None
            };
            return self.bind(pod, at, address, plan);
        }
    }

    /// The next free address of a node. Ranges may overlap if people gave them.
    fn address(&mut self, at: usize, uid: &str) -> Option<(IpAddr, ClaimWrite)> {
        let place = self.places.get(at);
        for (key, revision) in place.free.iter_mut().flatten() {
            let ClaimKey::PodAddress(address) = key else {
                continue;
            };
            if self.taken.insert(key.clone()) {
                place.addresses = place.addresses.saturating_sub(1);
                let owner = uid.to_owned();
                let claim = ClaimWrite {
                    key,
                    revision,
                    owner,
                };
                return Some((address, claim));
            }
        }
        None
    }

    fn bind(
        &mut self,
        pod: &Arc<Pod>,
        at: usize,
        address: Option<(IpAddr, ClaimWrite)>,
        plan: &mut Plan,
    ) {
        let place = self.places.get(at);
        let mut changed = Pod::clone(pod);
        let mut claims: Vec<ClaimWrite> = Vec::new();
        let (number, claim) = self.numbers.of_pod(pod);
        claims.extend(claim);
        let annotations = changed.metadata.annotations.get_or_insert_default();
        annotations.insert(identity::ANNOTATION.to_owned(), number.to_string());
        changed.spec.get_or_insert_default().node_name = Some(place.name.to_owned());
        let status = changed.status.get_or_insert_default();
        if let Some((address, claim)) = address {
            claims.push(claim);
            let ip = address.to_string();
            status.pod_ip = Some(ip.clone());
            status.pod_ips = Some(vec![PodIP { ip }]);
        }
        let host = node::address(place.node).map(str::to_owned);
        status.host_ips = host.clone().map(|ip| vec![HostIP { ip }]);
        status.host_ip = host;
        scheduled(status, "True", None, None, self.now);

        // The ones that follow see this one where it will be.
        if object::pod_node(pod).is_none() {
            place.used.add(&Usage::of(pod));
            host_ports(pod).for_each(|port| place.new_ports.take(port));
            if let Some(owner) = object::controller(&pod.metadata) {
                *place.bound.entry(owner.uid.clone()).or_default() += 1;
            }
        }
        let name = Name::of(&pod.metadata);
        let message = format!("Successfully assigned {name} to {}", place.name);
        let uid = object::uid(&pod.metadata).to_owned();
        plan.assumed.push((name, uid));
        plan.writes.push(Write::Put {
            object: Object::Pod(Arc::new(changed)),
            claims,
        });
        plan.tell(notice(pod, Severity::Normal, "Scheduled", message));
    }
}

fn unschedulable(pod: &Arc<Pod>, why: &Nowhere, now: Timestamp, plan: &mut Plan) {
    let message = why.message.as_str();
    plan.unschedulable.push(Unschedulable {
        pod: Name::of(&pod.metadata),
        uid: object::uid(&pod.metadata).to_owned(),
        room: why.room,
    });
    let known = object::pod_condition(pod, "PodScheduled")
        .is_some_and(|c| c.status == "False" && c.message.as_deref() == Some(message));
    if known {
        return;
    }
    let mut changed = Pod::clone(pod);
    let status = changed.status.get_or_insert_default();
    scheduled(status, "False", Some("Unschedulable"), Some(message), now);
    plan.put(Object::Pod(Arc::new(changed)));
    plan.tell(notice(
        pod,
        Severity::Warning,
        "FailedScheduling",
        message.to_owned(),
    ));
}

fn scheduled(
    pod_status: &mut PodStatus,
    status: &str,
    reason: Option<&str>,
    message: Option<&str>,
    now: Timestamp,
) {
    let conditions = pod_status.conditions.get_or_insert_default();
    let old = conditions
        .iter()
        .find(|c| c.type_ == "PodScheduled" && c.status == status);
    let since = old.and_then(|c| c.last_transition_time.clone());
    conditions.retain(|c| c.type_ != "PodScheduled");
    conditions.push(PodCondition {
        type_: "PodScheduled".to_owned(),
        status: status.to_owned(),
        reason: reason.map(str::to_owned),
        message: message.map(str::to_owned),
        last_transition_time: Some(since.unwrap_or(Time(now))),
        ..PodCondition::default()
    });
}

fn notice(pod: &Pod, severity: Severity, reason: &'static str, message: String) -> Notice {
    Notice {
        about: Key::new("", "Pod", Name::of(&pod.metadata)),
        uid: object::uid(&pod.metadata).to_owned(),
        severity,
        reason,
        message,
        component: COMPONENT,
        write: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use k8s_openapi::api::core::v1::Node;

    use super::*;
    use crate::claim::Claim;
    use crate::for_tests::{node as node_of, now, pod, put_node, put_pod, running, typed, world};
    use crate::task::Task;
    use crate::time::after;

    /// Name of each bound pod and its node, in order of names.
    fn bound(plan: &Plan) -> Vec<(String, String)> {
        let mut bound: Vec<(String, String)> = plan
            .writes
            .iter()
            .filter_map(|w| match w {
                Write::Put {
                    object: Object::Pod(pod),
                    claims,
                } if !claims.is_empty() => {
                    let name = pod.metadata.name.clone()?;
                    Some((name, object::pod_node(pod)?.to_owned()))
                }
                Write::Put { .. }
                | Write::Claims(_)
                | Write::Delete { .. }
                | Write::Remove { .. }
                | Write::Unhook { .. } => None,
            })
            .collect();
        bound.sort();
        bound
    }

    fn said(plan: &Plan) -> Vec<&str> {
        let failed = plan
            .notices
            .iter()
            .filter(|n| n.reason == "FailedScheduling");
        failed.map(|n| n.message.as_str()).collect()
    }

    /// Work for one pod does not grow with the cluster for ever, and all nodes get pods.
    #[test]
    fn a_part_of_a_large_cluster_is_looked_at() {
        for (nodes, expected) in [
            (1, 100),
            (250, 120),
            (1000, 420),
            (5000, 500),
            (20_000, 1000),
        ] {
            assert_eq!(enough(nodes), expected, "{nodes}");
        }
        let mut world = world();
        for n in 0..1000 {
            put_node(&mut world, node_of(&format!("n{n:04}"), 1));
        }
        let mut first = BTreeSet::new();
        for n in 0..20 {
            let mut places = Places::of(&world);
            let small = pod(&format!("p{n}"), "1", "");
            first.insert(choose(&world, &small, &mut places).ok().unwrap());
            assert_eq!(places.looked_at(), 420);
            let large = pod("large", "3", "");
            let why = choose(&world, &large, &mut places).err().unwrap();
            assert_eq!(
                why.message,
                "0/1000 nodes are available: 1000 Insufficient cpu."
            );
            assert_eq!(places.looked_at(), 1000);
        }
        assert!(first.len() > 10, "{first:?}");
    }

    #[test]
    fn why_a_pod_fits_nowhere() {
        type Change = fn(&mut Node, &mut Pod);
        let rows: [(&str, Change); 9] = [
            ("1 node(s) had no free pod IP addresses", |n, _| {
                n.spec.as_mut().unwrap().pod_cidrs = Some(vec!["10.244.1.0/31".to_owned()]);
            }),
            ("1 Insufficient cpu", |_, p| *p = pod("p", "3", "")),
            ("1 node(s) were unschedulable", |n, _| {
                n.spec.as_mut().unwrap().unschedulable = Some(true);
            }),
            ("1 node(s) were not ready", |n, _| {
                n.status.as_mut().unwrap().conditions = None;
            }),
            (
                "1 node(s) had untolerated taint {dedicated: gpu}",
                |n, _| {
                    n.spec.as_mut().unwrap().taints = Some(vec![typed(
                        json!({"key": "dedicated", "value": "gpu", "effect": "NoSchedule"}),
                    )]);
                },
            ),
            (
                "1 node(s) didn't match Pod's node affinity/selector",
                |_, p| {
                    let selector = [("disk".to_owned(), "ssd".to_owned())];
                    p.spec.as_mut().unwrap().node_selector = Some(selector.into());
                },
            ),
            ("1 Too many pods", |n, _| {
                n.status.as_mut().unwrap().allocatable =
                    Some(typed(json!({"cpu": "2", "memory": "4Gi", "pods": "0"})));
            }),
            ("1 Insufficient cpu, 1 Insufficient memory", |_, p| {
                p.spec.as_mut().unwrap().containers[0].resources =
                    Some(typed(json!({"requests": {"cpu": "9", "memory": "9Gi"}})));
            }),
            ("1 Insufficient cpu", |_, p| {
                p.spec.as_mut().unwrap().init_containers = Some(vec![typed(
                    json!({"name": "i", "resources": {"requests": {"cpu": "2500m"}}}),
                )]);
            }),
        ];
        for (expected, change) in rows {
            let (mut node, mut pod) = (node_of("n1", 1), pod("p", "100m", ""));
            change(&mut node, &mut pod);
            let mut world = world();
            put_node(&mut world, node);
            put_pod(&mut world, pod);
            let plan = plan(&world, now());
            assert_eq!(bound(&plan), []);
            assert_eq!(
                said(&plan),
                [format!("0/1 nodes are available: {expected}.")]
            );
            // Said once: the pod that says so already is not written again.
            for write in &plan.writes {
                if let Write::Put { object, .. } = write {
                    world.put(object.clone());
                }
            }
            world.note(&plan, now());
            world.take_due();
            let again = super::plan(&world, after(now(), 300));
            assert_eq!(
                (said(&again), again.writes.len()),
                (vec![], 0),
                "{expected}"
            );
            assert_eq!(again.unschedulable.len(), 1, "{expected}");
        }
        let mut world = world();
        put_pod(&mut world, pod("p", "1", ""));
        assert_eq!(
            said(&plan(&world, now())),
            ["no nodes available to schedule pods"]
        );
    }

    #[test]
    fn tolerated_taints_do_not_count() {
        let mut world = world();
        let mut node = node_of("n1", 1);
        node.spec.as_mut().unwrap().taints = Some(vec![typed(
            json!({"key": "k", "value": "v", "effect": "NoSchedule"}),
        )]);
        put_node(&mut world, node);
        let rows = [
            ("a", json!({"key": "k", "operator": "Exists"}), true),
            ("b", json!({"key": "k", "value": "v"}), true),
            ("c", json!({"operator": "Exists"}), true),
            ("d", json!({"key": "k", "value": "other"}), false),
            (
                "e",
                json!({"key": "k", "value": "v", "effect": "NoExecute"}),
                false,
            ),
        ];
        for (name, toleration, _) in &rows {
            let mut pod = pod(name, "1m", "");
            pod.spec.as_mut().unwrap().tolerations = Some(vec![typed(toleration.clone())]);
            put_pod(&mut world, pod);
        }
        let names: Vec<String> = bound(&plan(&world, now()))
            .into_iter()
            .map(|b| b.0)
            .collect();
        let expected = rows.iter().filter(|r| r.2).map(|r| r.0);
        assert_eq!(names, expected.collect::<Vec<_>>());
    }

    #[test]
    fn pods_of_one_owner_spread_and_see_each_other() {
        for count in 2..7u32 {
            let mut world = world();
            put_node(&mut world, node_of("n1", 1));
            put_node(&mut world, node_of("n2", 2));
            for i in 0..count {
                put_pod(&mut world, pod(&format!("p{i}"), "0", "rs"));
            }
            let bound = bound(&plan(&world, now()));
            let on_first = bound.iter().filter(|(_, node)| node == "n1").count();
            let on_second = bound.len() - on_first;
            assert_eq!(bound.len(), usize::try_from(count).unwrap());
            assert!(on_first.abs_diff(on_second) <= 1, "{bound:?}");
        }
        // What others took counts: four pods of 600m fit, three on the emptier.
        let mut world = world();
        put_node(&mut world, node_of("n1", 1));
        put_node(&mut world, node_of("n2", 2));
        put_pod(
            &mut world,
            running(pod("old", "1", ""), "n1", "10.244.1.2", true),
        );
        for i in 0..5 {
            put_pod(&mut world, pod(&format!("p{i}"), "600m", ""));
        }
        let plan = plan(&world, now());
        assert_eq!(bound(&plan).len(), 4);
        assert_eq!(
            said(&plan),
            ["0/2 nodes are available: 2 Insufficient cpu."]
        );
    }

    /// Brings what a plan wrote into the world.
    fn carry_out(world: &mut World, plan: &Plan, time: Timestamp) {
        for write in &plan.writes {
            if let Write::Put { object, claims } = write {
                for claim in claims {
                    let held = Claim {
                        owner: claim.owner.clone(),
                        revision: 1,
                    };
                    world.put_claim(claim.key.clone(), Some(held));
                }
                world.put(object.clone());
            }
        }
        world.note(plan, time);
    }

    /// 1,100 pods that fit nowhere are tried again whenever something changes; a
    /// pod that comes after them has its turn all the same.
    #[test]
    fn pods_that_fit_nowhere_starve_no_other() {
        let mut world = world();
        put_node(&mut world, node_of("n1", 1));
        for i in 0..1100 {
            put_pod(&mut world, pod(&format!("big{i}"), "9", ""));
        }
        let mut time = now();
        let mut passes = 0;
        while let plan = super::plan(&world, time)
            && plan.again_at == Some(time)
        {
            carry_out(&mut world, &plan, time);
            passes += 1;
            assert!(passes < 10, "the passes never end");
        }
        let plan = super::plan(&world, time);
        carry_out(&mut world, &plan, time);
        put_pod(&mut world, pod("small", "1", ""));
        assert_eq!(bound(&super::plan(&world, time)).len(), 1);
        // The same while the 1,100 are woken again and again.
        for _ in 0..5 {
            time = after(time, 20);
            put_node(&mut world, node_of("n2", 2));
            world.remove(&Key::new("", "Node", Name::new("", "n2")));
            let plan = super::plan(&world, time);
            carry_out(&mut world, &plan, time);
        }
        assert_eq!(
            object::pod_node(&world.pods[&Name::new("default", "small")]),
            Some("n1")
        );
    }

    #[test]
    fn a_node_without_free_addresses_is_passed_over() {
        let mut world = world();
        let mut full = node_of("n1", 1);
        // Five addresses to be given out: 2 to 6.
        full.spec.as_mut().unwrap().pod_cidrs = Some(vec!["10.244.1.0/29".to_owned()]);
        full.status.as_mut().unwrap().allocatable =
            Some(typed(json!({"cpu": "64", "memory": "64Gi", "pods": "100"})));
        put_node(&mut world, full);
        put_node(&mut world, node_of("n2", 2));
        for i in 0..12 {
            put_pod(&mut world, pod(&format!("p{i:02}"), "100m", ""));
        }
        let plan = super::plan(&world, now());
        carry_out(&mut world, &plan, now());
        let on = |node: &str| bound(&plan).iter().filter(|(_, n)| n == node).count();
        assert_eq!((on("n1"), on("n2")), (5, 7));
        // Ranges that overlap, by mistake: the count says that there is one left,
        // but it was taken through the other range.
        let mut double = node_of("n3", 3);
        double.spec.as_mut().unwrap().pod_cidrs = Some(vec!["10.244.1.0/29".to_owned()]);
        put_node(&mut world, double);
        put_pod(&mut world, pod("last", "1m", "rs"));
        assert_eq!(bound(&super::plan(&world, now())).len(), 1);
    }

    #[test]
    fn a_finished_pod_holds_neither_resources_nor_its_address() {
        for (phase, free) in [("Running", false), ("Succeeded", true), ("Failed", true)] {
            let mut world = world();
            put_node(&mut world, node_of("n1", 1));
            put_pod(&mut world, pod("first", "2", ""));
            let plan = super::plan(&world, now());
            carry_out(&mut world, &plan, now());
            put_pod(&mut world, pod("second", "2", ""));
            let plan = super::plan(&world, now());
            assert_eq!(said(&plan).len(), 1);
            carry_out(&mut world, &plan, now());
            world.take_due();
            let mut first = Pod::clone(&world.pods[&Name::new("default", "first")]);
            first.status.as_mut().unwrap().phase = Some(phase.to_owned());
            put_pod(&mut world, first);
            assert_eq!(world.take_due().contains(&Task::Schedule), free, "{phase}");
            let released = crate::ipam::release(&world).writes.len();
            assert_eq!(released, usize::from(free), "{phase}");
            // After its back-off.
            assert_eq!(bound(&super::plan(&world, now())).len(), 0, "{phase}");
            let later = super::plan(&world, after(now(), 1));
            assert_eq!(bound(&later).len(), usize::from(free), "{phase}");
        }
    }

    /// One slot, two pods: the first is assumed, the second parked. The first never
    /// gets its node.
    #[test]
    fn a_binding_that_comes_to_nothing_wakes_those_that_wait() {
        let name = |n: &str| Name::new("default", n);
        let key = || Key::new("", "Pod", name("first"));
        type Change = fn(&mut World, &dyn Fn() -> Key);
        let rows: [(&str, Change, bool); 5] = [
            ("deleted", |world, key| world.remove(&key()), true),
            (
                "being deleted",
                |world, key| {
                    let mut pod = Pod::clone(&world.pods[&key().name]);
                    pod.metadata.deletion_timestamp = Some(typed(json!("2026-01-01T00:00:00Z")));
                    put_pod(world, pod);
                },
                true,
            ),
            (
                "refused",
                |world, key| world.binding_failed(&key().name, "first", now()),
                true,
            ),
            ("in conflict", |world, _| world.bindings_conflicted(), true),
            (
                "bound",
                |world, key| {
                    let pod = Pod::clone(&world.pods[&key().name]);
                    put_pod(world, running(pod, "n1", "10.244.1.2", true));
                },
                false,
            ),
        ];
        for (case, change, woken) in rows {
            let mut world = world();
            put_node(&mut world, node_of("n1", 1));
            put_pod(&mut world, pod("first", "2", ""));
            put_pod(&mut world, pod("second", "2", ""));
            let plan = super::plan(&world, now());
            assert_eq!(bound(&plan), [("first".to_owned(), "n1".to_owned())]);
            assert_eq!(plan.unschedulable.len(), 1);
            world.note(&plan, now());
            world.take_due();
            change(&mut world, &key);
            assert_eq!(world.take_due().contains(&Task::Schedule), woken, "{case}");
            let turn = world.indexes.queue.turn(after(now(), 1), 10);
            assert_eq!(turn.pods.contains(&name("second")), woken, "{case}");
        }
    }

    #[test]
    fn two_pods_of_one_node_have_different_ports_of_it() {
        let mut world = world();
        put_node(&mut world, node_of("n1", 8));
        let with_port = |name: &str, port: serde_json::Value| {
            let mut pod = pod(name, "1m", "");
            let spec = pod.spec.as_mut().unwrap();
            spec.containers[0].ports = typed(json!([port]));
            pod
        };
        let one = |ip: &str| json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP", "hostIP": ip});
        put_pod(&mut world, with_port("a", one("192.0.2.1")));
        put_pod(&mut world, with_port("b", one("192.0.2.2")));
        put_pod(&mut world, with_port("c", one("")));
        let plan = plan(&world, now());
        let names: Vec<String> = bound(&plan).into_iter().map(|(pod, _)| pod).collect();
        assert_eq!(names, ["a", "b"]);
        let told = &plan.notices.last().unwrap().message;
        assert!(told.contains("didn't have free ports"), "{told}");
        // Beside one that runs there, too.
        let mut runs = with_port("a", one("192.0.2.1"));
        runs.spec.as_mut().unwrap().node_name = Some("n1".to_owned());
        let mut world = super::tests::world();
        put_node(&mut world, node_of("n1", 8));
        put_pod(&mut world, runs);
        put_pod(&mut world, with_port("c", one("0.0.0.0")));
        let plan = super::plan(&world, now());
        assert!(bound(&plan).iter().all(|(pod, _)| pod != "c"), "{plan:?}");
    }

    #[test]
    fn a_pod_gets_address_identity_and_host_with_its_node() {
        let mut world = world();
        put_node(&mut world, node_of("n1", 1));
        put_pod(&mut world, pod("a", "1m", ""));
        let plan = plan(&world, now());
        let [
            Write::Put {
                object: Object::Pod(bound),
                claims,
            },
        ] = plan.writes.as_slice()
        else {
            panic!("{plan:?}");
        };
        let status = bound.status.as_ref().unwrap();
        assert_eq!(status.pod_ip.as_deref(), Some("10.244.1.2"));
        assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
        assert!(identity::of(bound) > 0);
        assert_eq!(claims.len(), 2);
        let mut named = pod("b", "1m", "");
        named.spec.as_mut().unwrap().node_name = Some("n1".to_owned());
        let mut world = super::tests::world();
        put_node(&mut world, node_of("n1", 1));
        put_pod(&mut world, named);
        // Named by its maker: it lacks only the address.
        assert_eq!(super::plan(&world, now()).writes.len(), 1);
    }
}
