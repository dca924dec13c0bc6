//! The scheduler: a node, an address and an identity for each pod that has none.
//!
//! Filter (readiness, taints, selector, requests, ports of the host), then score
//! (least allocated, and few pods of the same owner); all waiting pods in one
//! pass, each seeing what the ones before it took. Called by [`crate::plan`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{HostIP, Node, Pod, PodCondition, PodIP, PodStatus, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::action::{Notice, Plan, Severity, Write};
use crate::claim::{ClaimKey, ClaimWrite};
use crate::hash::fnv64;
use crate::object::{self, Key, Name};
use crate::pod::lacks_address;
use crate::pool::{Draw, Pool};
use crate::registry::Object;
use crate::usage::Usage;
use crate::world::World;
use crate::{identity, node};

/// Pods in one pass at most: bindings become visible after each pass.
const PASS: usize = 1000;
const COMPONENT: &str = "default-scheduler";

/// A node during one pass.
struct Place<'a> {
    node: &'a Arc<Node>,
    name: &'a str,
    offered: Usage,
    used: Usage,
    /// Its free pod addresses.
    free: Vec<Draw<'a>>,
    ready: bool,
    /// Pods of each owner bound in this pass.
    bound: BTreeMap<String, u32>,
    /// (protocol, host port) taken by its pods.
    host_ports: BTreeSet<(String, i32)>,
}

/// Binds what fits; says why the others do not.
pub fn plan(world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if world.indexes.unbound.is_empty() {
        return plan;
    }
    let mut waiting: Vec<&Arc<Pod>> = world
        .indexes
        .unbound
        .iter()
        .filter_map(|n| world.pods.get(n))
        .collect();
    waiting.sort_by_key(|pod| {
        let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
        let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (std::cmp::Reverse(priority), created)
    });
    if waiting.len() > PASS {
        waiting.truncate(PASS);
        plan.again(now);
    }
    // Ports of the nodes themselves are only looked at when somebody asks for one.
    let ports = waiting.iter().any(|pod| !host_ports(pod).is_empty());
    let mut places: Vec<Place<'_>> = world
        .nodes
        .iter()
        .map(|(name, node)| place(world, name, node, ports))
        .collect();
    let mut pass = Pass {
        world,
        now,
        taken: BTreeSet::new(),
        fresh: Vec::new(),
    };
    for pod in waiting {
        match choose(world, pod, &places) {
            Ok(at) => pass.bind(pod, &mut places[at], &mut plan),
            Err(why) => unschedulable(pod, &why, now, &mut plan),
        }
    }
    plan
}

fn place<'a>(world: &'a World, name: &'a str, node: &'a Arc<Node>, ports: bool) -> Place<'a> {
    let pools = node::ranges(node).map(Pool::PodAddresses);
    let pods = world
        .pods_on(name)
        .filter(|p| ports && !object::pod_finished(p));
    let host_ports = pods.flat_map(|p| host_ports(p)).collect();
    Place {
        node,
        name,
        offered: Usage::allocatable(node),
        used: world.indexes.usage.get(name).copied().unwrap_or_default(),
        free: pools.map(|pool| world.claims().draw(pool)).collect(),
        ready: node::is_ready(node),
        bound: BTreeMap::new(),
        host_ports,
    }
}

fn host_ports(pod: &Pod) -> Vec<(String, i32)> {
    let containers = pod.spec.iter().flat_map(|s| &s.containers);
    let ports = containers.flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            Some((protocol, p.host_port.filter(|n| *n > 0)?))
        })
        .collect()
}

/// Why no node can take a pod: how many say what.
type Reasons = BTreeMap<String, u32>;

