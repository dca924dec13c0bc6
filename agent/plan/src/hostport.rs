//! Ports of the node that lead to one of its pods (`hostPort`): frontends at the node's
//! addresses, as those of node ports, whose only backend is the pod.
//!
//! They stand for as long as the pod's sandbox does. No control plane gives numbers to
//! them: those follow from the id of the pod's endpoint. A port that a service or another
//! pod has is left to it until it is free. Called by `pod.rs` and `ending.rs`.
//! Who else uses a port, or may come to, is told by an event.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::Range;

use ebpf_common::net::{Addr, Be16, protocol};
use ebpf_common::service::{ACTIVE, LOCAL_ONLY, NODE_PORTS, algorithm};
use proto::v1;

use crate::action::{Action, Problem};
use crate::conflict::{Cause, Conflicts, Listener, Range as Ports};
use crate::endpoint::Endpoint;
use crate::maps::{Backend, Frontend, FrontendKey, Maps};
use crate::restart::{self, Role};
use crate::table;
use crate::world::{Observed, Pod};

/// Numbers of services and of their ports from here on are the node's own.
const OWN: u32 = 1 << 31;
/// Bits of a port's number below those of the endpoint's id: so many ports of a pod are served.
const INDEX_BITS: u32 = 12;
/// Before it is looked again whether a port is in use, milliseconds.
pub(crate) const AGAIN_MS: i64 = 5_000;

/// Who has numbers of the node's own: ids of pods' endpoints.
#[derive(Debug, Default)]
pub struct Owners(BTreeSet<u16>);

impl Owners {
    /// The pods that are on the node.
    pub fn of(observed: &Observed) -> Self {
        let addresses = observed.pods.values().filter_map(Pod::address);
        let endpoints = addresses.filter_map(|address| observed.endpoints.of(address));
        Self(endpoints.map(|endpoint| endpoint.id).collect())
    }

    /// Whether a pod has this number of a service.
    pub(crate) fn have_service(&self, id: u32) -> bool {
        id & OWN != 0 && u16::try_from(id & !OWN).is_ok_and(|id| self.0.contains(&id))
    }

    /// Whether a pod has this number of a service port.
    pub(crate) fn have_table(&self, id: u32) -> bool {
        let endpoint = u16::try_from((id & !OWN) >> INDEX_BITS);
        id & OWN != 0 && endpoint.is_ok_and(|id| self.0.contains(&id))
    }
}

fn service_of(endpoint: &Endpoint) -> u32 {
    OWN | u32::from(endpoint.id)
}

fn tables_of(endpoint: &Endpoint) -> Range<u32> {
    let first = OWN | u32::from(endpoint.id) << INDEX_BITS;
    first..first + (1 << INDEX_BITS)
}

/// Whether a pod wants any.
pub(crate) fn has_any(spec: &v1::PodSpec) -> bool {
    !spec.host_network && ports(spec).next().is_some()
}

/// Ports of containers and sidecars, as the scheduler counts them.
fn ports(spec: &v1::PodSpec) -> impl Iterator<Item = &v1::ContainerPort> {
    let init = spec.init_containers.iter();
    let sidecars = init.filter(|c| restart::init_role(c) == Role::Sidecar);
    let containers = spec.containers.iter().chain(sidecars);
    let ports = containers.flat_map(|container| &container.ports);
    ports.filter(|port| port.host_port != 0)
}

/// One port as the maps shall have it.
struct Wanted {
    key: FrontendKey,
    frontend: Frontend,
    backend: Backend,
    name: String,
}

/// At `own` addresses; a `hostIP` that is none of them leads nowhere, as in Kubernetes.
fn wanted(
    pod: &Pod,
    address: Ipv4Addr,
    endpoint: &Endpoint,
    own: &BTreeSet<Ipv4Addr>,
) -> Vec<Wanted> {
    let spec = &pod.spec;
    let numbers = tables_of(endpoint);
    let one = |(port, number): (&v1::ContainerPort, u32)| {
        let protocol = match port.protocol.as_str() {
            "TCP" | "" => protocol::TCP,
            "UDP" => protocol::UDP,
            _ => return None,
        };
        let at = match port.host_ip.as_str() {
            "" => NODE_PORTS,
            text => {
                let address: Ipv4Addr = text.parse().ok()?;
                let is_own = address.is_unspecified() || own.contains(&address);
                is_own.then(|| Addr::from(address))?
            }
        };
        let number_of = |port: u32| u16::try_from(port).ok().filter(|port| *port != 0);
        Some(Wanted {
            key: FrontendKey {
                addr: at,
                port: Be16::new(number_of(port.host_port)?),
                protocol,
                pad: 0,
            },
            frontend: Frontend {
                service_port: number,
                external: number,
                service: service_of(endpoint),
                affinity: 0,
                flags: LOCAL_ONLY,
            },
            backend: Backend {
                addr: address.into(),
                service_port: number,
                port: Be16::new(number_of(port.container_port)?),
                protocol,
                state: ACTIVE,
                weight: 1,
                ..Backend::default()
            },
            name: format!("{}/{}:{}", spec.namespace, spec.name, port.host_port),
        })
    };
    ports(spec).zip(numbers).filter_map(one).collect()
}

