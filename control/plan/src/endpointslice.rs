//! Endpoint slices: for each Service with a selector, where its pods answer,
//! and whether they take connections, finish those they have, or neither.
//!
//! An endpoint stays in the slice that it is in, so a change of one pod writes
//! one slice. Services without a selector are left to the owners of their
//! slices. Called by [`crate::plan`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use control_api::endpointslice::WEIGHTS;
use control_api::service::EXTERNAL_NAME;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::action::{Plan, Write};
use crate::endpoint::{Ports, endpoint, publishes, weight};
use crate::hash::{fnv64, letters};
use crate::index::{Indexes, add, sub};
use crate::object::{self, Key, Name};
use crate::registry::Object;
use crate::task::Task;
use crate::watched::Watched;
use crate::world::World;

/// Label by which a slice names its Service.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Label by which we know our own slices.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpointslice-controller.hydrofoil.dev";
/// Endpoints in one slice (Kubernetes' default).
const MOST: usize = 100;

/// The service that a slice is of.
fn service_of(slice: &EndpointSlice, namespace: &str) -> Option<Name> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?;
    Some(Name::new(namespace, service))
}

impl Watched for EndpointSlice {
    fn index(&self, name: &Name, indexes: &mut Indexes) {
        if let Some(service) = service_of(self, &name.namespace) {
            add(&mut indexes.slices_by_service, service, name.clone());
        }
    }

    fn unindex(&self, name: &Name, indexes: &mut Indexes) {
        if let Some(service) = service_of(self, &name.namespace) {
            sub(&mut indexes.slices_by_service, &service, name);
        }
    }

    fn changed(name: &Name, old: Option<&Self>, new: Option<&Self>, indexes: &mut Indexes) {
        for slice in [old, new].into_iter().flatten() {
            let service = service_of(slice, &name.namespace);
            indexes.due.extend(service.map(Task::EndpointSlices));
        }
    }
}

/// Brings the slices of one Service in line with its pods.
pub fn plan(world: &World, service_name: &Name) -> Plan {
    let mut plan = Plan::default();
    let ours: Vec<&Arc<EndpointSlice>> = world
        .slices_of(service_name)
        .filter(|s| is_ours(s))
        .collect();
    let service = world
        .services
        .get(service_name)
        .filter(|s| !object::deleting(&s.metadata))
        .filter(|s| s.spec.as_ref().and_then(|s| s.type_.as_deref()) != Some(EXTERNAL_NAME));
    let selector = service
        .and_then(|s| s.spec.as_ref())
        .and_then(|s| s.selector.as_ref());
    let (Some(service), Some(selector)) = (service, selector.filter(|s| !s.is_empty())) else {
        for slice in ours {
            delete(slice, &mut plan);
        }
        return plan;
    };

    let mut groups: BTreeMap<Ports, BTreeMap<String, Endpoint>> = BTreeMap::new();
    let published = publishes(service);
    // The pods of a node that was deleted are none: they are collected in a while.
    let is_there = |pod: &Pod| object::pod_node(pod).is_none_or(|n| world.may_have_node(n));
    let selected = selected(world, service_name, selector);
    let mut weights = Weights::new();
    for pod in selected.filter(|pod| published || is_there(pod)) {
        if let Some((ports, endpoint)) = endpoint(service, pod, zone(world, pod)) {
            if let (Some(weight), Some(address)) = (weight(pod), endpoint.addresses.first()) {
                weights.insert(address.clone(), weight.to_owned());
            }
            groups
                .entry(ports)
                .or_default()
                .insert(object::uid(&pod.metadata).to_owned(), endpoint);
        }
    }
    if groups.is_empty() && service.spec.as_ref().is_some_and(|s| s.ports.is_some()) {
        // One empty slice, as in Kubernetes: it says that there are no endpoints.
        groups.insert(Ports::new(), BTreeMap::new());
    }
    let mut kept: BTreeSet<Name> = BTreeSet::new();
    let of = Of { service, weights };
    for (ports, wanted) in groups {
        fill(&of, &ports, wanted, &ours, &mut kept, &mut plan);
    }
    for slice in ours {
        if !kept.contains(&Name::of(&slice.metadata)) && !object::deleting(&slice.metadata) {
            delete(slice, &mut plan);
        }
    }
    plan
}

