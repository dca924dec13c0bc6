//! A Service with its EndpointSlices: what a node's maps and DNS are filled from. Called
//! by `control-server` when one of them has changed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use control_api::service::HEADLESS;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::Message as _;
use crate::limits::CHANGE_BYTES;
use crate::v1;
use crate::v1::backend::State;

/// Numbers that the control plane has given to a service; they never change.
pub struct ServiceIds<'a> {
    /// 0 for one without addresses.
    pub service: u32,
    /// By the name of the port ("" for the only one).
    pub port: &'a dyn Fn(&str) -> u32,
}

/// The message; `None` for a service that waits for its address. A headless one, and one
/// that stands for another name, are sent for DNS alone. `slices` are those of the service.
pub fn service(
    service: &Service,
    slices: &[&EndpointSlice],
    ids: &ServiceIds<'_>,
    generation: u64,
) -> Option<v1::Service> {
    let spec = service.spec.as_ref()?;
    let first = spec.cluster_ip.iter().cloned();
    let ips: Vec<String> = match &spec.cluster_ips {
        Some(ips) if !ips.is_empty() => ips.clone(),
        Some(_) | None => first.collect(),
    };
    let named = v1::Service {
        namespace: service.metadata.namespace.clone().unwrap_or_default(),
        name: service.metadata.name.clone().unwrap_or_default(),
        generation,
        ..v1::Service::default()
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Some(v1::Service {
            external_name: spec.external_name.clone().unwrap_or_default(),
            ..named
        });
    }
    if ips.first().is_some_and(|ip| ip == HEADLESS) {
        let message = v1::Service {
            endpoints: endpoints(slices),
            ..named
        };
        return Some(bounded(message, CHANGE_BYTES));
    }
    let ips: Vec<String> = ips.into_iter().filter(|ip| !ip.is_empty()).collect();
    if ips.is_empty() || ids.service == 0 {
        return None;
    }
    let ports = spec.ports.iter().flatten().map(|port| {
        let name = port.name.clone().unwrap_or_default();
        v1::ServicePort {
            id: (ids.port)(&name),
            protocol: port.protocol.clone().unwrap_or_default(),
            port: u32::try_from(port.port).unwrap_or_default(),
            backends: backends(port, slices),
            name,
        }
    });
    let message = v1::Service {
        id: ids.service,
        ports: ports.collect(),
        cluster_ips: ips,
        ..named
    };
    Some(bounded(message, CHANGE_BYTES))
}

/// Leaves out backends, the same part of each port, until the message has at most
/// `most` bytes. Kubernetes likewise cuts its Endpoints at 1,000 addresses.
fn bounded(mut service: v1::Service, most: usize) -> v1::Service {
    loop {
        let length = service.encoded_len();
        let left: usize = service.ports.iter().map(|p| p.backends.len()).sum();
        if length <= most || left + service.endpoints.len() == 0 {
            return service;
        }
        let keep = |count: usize| count * most / (length + 1);
        for port in &mut service.ports {
            port.backends.truncate(keep(port.backends.len()));
        }
        service.endpoints.truncate(keep(service.endpoints.len()));
    }
}

/// Ready endpoints with their ports, each once, in the order of their addresses.
fn endpoints(slices: &[&EndpointSlice]) -> Vec<v1::NamedEndpoint> {
    let mut found: BTreeMap<(IpAddr, String), Vec<v1::EndpointPort>> = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            Some(v1::EndpointPort {
                name: port.name.clone().unwrap_or_default(),
                protocol: port.protocol.clone().unwrap_or_default(),
                port: u32::try_from(port.port?).ok()?,
            })
        });
        let ports: Vec<v1::EndpointPort> = ports.collect();
        for endpoint in slice.endpoints.iter().filter(|e| use_of(e) == Use::Ready) {
            let address = endpoint.addresses.first().and_then(|a| a.parse().ok());
            let Some(address) = address else { continue };
            let hostname = endpoint.hostname.clone().unwrap_or_default();
            let known = found.entry((address, hostname)).or_default();
            for port in &ports {
                if !known.contains(port) {
                    known.push(port.clone());
                }
            }
        }
    }
    let endpoints = found.into_iter();
    let endpoints = endpoints.map(|((address, hostname), ports)| v1::NamedEndpoint {
        address: address.to_string(),
        hostname,
        ports,
    });
    endpoints.collect()
}