fn choose(world: &World, pod: &Pod, places: &[Place<'_>]) -> Result<usize, String> {
    if let Some(name) = object::pod_node(pod) {
        let at = places
            .iter()
            .position(|p| p.name == name && !p.free.is_empty());
        return at.ok_or_else(|| format!("node {name:?} is not there, or has no addresses"));
    }
    let asked = Usage::of(pod);
    let owner = object::controller(&pod.metadata).map_or("", |o| o.uid.as_str());
    let mut reasons = Reasons::new();
    let mut fit: Vec<(usize, u32)> = Vec::new();
    for (at, place) in places.iter().enumerate() {
        let unfit = unfit(pod, &asked, place);
        if unfit.is_empty() {
            let key = (owner.to_owned(), place.name.to_owned());
            let before = world.indexes.spread.get(&key).copied().unwrap_or(0);
            let now = place.bound.get(owner).copied().unwrap_or(0);
            fit.push((at, if owner.is_empty() { 0 } else { before + now }));
        }
        for reason in unfit {
            *reasons.entry(reason).or_default() += 1;
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
        .ok_or_else(|| said(places.len(), &reasons))
}

fn said(nodes: usize, reasons: &Reasons) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let parts: Vec<String> = reasons
        .iter()
        .map(|(reason, n)| format!("{n} {reason}"))
        .collect();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
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

/// All that keeps the pod off this node; nothing: it fits.
fn unfit(pod: &Pod, asked: &Usage, place: &Place<'_>) -> Vec<String> {
    let Some(spec) = &pod.spec else {
        return vec!["node(s) cannot run an empty pod".to_owned()];
    };
    if let Some(taint) = node::untolerated(place.node, spec, |t| t.effect != "PreferNoSchedule") {
        return vec![taint_text(taint)];
    }
    if place.node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true)
        && !node::tolerates(spec, &node::unschedulable_taint())
    {
        return vec!["node(s) were unschedulable".to_owned()];
    }
    if !place.ready || place.free.is_empty() {
        return vec!["node(s) were not ready".to_owned()];
    }
    let labels = place.node.metadata.labels.as_ref();
    let wanted = spec.node_selector.iter().flatten();
    if wanted
        .into_iter()
        .any(|(k, v)| labels.and_then(|l| l.get(k)) != Some(v))
    {
        return vec!["node(s) didn't match Pod's node affinity/selector".to_owned()];
    }
    let mut reasons = Vec::new();
    if host_ports(pod).iter().any(|p| place.host_ports.contains(p)) {
        reasons.push("node(s) didn't have free ports for the requested pod ports".to_owned());
    }
    let short = |asked: u64, used: u64, offered: u64| asked > 0 && used + asked > offered;
    if short(
        asked.cpu_millis,
        place.used.cpu_millis,
        place.offered.cpu_millis,
    ) {
        reasons.push("Insufficient cpu".to_owned());
    }
    if short(
        asked.memory_bytes,
        place.used.memory_bytes,
        place.offered.memory_bytes,
    ) {
        reasons.push("Insufficient memory".to_owned());
    }
    if short(asked.pods, place.used.pods, place.offered.pods) {
        reasons.push("Too many pods".to_owned());
    }
    reasons
}

fn taint_text(taint: &Taint) -> String {
    let value = taint.value.as_deref().unwrap_or("");
    format!("node(s) had untolerated taint {{{}: {value}}}", taint.key)
}

/// What the bindings of one pass have in common.
struct Pass<'a> {
    world: &'a World,
    now: Timestamp,
    taken: BTreeSet<ClaimKey>,
    fresh: Vec<(String, u32)>,
}

impl Pass<'_> {
    /// The next free address of a node. Ranges may overlap if people gave them.
    fn address(&mut self, place: &mut Place<'_>, uid: &str) -> Option<(IpAddr, ClaimWrite)> {
        for (key, revision) in place.free.iter_mut().flatten() {
            let ClaimKey::PodAddress(address) = key else {
                continue;
            };
            if self.taken.insert(key.clone()) {
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

    fn bind(&mut self, pod: &Arc<Pod>, place: &mut Place<'_>, plan: &mut Plan) {
        let mut changed = Pod::clone(pod);
        let mut claims: Vec<ClaimWrite> = Vec::new();
        let mut ips = Vec::new();
        if lacks_address(pod) {
            let uid = object::uid(&pod.metadata);
            let Some((address, claim)) = self.address(place, uid) else {
                let why = format!("node {} has no free pod address", place.name);
                unschedulable(pod, &why, self.now, plan);
                return;
            };
            ips.push(PodIP {
                ip: address.to_string(),
            });
            claims.push(claim);
        }
        let (number, claim) = identity::number(self.world, pod, &mut self.fresh);
        claims.extend(claim);
        let annotations = changed.metadata.annotations.get_or_insert_default();
        annotations.insert(identity::ANNOTATION.to_owned(), number.to_string());
        changed.spec.get_or_insert_default().node_name = Some(place.name.to_owned());
        let status = changed.status.get_or_insert_default();
        if let Some(first) = ips.first() {
            status.pod_ip = Some(first.ip.clone());
            status.pod_ips = Some(ips);
        }
        let host = node::address(place.node).map(str::to_owned);
        status.host_ips = host.clone().map(|ip| vec![HostIP { ip }]);
        status.host_ip = host;
        scheduled(status, "True", None, None, self.now);

        // The ones that follow see this one where it will be.
        if object::pod_node(pod).is_none() {
            place.used.add(&Usage::of(pod));
            place.host_ports.extend(host_ports(pod));
            if let Some(owner) = object::controller(&pod.metadata) {
                *place.bound.entry(owner.uid.clone()).or_default() += 1;
            }
        }
        let name = Name::of(&pod.metadata);
        let message = format!("Successfully assigned {name} to {}", place.name);
        plan.writes.push(Write::Put {
            object: Object::Pod(Arc::new(changed)),
            claims,
        });
        plan.notices
            .push(notice(pod, Severity::Normal, "Scheduled", message));
    }
}

fn unschedulable(pod: &Arc<Pod>, why: &str, now: Timestamp, plan: &mut Plan) {
    let known = object::pod_condition(pod, "PodScheduled")
        .is_some_and(|c| c.status == "False" && c.message.as_deref() == Some(why));
    if known {
        return;
    }
    let mut changed = Pod::clone(pod);
    let status = changed.status.get_or_insert_default();
    scheduled(status, "False", Some("Unschedulable"), Some(why), now);
    plan.put(Object::Pod(Arc::new(changed)));
    plan.notices.push(notice(
        pod,
        Severity::Warning,
        "FailedScheduling",
        why.to_owned(),
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
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::for_tests::{node as node_of, now, pod, put_node, put_pod, running, typed, world};

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
        let rows: [(&str, Change); 8] = [
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
                    Some(typed(json!({"limits": {"cpu": "9", "memory": "9Gi"}})));
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
            assert_eq!(super::plan(&world, now()), Plan::default(), "{expected}");
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
