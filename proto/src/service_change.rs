//! A service and the part of it that has changed: how entries (backends of a port, endpoints of
//! a headless service) are named, taken out, and put in.
//!
//! `control-server` makes the changes (`hub/service.rs`), agents apply them (`pushed.rs`) and
//! keep services on the disk entry by entry (`pushed_file.rs`). Entries are in the order of
//! their address, then port or hostname, on both sides: an agent that applied changes has the
//! same message as one that was sent the whole service.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use crate::v1::{Backend, EndpointKey, NamedEndpoint, PortChange, Service, ServiceChange};

/// A backend or an endpoint.
pub trait Entry: Clone + PartialEq {
    /// Address, hostname and port: unique among the entries of its list.
    fn key(&self) -> (&str, &str, u32);

    /// The same as a message.
    fn to_key(&self) -> EndpointKey {
        let (address, hostname, port) = self.key();
        EndpointKey {
            address: address.to_owned(),
            port,
            hostname: hostname.to_owned(),
        }
    }
}

impl Entry for Backend {
    fn key(&self) -> (&str, &str, u32) {
        (&self.address, "", self.port)
    }
}

impl Entry for NamedEndpoint {
    fn key(&self) -> (&str, &str, u32) {
        (&self.address, &self.hostname, 0)
    }
}

/// A change does not fit the service that it is applied to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a change of port {index} of a service that has {ports}")]
pub struct NoPort {
    /// Position that the change names.
    pub index: u32,
    /// Number of ports that the service has.
    pub ports: usize,
}

/// What leads from one service to another. `None`: more than their entries differs.
pub fn between(old: &Service, new: &Service) -> Option<ServiceChange> {
    if frame(old) != frame(new) {
        return None;
    }
    let mut change = ServiceChange {
        namespace: new.namespace.clone(),
        name: new.name.clone(),
        generation: new.generation,
        ..ServiceChange::default()
    };
    for (index, (old, new)) in (0_u32..).zip(old.ports.iter().zip(&new.ports)) {
        let (backends, removed) = difference(&old.backends, &new.backends);
        if !backends.is_empty() || !removed.is_empty() {
            change.ports.push(PortChange {
                index,
                backends,
                removed,
            });
        }
    }
    let changed = difference(&old.endpoints, &new.endpoints);
    (change.endpoints, change.endpoints_removed) = changed;
    Some(change)
}

/// Entries that came or changed, and keys of those that are gone.
fn difference<T: Entry>(old: &[T], new: &[T]) -> (Vec<T>, Vec<EndpointKey>) {
    let known = old.iter().map(|entry| (entry.key(), entry));
    let mut known: HashMap<_, _> = known.collect();
    let put = new
        .iter()
        .filter(|entry| known.remove(&entry.key()) != Some(entry));
    let put = put.cloned().collect();
    let mut gone: Vec<EndpointKey> = known.into_values().map(Entry::to_key).collect();
    gone.sort_by(|a, b| (&a.address, a.port, &a.hostname).cmp(&(&b.address, b.port, &b.hostname)));
    (put, gone)
}

/// Applies a change to the service that it is about.
///
/// # Errors
/// [`NoPort`]; the service is as it was then.
pub fn apply(service: &mut Service, change: ServiceChange) -> Result<(), NoPort> {
    let ports = service.ports.len();
    let position = |index: u32| usize::try_from(index).ok().filter(|i| *i < ports);
    if let Some(wrong) = change.ports.iter().find(|p| position(p.index).is_none()) {
        let index = wrong.index;
        return Err(NoPort { index, ports });
    }
    for PortChange {
        index,
        backends,
        removed,
    } in change.ports
    {
        let port = position(index).and_then(|index| service.ports.get_mut(index));
        if let Some(port) = port {
            merge(&mut port.backends, backends, &removed);
        }
    }
    let removed = &change.endpoints_removed;
    merge(&mut service.endpoints, change.endpoints, removed);
    service.generation = change.generation;
    Ok(())
}

/// Takes entries out of a list, and puts others in, each at its place.
fn merge<T: Entry>(list: &mut Vec<T>, put: Vec<T>, removed: &[EndpointKey]) {
    if put.is_empty() && removed.is_empty() {
        return;
    }
    let gone = removed
        .iter()
        .map(|key| (key.address.as_str(), key.hostname.as_str(), key.port));
    let out: HashSet<_> = gone.chain(put.iter().map(Entry::key)).collect();
    list.retain(|entry| !out.contains(&entry.key()));
    list.extend(put);
    sort(list);
}

/// Brings entries into their order.
fn sort<T: Entry>(list: &mut [T]) {
    list.sort_by_cached_key(|entry| {
        let (address, hostname, port) = entry.key();
        let ip = address.parse::<IpAddr>().ok();
        (ip, port, hostname.to_owned())
    });
}

/// A service without its entries, and of no generation.
pub fn frame(service: &Service) -> Service {
    let mut frame = service.clone();
    for port in &mut frame.ports {
        port.backends.clear();
    }
    frame.endpoints.clear();
    frame.generation = 0;
    frame
}