/// Backends of one port, each once, in the order of their addresses. Ready ones take
/// new connections; where there is none, those that terminate and still serve
/// (Kubernetes' pkg/proxy/topology.go, CategorizeEndpoints).
fn backends(port: &ServicePort, slices: &[&EndpointSlice]) -> Vec<v1::Backend> {
    let mut found: BTreeMap<(IpAddr, u32), (Use, v1::Backend)> = BTreeMap::new();
    for slice in slices {
        for number in numbers(port, slice) {
            for endpoint in &slice.endpoints {
                // All addresses of an endpoint are the same; the first is used.
                let Some(address) = endpoint.addresses.first() else {
                    continue;
                };
                let Ok(ip) = address.parse::<IpAddr>() else {
                    continue;
                };
                let used = use_of(endpoint);
                let better = found
                    .get(&(ip, number))
                    .is_none_or(|(there, _)| *there < used);
                if better {
                    found.insert((ip, number), (used, backend(endpoint, address, number)));
                }
            }
        }
    }
    let best = found.values().map(|(used, _)| *used).max();
    let backends = found.into_values().map(|(used, mut backend)| {
        // One that takes none keeps its connections: only new ones go elsewhere.
        let active = used != Use::None && Some(used) == best;
        let state = if active {
            State::Active
        } else {
            State::Terminating
        };
        backend.state = state.into();
        backend
    });
    backends.collect()
}

/// What an endpoint is to new connections.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    None,
    /// It terminates and still serves: better than no endpoint at all.
    Last,
    Ready,
}

fn use_of(endpoint: &Endpoint) -> Use {
    let conditions = endpoint.conditions.as_ref();
    // What is not said counts as ready and serving (EndpointConditions).
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(true);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    if ready {
        Use::Ready
    } else if serving && terminating {
        Use::Last
    } else {
        Use::None
    }
}

/// Target ports of the service's port in a slice: matched by name.
fn numbers(port: &ServicePort, slice: &EndpointSlice) -> Vec<u32> {
    let name = port.name.as_deref().unwrap_or_default();
    let protocol = port.protocol.as_deref().unwrap_or_default();
    let ports = slice.ports.iter().flatten().filter(|p| {
        p.name.as_deref().unwrap_or_default() == name
            && p.protocol.as_deref().unwrap_or_default() == protocol
    });
    ports
        .filter_map(|p| u32::try_from(p.port?).ok())
        .filter(|p| *p > 0)
        .collect()
}

fn backend(endpoint: &Endpoint, address: &str, port: u32) -> v1::Backend {
    let pod = endpoint
        .target_ref
        .as_ref()
        .filter(|r| r.kind.as_deref() == Some("Pod"));
    let text = |field: Option<&Option<String>>| field.cloned().flatten().unwrap_or_default();
    v1::Backend {
        address: address.to_owned(),
        port,
        node: endpoint.node_name.clone().unwrap_or_default(),
        pod: text(pod.map(|r| &r.uid)),
        pod_name: pod
            .map(|r| format!("{}/{}", text(Some(&r.namespace)), text(Some(&r.name))))
            .unwrap_or_default(),
        state: State::Unspecified.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_is_too_long_has_fewer_backends_at_each_port() {
        let port = |count: usize| v1::ServicePort {
            backends: vec![
                v1::Backend {
                    address: "192.0.2.1".to_owned(),
                    ..v1::Backend::default()
                };
                count
            ],
            ..v1::ServicePort::default()
        };
        let service = v1::Service {
            ports: vec![port(1000), port(10), port(0)],
            ..v1::Service::default()
        };
        let counts = |most: usize| -> Vec<usize> {
            let sent = bounded(service.clone(), most);
            assert!(sent.encoded_len() <= most, "{most}");
            sent.ports.iter().map(|p| p.backends.len()).collect()
        };
        assert_eq!(counts(1 << 20), [1000, 10, 0]);
        let half = counts(service.encoded_len() / 2);
        assert!(
            (400..=500).contains(&half[0]) && (4..=5).contains(&half[1]),
            "{half:?}"
        );
        assert_eq!(counts(20), [1, 0, 0]);
    }
}