/// Zone of the pod's node.
fn zone(world: &World, pod: &Pod) -> Option<String> {
    let node = world.nodes.get(object::pod_node(pod)?)?;
    Some(object::zone(node).1).filter(|zone| !zone.is_empty())
}

/// Weights by address, of those that have one.
type Weights = BTreeMap<String, String>;

/// What slices are made of, besides ports and endpoints.
struct Of<'a> {
    service: &'a Service,
    weights: Weights,
}

impl Of<'_> {
    fn weights(&self, endpoints: &[Endpoint]) -> Option<String> {
        let addresses = endpoints.iter().filter_map(|e| e.addresses.first());
        let pairs = addresses.filter_map(|a| Some(format!("{a}={}", self.weights.get(a)?)));
        let pairs: Vec<String> = pairs.collect();
        (!pairs.is_empty()).then(|| pairs.join(","))
    }
}

fn is_ours(slice: &EndpointSlice) -> bool {
    slice
        .metadata
        .labels
        .as_ref()
        .and_then(|l| l.get(MANAGED_BY))
        .map(String::as_str)
        == Some(CONTROLLER)
}

fn delete(slice: &EndpointSlice, plan: &mut Plan) {
    plan.writes.push(Write::Delete {
        key: Key::new(
            "discovery.k8s.io",
            "EndpointSlice",
            Name::of(&slice.metadata),
        ),
        uid: object::uid(&slice.metadata).to_owned(),
        revision: None,
        grace_seconds: Some(0),
        foreground: false,
    });
}

fn selected<'a>(
    world: &'a World,
    service: &Name,
    selector: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = &'a Arc<Pod>> {
    let first = selector
        .iter()
        .next()
        .map_or(("", ""), |(k, v)| (k.as_str(), v.as_str()));
    world
        .pods_labelled(&service.namespace, first.0, first.1)
        .filter(|pod| {
            let labels = pod.metadata.labels.as_ref();
            selector
                .iter()
                .all(|(k, v)| labels.is_some_and(|l| l.get(k) == Some(v)))
        })
}

fn ports_of(slice: &EndpointSlice) -> Ports {
    let all = slice.ports.iter().flatten();
    all.map(|p| {
        let name = p.name.clone().unwrap_or_default();
        let protocol = p.protocol.clone().unwrap_or_default();
        (name, protocol, p.port.unwrap_or(0))
    })
    .collect()
}

fn pod_uid(endpoint: &Endpoint) -> &str {
    endpoint
        .target_ref
        .as_ref()
        .and_then(|r| r.uid.as_deref())
        .unwrap_or("")
}

/// Spreads endpoints over slices: kept where they are, new ones where there is
/// room, the rest into new slices.
fn fill(
    of: &Of<'_>,
    ports: &Ports,
    mut wanted: BTreeMap<String, Endpoint>,
    ours: &[&Arc<EndpointSlice>],
    kept: &mut BTreeSet<Name>,
    plan: &mut Plan,
) {
    let mut same: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in ours {
        if ports_of(slice) == *ports && !object::deleting(&slice.metadata) {
            let stay = slice
                .endpoints
                .iter()
                .filter_map(|e| wanted.remove(pod_uid(e)));
            same.push((slice, stay.collect()));
        }
    }
    // An empty slice goes, unless it is all there is.
    let all_gone = wanted.is_empty() && same.iter().all(|(_, stay)| stay.is_empty());
    let mut fresh = wanted.into_values();
    for (at, (slice, mut endpoints)) in same.into_iter().enumerate() {
        let room = MOST.saturating_sub(endpoints.len());
        endpoints.extend(fresh.by_ref().take(room));
        if endpoints.is_empty() && !(all_gone && at == 0 && kept.is_empty()) {
            continue;
        }
        kept.insert(Name::of(&slice.metadata));
        let next = slice_of(of, ports, endpoints, slice.metadata.clone());
        if next != **slice {
            plan.put(Object::EndpointSlice(Arc::new(next)));
        }
    }
    let mut rest: Vec<Endpoint> = fresh.collect();
    if rest.is_empty() && !(all_gone && kept.is_empty()) {
        return;
    }
    let mut part = 0;
    loop {
        let more = rest.split_off(rest.len().min(MOST));
        let meta = new_meta(of.service, ports, part, ours, kept);
        kept.insert(Name::of(&meta));
        plan.put(Object::EndpointSlice(Arc::new(slice_of(
            of, ports, rest, meta,
        ))));
        if more.is_empty() {
            return;
        }
        rest = more;
        part += 1;
    }
}

