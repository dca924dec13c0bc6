//! The scheduler: a node, an address and an identity for each pod that has none.
//!
//! Filter (readiness, taints, selector, requests, ports of the host, addresses),
//! then score (least allocated, and few pods of the same owner); many pods in one
//! pass, each seeing what the ones before it took. Which ones is `queue.rs`.
//! Called by [`crate::plan`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{HostIP, Node, Pod, PodCondition, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::action::{Notice, Plan, Severity, Unschedulable, Write};
use crate::claim::{ClaimKey, ClaimWrite};
use crate::hash::fnv64;
use crate::identity::Numbers;
use crate::index::HostPort;
use crate::object::{self, Key, Name};
use crate::pod::{host_ports, lacks_address};
use crate::pool::{Draw, Pool};
use crate::registry::Object;
use crate::usage::Usage;
use crate::world::World;
use crate::{identity, node, taint};

/// Pods in one pass at most: bindings become visible after each pass.
const MOST: usize = 1000;
/// Nodes that are looked at in one pass, for all its pods together, at most:
/// other tasks wait meanwhile.
const LOOKS: usize = 200_000;
const COMPONENT: &str = "default-scheduler";

/// A node during one pass.
struct Place<'a> {
    node: &'a Arc<Node>,
    name: &'a str,
    offered: Usage,
    used: Usage,
    /// Its free pod addresses, and how many there are.
    free: Vec<Draw<'a>>,
    addresses: u64,
    ready: bool,
    /// Pods of each owner bound in this pass.
    bound: BTreeMap<String, u32>,
    /// Ports of the host that its pods have, before this pass and in it.
    host_ports: Option<&'a BTreeMap<HostPort, u32>>,
    new_ports: BTreeSet<HostPort>,
}

/// Binds what fits; says why the others do not.
pub fn plan(world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let most = (LOOKS / world.nodes.len().max(1)).clamp(1, MOST);
    let turn = world.indexes.queue.turn(now, most);
    if let Some(next) = turn.next {
        plan.again(next);
    }
    if turn.pods.is_empty() {
        return plan;
    }
    let mut pass = Pass {
        world,
        now,
        places: world
            .nodes
            .iter()
            .map(|(n, node)| place(world, n, node))
            .collect(),
        taken: BTreeSet::new(),
        numbers: Numbers::of(world),
    };
    for pod in turn.pods.iter().filter_map(|name| world.pods.get(name)) {
        pass.try_pod(pod, &mut plan);
    }
    plan
}

fn place<'a>(world: &'a World, name: &'a str, node: &'a Arc<Node>) -> Place<'a> {
    let pools: Vec<Pool> = node::ranges(node).map(Pool::PodAddresses).collect();
    let offer = world.indexes.nodes.get(name);
    Place {
        node,
        name,
        offered: offer.map(|o| o.allocatable).unwrap_or_default(),
        used: world.indexes.usage.get(name).copied().unwrap_or_default(),
        addresses: pools.iter().map(|pool| world.claims().left(*pool)).sum(),
        free: pools
            .iter()
            .map(|pool| world.claims().draw(*pool))
            .collect(),
        ready: node::is_ready(node),
        bound: BTreeMap::new(),
        host_ports: world.indexes.host_ports.get(name),
        new_ports: BTreeSet::new(),
    }
}

/// What keeps a pod off a node, in Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Unfit<'a> {
    /// However much is left there.
    Never(&'static str),
    /// The key and value of a taint.
    Taint(&'a str, &'a str),
    /// It has too little left.
    Full(&'static str),
}

impl std::fmt::Display for Unfit<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unfit::Never(text) | Unfit::Full(text) => f.write_str(text),
            Unfit::Taint(key, value) => {
                write!(f, "node(s) had untolerated taint {{{key}: {value}}}")
            }
        }
    }
}

const NO_ADDRESS: Unfit<'static> = Unfit::Full("node(s) had no free pod IP addresses");

/// Why no node can take a pod.
struct Nowhere {
    message: String,
    /// Some node would take it if it had more left.
    room: bool,
}

fn nowhere(nodes: usize, reasons: &BTreeMap<Unfit<'_>, u32>) -> Nowhere {
    let mut parts: Vec<String> = reasons
        .iter()
        .map(|(why, n)| format!("{n} {why}"))
        .collect();
    parts.sort_unstable();
    let message = if nodes == 0 {
        "no nodes available to schedule pods".to_owned()
    } else {
        format!("0/{nodes} nodes are available: {}.", parts.join(", "))
    };
    Nowhere {
        message,
        room: reasons.keys().any(|why| matches!(why, Unfit::Full(_))),
    }
}