/// What brings the maps to the ports of a pod that has this address and endpoint.
pub(crate) fn plan(
    pod: &Pod,
    address: Ipv4Addr,
    endpoint: &Endpoint,
    config: &v1::ClusterConfig,
    observed: &Observed,
) -> (Vec<Action>, Vec<Problem>) {
    let maps = &observed.maps;
    let (mut actions, mut problems) = (Vec::new(), Vec::new());
    let mut conflicts = Conflicts::new();
    let mut vacant = maps.vacant();
    let mut kept: BTreeMap<u32, FrontendKey> = BTreeMap::new();
    for port in wanted(pod, address, endpoint, &observed.network.addresses) {
        let number = port.frontend.service_port;
        let before = maps.frontends().get(&port.key);
        // At one address, too: packets would find it before a port of all addresses.
        let of_all = FrontendKey {
            addr: NODE_PORTS,
            ..port.key
        };
        let holders = [before, maps.frontends().get(&of_all)];
        let mut holders = holders.into_iter().flatten();
        if holders.any(|holder| holder.service != port.frontend.service) {
            let in_use = conflicts.entry(Cause::InUse).or_default();
            in_use.insert(port.key.port.get());
            continue;
        }
        if let Some(cause) = doubt(&port.key, config, observed) {
            let ports = conflicts.entry(cause).or_default();
            ports.insert(port.key.port.get());
        }
        let Some(slot) = maps.number(&port.backend).or_else(|| vacant.next()) else {
            problems.push(Problem::BackendsFull {
                service: port.name,
                capacity: u32::try_from(ebpf_common::maps::MAX_BACKENDS - 1).unwrap_or(u32::MAX),
            });
            break;
        };
        kept.insert(number, port.key);
        if maps.backends().get(&slot) != Some(&port.backend) {
            actions.push(Action::PutBackend {
                id: slot,
                backend: port.backend,
                name: port.name.clone(),
            });
        }
        let table = table::build(algorithm::HASH, vec![(slot, port.backend)]);
        if maps.tables().get(&number) != Some(&table) {
            actions.push(Action::PutTable {
                port_id: number,
                table,
            });
        }
        if before != Some(&port.frontend) {
            actions.push(Action::PutFrontend {
                key: port.key,
                frontend: port.frontend,
                name: port.name,
            });
        }
    }
    actions.extend(removals(endpoint, maps, &kept));
    if conflicts != pod.host_ports {
        actions.push(Action::ReportHostPorts {
            uid: pod.spec.uid.clone(),
            conflicts,
        });
    }
    (actions, problems)
}

/// Who else uses a port that the pod has, or may come to.
fn doubt(key: &FrontendKey, config: &v1::ClusterConfig, observed: &Observed) -> Option<Cause> {
    let (port, network) = (key.port.get(), &observed.network);
    let local = network.sockets.local_range(port);
    // A datagram socket with such a port is a client's, most likely, and soon closed.
    let is_client = key.protocol == protocol::UDP && local.is_some();
    // Not at the node's address, and reached before any port of the node.
    let dns: Option<Ipv4Addr> = config.dns_address.parse().ok();
    let meets = |listener: &Listener| {
        let address = listener.address;
        if is_client || Some(address) == dns {
            return false;
        }
        let same = key.addr == Addr::from(address) || address.is_unspecified();
        (listener.protocol, listener.port) == (key.protocol, port)
            && (same || (key.addr == NODE_PORTS && network.addresses.contains(&address)))
    };
    if network.sockets.listeners.iter().any(meets) {
        return Some(Cause::Process);
    }
    let node_ports = config.node_ports.as_ref().and_then(|range| {
        Some(Ports {
            first: range.first.try_into().ok()?,
            last: range.last.try_into().ok()?,
        })
    });
    if let Some(range) = node_ports.filter(|range| range.contains(port)) {
        return Some(Cause::NodePorts(range));
    }
    local.map(Cause::LocalPorts)
}

/// What takes the ports of the pod with this endpoint out of the maps.
pub(crate) fn remove(endpoint: &Endpoint, maps: &Maps) -> Vec<Action> {
    removals(endpoint, maps, &BTreeMap::new())
}

/// The other way round than they were put. `kept`: frontends by the number of their table.
fn removals(endpoint: &Endpoint, maps: &Maps, kept: &BTreeMap<u32, FrontendKey>) -> Vec<Action> {
    let frontends = maps.of_service(service_of(endpoint)).filter(|key| {
        let mut kept = kept.values();
        !kept.any(|kept| kept == *key)
    });
    let mut actions: Vec<Action> = frontends
        .map(|key| Action::DeleteFrontend { key: *key })
        .collect();
    let numbers = tables_of(endpoint);
    let tables = maps.tables().range(numbers.clone());
    let tables = tables.filter(|(number, _)| !kept.contains_key(number));
    actions.extend(tables.map(|(number, _)| Action::DeleteTable { port_id: *number }));
    let backends = maps.of_ports(numbers);
    let backends = backends.filter(|(backend, _)| !kept.contains_key(&backend.0));
    actions.extend(backends.map(|(_, slot)| Action::DeleteBackend { id: slot }));
    actions
}

#[cfg(test)]
mod tests;