fn new_meta(
    service: &Service,
    ports: &Ports,
    part: u32,
    ours: &[&Arc<EndpointSlice>],
    kept: &BTreeSet<Name>,
) -> ObjectMeta {
    let service_name = Name::of(&service.metadata);
    let uid = object::uid(&service.metadata).as_bytes();
    let ports = format!("{ports:?}");
    let mut attempt = part;
    let name = loop {
        let hash = fnv64(&[uid, ports.as_bytes(), &attempt.to_be_bytes()]);
        let name = format!("{}-{}", service_name.name, letters(hash, 5));
        let full = Name::new(&service_name.namespace, &name);
        if !kept.contains(&full) && ours.iter().all(|s| s.metadata.name.as_ref() != Some(&name)) {
            break name;
        }
        attempt += 1;
    };
    ObjectMeta {
        name: Some(name),
        generate_name: Some(format!("{}-", service_name.name)),
        namespace: Some(service_name.namespace),
        owner_references: Some(vec![object::owned_by("v1", "Service", &service.metadata)]),
        ..ObjectMeta::default()
    }
}

fn slice_of(
    of: &Of<'_>,
    ports: &Ports,
    mut endpoints: Vec<Endpoint>,
    mut metadata: ObjectMeta,
) -> EndpointSlice {
    endpoints.sort_by(|a, b| {
        a.addresses
            .cmp(&b.addresses)
            .then(pod_uid(a).cmp(pod_uid(b)))
    });
    let labels = metadata.labels.get_or_insert_default();
    let service_name = of.service.metadata.name.clone().unwrap_or_default();
    labels.insert(SERVICE_LABEL.to_owned(), service_name);
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    if let Some(weights) = of.weights(&endpoints) {
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(WEIGHTS.to_owned(), weights);
    } else if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(WEIGHTS);
    }
    let ports = ports.iter().map(|(name, protocol, port)| EndpointPort {
        name: Some(name.clone()),
        protocol: Some(protocol.clone()),
        port: Some(*port),
        app_protocol: None,
    });
    let ports: Vec<EndpointPort> = ports.collect();
    EndpointSlice {
        address_type: "IPv4".to_owned(),
        endpoints,
        metadata,
        ports: Some(ports).filter(|p| !p.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::endpoint_use::{EndpointUse, EndpointUses};
    use crate::for_tests::{node, pod, put_node, put_pod, running, service, typed};

    /// A world with node n1.
    fn world() -> World {
        let mut world = crate::for_tests::world();
        put_node(&mut world, node("n1", 1));
        world
    }

    fn name() -> Name {
        Name::new("default", "web")
    }

    /// Puts the writes into the world, as if they had been stored.
    fn carry_out(world: &mut World, plan: &Plan) {
        for write in &plan.writes {
            match write {
                Write::Put {
                    object: Object::EndpointSlice(slice),
                    ..
                } => {
                    let mut slice = EndpointSlice::clone(slice);
                    slice.metadata.uid = slice.metadata.name.clone();
                    slice.metadata.resource_version = Some("2".to_owned());
                    world.put(Object::EndpointSlice(Arc::new(slice)));
                }
                Write::Delete { key, .. } => world.remove(key),
                Write::Put { .. }
                | Write::Claims(_)
                | Write::Remove { .. }
                | Write::Unhook { .. } => panic!("{write:?}"),
            }
        }
    }

    #[test]
    fn conditions_follow_the_pod() {
        let deleting = |mut pod: Pod| {
            pod.metadata.deletion_timestamp = Some(typed(json!("2026-01-01T00:00:00Z")));
            pod
        };
        let finished = |mut pod: Pod| {
            pod.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
            pod
        };
        let base = |ready| running(pod("p", "0", ""), "n1", "10.0.0.1", ready);
        // (pod, (ready, serving, terminating) or not in the slice)
        let rows = [
            (base(true), Some((true, true, false))),
            (base(false), Some((false, false, false))),
            (deleting(base(true)), Some((false, true, true))),
            (deleting(base(false)), Some((false, false, true))),
            (finished(base(true)), None),
            (pod("p", "0", ""), None),
        ];
        for (pod, expected) in rows {
            let mut world = world();
            world.put(Object::Service(Arc::new(service(json!(8080)))));
            put_pod(&mut world, pod.clone());
            let outcome = plan(&world, &name());
            carry_out(&mut world, &outcome);
            let slices: Vec<_> = world.slices_of(&name()).collect();
            assert_eq!(slices.len(), 1);
            let got = slices[0].endpoints.first().map(|e| {
                let c = e.conditions.as_ref().unwrap();
                (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
            });
            assert_eq!(got, expected, "{pod:?}");
            assert_eq!(plan(&world, &name()), Plan::default(), "not quiet: {pod:?}");
        }
    }

    #[test]
    fn what_a_service_makes_of_a_terminating_pod() {
        // (it is ready, another ready one, published anyway, use)
        let rows = [
            (true, true, false, EndpointUse::Closed),
            (true, false, false, EndpointUse::Last),
            (false, false, false, EndpointUse::Closed),
            (false, true, false, EndpointUse::Closed),
            (false, true, true, EndpointUse::Last),
        ];
        for (is_ready, another, published, expected) in rows {
            let mut world = world();
            let mut service = service(json!(8080));
            service.spec.as_mut().unwrap().publish_not_ready_addresses = Some(published);
            world.put(Object::Service(Arc::new(service)));
            let other = running(pod("q", "0", ""), "n1", "10.0.0.2", another);
            put_pod(&mut world, other);
            let mut pod = running(pod("p", "0", ""), "n1", "10.0.0.1", is_ready);
            assert_eq!(EndpointUses::new(&world).of(&pod), EndpointUse::None);
            put_pod(&mut world, pod.clone());
            let outcome = plan(&world, &name());
            carry_out(&mut world, &outcome);
            assert_eq!(EndpointUses::new(&world).of(&pod), EndpointUse::Open);
            pod.metadata.deletion_timestamp = Some(typed(json!("2026-01-01T00:00:00Z")));
            put_pod(&mut world, pod.clone());
            let outcome = plan(&world, &name());
            carry_out(&mut world, &outcome);
            let case = format!("{is_ready} {another} {published}");
            assert_eq!(EndpointUses::new(&world).of(&pod), expected, "{case}");
        }
    }

    /// As Kubernetes documents `publishNotReadyAddresses`: "ready" is true in any
    /// state of the pod; "serving" and "terminating" still say it.
    #[test]
    fn addresses_that_are_published_before_they_are_ready() {
        for (is_ready, is_deleting) in [(true, false), (false, false), (true, true), (false, true)]
        {
            let mut world = world();
            let mut service = service(json!(8080));
            let spec = service.spec.as_mut().unwrap();
            spec.publish_not_ready_addresses = Some(true);
            world.put(Object::Service(Arc::new(service)));
            let mut pod = running(pod("p", "0", ""), "n1", "10.0.0.1", is_ready);
            if is_deleting {
                pod.metadata.deletion_timestamp = Some(typed(json!("2026-01-01T00:00:00Z")));
            }
            put_pod(&mut world, pod);
            let outcome = plan(&world, &name());
            carry_out(&mut world, &outcome);
            let slice = world.slices_of(&name()).next().unwrap();
            let conditions = slice.endpoints[0].conditions.as_ref().unwrap();
            let said = (conditions.ready, conditions.serving, conditions.terminating);
            assert_eq!(said, (Some(true), Some(is_ready), Some(is_deleting)));
        }
    }

    /// As in Kubernetes: a pod whose node was deleted is no endpoint, although it is
    /// there for a while, and again one if the node comes back.
    #[test]
    fn the_pods_of_an_absent_node_are_no_endpoints() {
        for published in [false, true] {
            let mut world = world();
            let mut service = service(json!(8080));
            let spec = service.spec.as_mut().unwrap();
            spec.publish_not_ready_addresses = Some(published);
            world.put(Object::Service(Arc::new(service)));
            let pod = running(pod("p", "0", ""), "n1", "10.0.0.1", true);
            put_pod(&mut world, pod);
            let mut endpoints = |change: &dyn Fn(&mut World)| {
                change(&mut world);
                assert!(world.take_due().contains(&Task::EndpointSlices(name())));
                let outcome = plan(&world, &name());
                carry_out(&mut world, &outcome);
                let service = name();
                let slices = world.slices_of(&service);
                slices.map(|s| s.endpoints.len()).sum::<usize>()
            };
            let absent = usize::from(published);
            assert_eq!(endpoints(&|_| {}), 1);
            let key = Key::new("", "Node", Name::new("", "n1"));
            assert_eq!(endpoints(&|world| world.remove(&key)), absent);
            assert_eq!(endpoints(&|world| put_node(world, node("n1", 1))), 1);
        }
    }

    /// Hints of the slice's endpoints, "n1/a" for a node and a zone, by address.
    fn hints(world: &World) -> Vec<String> {
        let service = name();
        let endpoints = world.slices_of(&service).flat_map(|s| &s.endpoints);
        let shown = endpoints.map(|e| {
            let hints = e.hints.clone().unwrap_or_default();
            let nodes = hints
                .for_nodes
                .unwrap_or_default()
                .into_iter()
                .map(|n| n.name);
            let zones = hints
                .for_zones
                .unwrap_or_default()
                .into_iter()
                .map(|z| z.name);
            format!(
                "{}/{}",
                nodes.collect::<String>(),
                zones.collect::<String>()
            )
        });
        shown.collect()
    }

    fn zoned(name: &str, number: u8, zone: &str) -> k8s_openapi::api::core::v1::Node {
        let mut node = node(name, number);
        let labels = node.metadata.labels.get_or_insert_default();
        labels.insert("topology.kubernetes.io/zone".to_owned(), zone.to_owned());
        node
    }

    #[test]
    fn hints_follow_the_traffic_distribution() {
        let rows = [
            (None, ["/", "/", "/"]),
            (Some("PreferClose"), ["/a", "/b", "/"]),
            (Some("PreferSameZone"), ["/a", "/b", "/"]),
            (Some("PreferSameNode"), ["n1/a", "n2/b", "/"]),
        ];
        for (distribution, expected) in rows {
            let mut world = crate::for_tests::world();
            put_node(&mut world, zoned("n1", 1, "a"));
            put_node(&mut world, zoned("n2", 2, "b"));
            let mut service = service(json!(8080));
            let spec = service.spec.as_mut().unwrap();
            spec.traffic_distribution = distribution.map(str::to_owned);
            world.put(Object::Service(Arc::new(service)));
            for (pod_name, node, ready) in
                [("p", "n1", true), ("q", "n2", true), ("r", "n1", false)]
            {
                let address = format!("10.0.0.{}", pod_name.as_bytes()[0]);
                put_pod(
                    &mut world,
                    running(pod(pod_name, "0", ""), node, &address, ready),
                );
            }
            let outcome = plan(&world, &name());
            carry_out(&mut world, &outcome);
            assert_eq!(hints(&world), expected, "{distribution:?}");
            assert_eq!(plan(&world, &name()), Plan::default(), "not quiet");
            // The node is moved: the slices are due, and say so.
            world.take_due();
            put_node(&mut world, zoned("n2", 2, "c"));
            assert!(world.take_due().contains(&Task::EndpointSlices(name())));
            let outcome = plan(&world, &name());
            carry_out(&mut world, &outcome);
            let moved = expected.map(|hint| hint.replace('b', "c"));
            assert_eq!(hints(&world), moved, "{distribution:?}");
        }
    }

    #[test]
    fn weights_are_those_of_the_pods() {
        let mut world = world();
        world.put(Object::Service(Arc::new(service(json!(8080)))));
        let weighted = |name: &str, address: &str, weight: &str| {
            let mut pod = running(pod(name, "0", ""), "n1", address, true);
            let annotations = pod.metadata.annotations.get_or_insert_default();
            annotations.insert(control_api::pod::WEIGHT.to_owned(), weight.to_owned());
            pod
        };
        put_pod(&mut world, weighted("p", "10.0.0.1", "5"));
        put_pod(&mut world, weighted("q", "10.0.0.2", "1"));
        put_pod(
            &mut world,
            running(pod("r", "0", ""), "n1", "10.0.0.3", true),
        );
        let shown = |world: &mut World| {
            let outcome = plan(world, &name());
            carry_out(world, &outcome);
            assert_eq!(plan(world, &name()), Plan::default(), "not quiet");
            let service = name();
            let slice = world.slices_of(&service).next().unwrap();
            object::annotation(&slice.metadata, WEIGHTS).map(str::to_owned)
        };
        assert_eq!(shown(&mut world).as_deref(), Some("10.0.0.1=5"));
        put_pod(&mut world, weighted("q", "10.0.0.2", "3"));
        assert_eq!(shown(&mut world).as_deref(), Some("10.0.0.1=5,10.0.0.2=3"));
        put_pod(&mut world, weighted("p", "10.0.0.1", "1"));
        put_pod(&mut world, weighted("q", "10.0.0.2", "1"));
        assert_eq!(shown(&mut world), None);
    }

    #[test]
    fn target_ports() {
        let rows = [
            (json!(8080), Some(8080)),
            (json!("http"), Some(8080)),
            (json!("nothing"), None),
            (json!(null), Some(80)),
        ];
        for (target, expected) in rows {
            let mut world = world();
            world.put(Object::Service(Arc::new(service(target.clone()))));
            put_pod(
                &mut world,
                running(pod("p", "0", ""), "n1", "10.0.0.1", true),
            );
            let outcome = plan(&world, &name());
            carry_out(&mut world, &outcome);
            let slice = world.slices_of(&name()).next().unwrap();
            let port = slice.ports.iter().flatten().next().and_then(|p| p.port);
            assert_eq!(port, expected, "{target}");
        }
    }

    #[test]
    fn one_change_writes_one_slice() {
        let mut world = world();
        world.put(Object::Service(Arc::new(service(json!(80)))));
        let address = |i: i32| format!("10.0.{}.{}", i / 200, i % 200);
        for i in 0..250 {
            let pod = running(pod(&format!("p{i}"), "0", ""), "n1", &address(i), true);
            put_pod(&mut world, pod);
        }
        let outcome = plan(&world, &name());
        assert_eq!(outcome.writes.len(), 3);
        carry_out(&mut world, &outcome);
        put_pod(
            &mut world,
            running(pod("p7", "0", ""), "n1", &address(7), false),
        );
        let outcome = plan(&world, &name());
        assert_eq!(outcome.writes.len(), 1);
        carry_out(&mut world, &outcome);
        // A new one goes into a slice that is not full.
        put_pod(
            &mut world,
            running(pod("new", "0", ""), "n1", "10.1.0.0", true),
        );
        let outcome = plan(&world, &name());
        assert_eq!(outcome.writes.len(), 1);
        carry_out(&mut world, &outcome);
        assert_eq!(
            world
                .slices_of(&name())
                .map(|s| s.endpoints.len())
                .sum::<usize>(),
            251
        );
        // The service goes, and its slices with it.
        world.remove(&Key::new("", "Service", name()));
        let outcome = plan(&world, &name());
        assert_eq!(outcome.writes.len(), 3);
        carry_out(&mut world, &outcome);
        assert_eq!(world.slices_of(&name()).count(), 0);
    }
}