/// Index of the node that is best for a pod.
fn choose(world: &World, pod: &Pod, places: &[Place<'_>]) -> Result<usize, Nowhere> {
    if let Some(name) = object::pod_node(pod) {
        return named(name, places);
    }
    let asked = Usage::of(pod);
    let ports: Vec<HostPort> = host_ports(pod).collect();
    let owner = object::controller(&pod.metadata).map_or("", |o| o.uid.as_str());
    let mut reasons: BTreeMap<Unfit<'_>, u32> = BTreeMap::new();
    let mut fit: Vec<(usize, u32)> = Vec::new();
    for (at, place) in places.iter().enumerate() {
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
        }
    }
    let most = fit.iter().map(|(_, same)| *same).max().unwrap_or(0);
    let best = fit.into_iter().max_by_key(|(at, same)| {
        let place = &places[*at];
        let spread = (most - same) * 100 / most.max(1);
        let score = least_allocated(place, &asked) + u64::from(spread) * 2;
        // Equal nodes: the one with fewer pods, then any, but not always the same.
        let any = fnv64(&[object::uid(&pod.metadata).as_bytes(), place.name.as_bytes()]);
        (score, std::cmp::Reverse(place.used.pods), any)
    });
    best.map(|(at, _)| at)
        .ok_or_else(|| nowhere(places.len(), &reasons))
}

/// A pod whose spec names its node lacks an address of that node, no more.
fn named(name: &str, places: &[Place<'_>]) -> Result<usize, Nowhere> {
    let Ok(at) = places.binary_search_by(|place| place.name.cmp(name)) else {
        return Err(Nowhere {
            message: format!("node {name:?} not found"),
            room: false,
        });
    };
    if places[at].addresses == 0 {
        return Err(Nowhere {
            message: format!("node {name:?} has no free pod IP addresses"),
            room: true,
        });
    }
    Ok(at)
}

/// 0 to 100: the mean of the parts of CPU and memory that would be left.
fn least_allocated(place: &Place<'_>, asked: &Usage) -> u64 {
    let left = |offered: u64, used: u64, asked: u64| {
        let free = offered.saturating_sub(used.saturating_add(asked));
        u128::from(free) * 100 / u128::from(offered.max(1))
    };
    let cpu = left(
        place.offered.scored_cpu,
        place.used.scored_cpu,
        asked.scored_cpu,
    );
    let memory = left(
        place.offered.scored_memory,
        place.used.scored_memory,
        asked.scored_memory,
    );
    u64::try_from(u128::midpoint(cpu, memory)).unwrap_or(0)
}

/// Says all that keeps the pod off this node; nothing: it fits.
fn unfit<'a>(
    pod: &Pod,
    asked: &Usage,
    ports: &[HostPort],
    place: &Place<'a>,
    say: &mut impl FnMut(Unfit<'a>),
) {
    let Some(spec) = &pod.spec else {
        return say(Unfit::Never("node(s) cannot run an empty pod"));
    };
    if let Some(found) = taint::untolerated(place.node, spec, |t| t.effect != "PreferNoSchedule") {
        let value = found.value.as_deref().unwrap_or("");
        return say(Unfit::Taint(&found.key, value));
    }
    if place.node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true)
        && !taint::tolerates(spec, &taint::unschedulable())
    {
        return say(Unfit::Never("node(s) were unschedulable"));
    }
    if !place.ready || place.free.is_empty() {
        return say(Unfit::Never("node(s) were not ready"));
    }
    let labels = place.node.metadata.labels.as_ref();
    let wanted = spec.node_selector.iter().flatten();
    if wanted
        .into_iter()
        .any(|(k, v)| labels.and_then(|l| l.get(k)) != Some(v))
    {
        return say(Unfit::Never(
            "node(s) didn't match Pod's node affinity/selector",
        ));
    }
    let taken = |port: &HostPort| {
        place.host_ports.is_some_and(|had| had.contains_key(port)) || place.new_ports.contains(port)
    };
    if ports.iter().any(taken) {
        say(Unfit::Full(
            "node(s) didn't have free ports for the requested pod ports",
        ));
    }
    if place.addresses == 0 && lacks_address(pod) {
        say(NO_ADDRESS);
    }
    let mut short = |asked: u64, used: u64, offered: u64, text| {
        if asked > 0 && used.saturating_add(asked) > offered {
            say(Unfit::Full(text));
        }
    };
    let (used, offered) = (&place.used, &place.offered);
    short(
        asked.cpu_millis,
        used.cpu_millis,
        offered.cpu_millis,
        "Insufficient cpu",
    );
    short(
        asked.memory_bytes,
        used.memory_bytes,
        offered.memory_bytes,
        "Insufficient memory",
    );
    short(asked.pods, used.pods, offered.pods, "Too many pods");
}

/// What the bindings of one pass have in common.
struct Pass<'a> {
    world: &'a World,
    now: Timestamp,
    /// In the order of their names.
    places: Vec<Place<'a>>,
    taken: BTreeSet<ClaimKey>,
    numbers: Numbers<'a>,
}

impl Pass<'_> {
    /// Binds the pod to the best node that can be bound to.
    fn try_pod(&mut self, pod: &Arc<Pod>, plan: &mut Plan) {
        loop {
            let at = match choose(self.world, pod, &self.places) {
                Ok(at) => at,
                Err(why) => return unschedulable(pod, &why, self.now, plan),
            };
            let address = if lacks_address(pod) {
                let Some(address) = self.address(at, object::uid(&pod.metadata)) else {
                    // Its ranges are another node's as well. The next node, then.
                    self.places[at].addresses = 0;
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
        let place = &mut self.places[at];
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
        let place = &mut self.places[at];
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
            place.new_ports.extend(host_ports(pod));
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