/// Puts many entries in, each named once, that were kept one by one: as [`apply`] of each of
/// them, in one pass.
///
/// # Errors
/// [`NoPort`]; the service is as it was then.
pub fn assemble(service: &mut Service, parts: Vec<ServiceChange>) -> Result<(), NoPort> {
    let mut ports: BTreeMap<u32, PortChange> = BTreeMap::new();
    let mut all = ServiceChange {
        generation: service.generation,
        ..ServiceChange::default()
    };
    for part in parts {
        all.generation = all.generation.max(part.generation);
        all.endpoints.extend(part.endpoints);
        all.endpoints_removed.extend(part.endpoints_removed);
        for port in part.ports {
            let index = port.index;
            let empty = || PortChange {
                index,
                ..PortChange::default()
            };
            let known = ports.entry(index).or_insert_with(empty);
            known.backends.extend(port.backends);
            known.removed.extend(port.removed);
        }
    }
    all.ports = ports.into_values().collect();
    apply(service, all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::ServicePort;

    fn backend(address: &str, port: u32, node: &str) -> Backend {
        Backend {
            address: address.into(),
            port,
            node: node.into(),
            ..Backend::default()
        }
    }

    fn service() -> Service {
        let port = |backends| ServicePort {
            backends,
            ..ServicePort::default()
        };
        Service {
            name: "web".into(),
            ports: vec![
                port(vec![
                    backend("10.0.0.9", 80, "a"),
                    backend("10.0.0.10", 80, "a"),
                ]),
                port(Vec::new()),
            ],
            ..Service::default()
        }
    }

    fn change(index: u32, backends: Vec<Backend>, removed: &[Backend]) -> ServiceChange {
        ServiceChange {
            generation: 7,
            ports: vec![PortChange {
                index,
                backends,
                removed: removed.iter().map(Entry::to_key).collect(),
            }],
            ..ServiceChange::default()
        }
    }

    #[test]
    fn entries_are_added_replaced_and_removed_in_their_order() {
        let mut changed = service();
        let put = vec![backend("10.0.0.11", 80, "b"), backend("10.0.0.10", 80, "b")];
        let removed = [backend("10.0.0.9", 80, "")];
        let once = change(0, put.clone(), &removed);
        apply(&mut changed, once.clone()).unwrap();
        let expected = [put[1].clone(), put[0].clone()];
        assert_eq!(changed.ports[0].backends, expected);
        assert_eq!(
            (changed.generation, changed.ports[1].backends.len()),
            (7, 0)
        );
        let again = changed.clone();
        apply(&mut changed, once).unwrap();
        assert_eq!(changed, again);
        // Removed and added at once: it is there.
        let both = change(0, vec![put[0].clone()], &put);
        apply(&mut changed, both).unwrap();
        assert_eq!(changed.ports[0].backends, [put[0].clone()]);
    }

    #[test]
    fn a_change_that_does_not_fit_changes_nothing() {
        let mut changed = service();
        let mut wrong = change(0, Vec::new(), &changed.ports[0].backends);
        wrong.ports.extend(change(2, Vec::new(), &[]).ports);
        let error = apply(&mut changed, wrong).unwrap_err();
        assert_eq!(error, NoPort { index: 2, ports: 2 });
        assert_eq!(changed, service());
    }

    #[test]
    fn a_service_is_assembled_from_its_entries() {
        let mut whole = service();
        whole.endpoints = ["10.0.0.2", "10.0.0.30"]
            .map(|address| NamedEndpoint {
                address: address.into(),
                ..NamedEndpoint::default()
            })
            .to_vec();
        let mut assembled = frame(&whole);
        let mut parts = Vec::new();
        for (index, port) in (0_u32..).zip(&whole.ports) {
            for backend in &port.backends {
                parts.push(change(index, vec![backend.clone()], &[]));
            }
        }
        for endpoint in &whole.endpoints {
            parts.push(ServiceChange {
                endpoints: vec![endpoint.clone()],
                ..ServiceChange::default()
            });
        }
        parts.reverse();
        assemble(&mut assembled, parts).unwrap();
        whole.generation = 7;
        assert_eq!(assembled, whole);
    }

    #[test]
    fn what_leads_from_one_service_to_another() {
        let old = service();
        let mut new = service();
        new.ports[0].backends = vec![backend("10.0.0.10", 80, "b"), backend("10.0.0.12", 80, "a")];
        new.generation = 9;
        let change = between(&old, &new).unwrap();
        assert_eq!(change.ports.len(), 1);
        let keys =
            |list: &[EndpointKey]| list.iter().map(|k| k.address.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&change.ports[0].removed), ["10.0.0.9"]);
        assert_eq!(change.ports[0].backends, new.ports[0].backends);
        let mut changed = old.clone();
        apply(&mut changed, change).unwrap();
        assert_eq!(changed, new);
        // More than entries.
        new.cluster_ips.push("10.96.0.1".into());
        assert_eq!(between(&old, &new), None);
        assert_eq!(
            between(
                &old,
                &Service {
                    ports: Vec::new(),
                    ..old.clone()
                }
            ),
            None
        );
    }
}
