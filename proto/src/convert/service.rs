//! A Service with its EndpointSlices: what a node's maps and DNS are filled from. Called
//! by `control-server` when one of them has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use control_api::service::{HEADLESS, LB_ALGORITHM};
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::backend::{Use, backends, use_of};
use crate::Message as _;
use crate::limits::CHANGE_BYTES;
use crate::v1;

/// Numbers that the control plane has given to a service; they never change.
pub struct ServiceIds<'a> {
    /// 0 for one without addresses.
    pub service: u32,
    /// By the name of the port ("" for the only one).
    pub port: &'a dyn Fn(&str) -> u32,
    /// The second one of a port, for connections from outside; 0: it has none.
    pub external: &'a dyn Fn(&str) -> u32,
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
    let has_node_ports = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
    let ports = spec.ports.iter().flatten().map(|port| {
        let name = port.name.clone().unwrap_or_default();
        let node_port = port.node_port.filter(|_| has_node_ports);
        v1::ServicePort {
            id: (ids.port)(&name),
            external_id: (ids.external)(&name),
            protocol: port.protocol.clone().unwrap_or_default(),
            port: number(Some(port.port)),
            node_port: number(node_port),
            backends: backends(port, slices),
            name,
        }
    });
    let message = v1::Service {
        id: ids.service,
        ports: ports.collect(),
        cluster_ips: ips,
        external_ips: spec.external_ips.clone().unwrap_or_default(),
        load_balancer_ips: load_balancer_ips(service),
        source_ranges: spec.load_balancer_source_ranges.clone().unwrap_or_default(),
        internal_traffic_policy: policy(spec.internal_traffic_policy.as_deref()).into(),
        external_traffic_policy: policy(spec.external_traffic_policy.as_deref()).into(),
        affinity_timeout_s: affinity_timeout(spec),
        algorithm: algorithm(service).into(),
        health_check_node_port: number(spec.health_check_node_port),
        ..named
    };
    Some(bounded(message, CHANGE_BYTES))
}

fn number(number: Option<i32>) -> u32 {
    number.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

fn policy(text: Option<&str>) -> v1::TrafficPolicy {
    match text {
        Some("Local") => v1::TrafficPolicy::Local,
        Some(_) | None => v1::TrafficPolicy::Cluster,
    }
}

/// Seconds; 0 without affinity. Admission has set the default of the API.
fn affinity_timeout(spec: &ServiceSpec) -> u32 {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    let config = spec.session_affinity_config.as_ref();
    let client = config.and_then(|c| c.client_ip.as_ref());
    number(client.and_then(|c| c.timeout_seconds))
}

fn algorithm(service: &Service) -> v1::Algorithm {
    let annotations = service.metadata.annotations.as_ref();
    match annotations
        .and_then(|a| a.get(LB_ALGORITHM))
        .map(String::as_str)
    {
        Some("maglev") => v1::Algorithm::Maglev,
        Some("least-connections") => v1::Algorithm::LeastConnections,
        Some(_) | None => v1::Algorithm::Hash,
    }
}

/// Addresses of the service's load balancer. Those of the mode "Proxy" belong to a load
/// balancer that nodes must not bypass (KEP-1860).
fn load_balancer_ips(service: &Service) -> Vec<String> {
    let is_balanced = |s: &&ServiceSpec| s.type_.as_deref() == Some("LoadBalancer");
    if service.spec.as_ref().filter(is_balanced).is_none() {
        return Vec::new();
    }
    let status = service
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.as_ref());
    let ingress = status.iter().flat_map(|b| b.ingress.iter().flatten());
    let vip = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy"));
    vip.filter_map(|i| i.ip.clone()).collect()
}

/// Leaves out backends, the same part of each port, until the message has at most
/// `most` bytes, and counts their addresses. Kubernetes likewise cuts its Endpoints at 1,000
/// addresses.
fn bounded(mut service: v1::Service, most: usize) -> v1::Service {
    let mut left_out = BTreeSet::new();
    loop {
        let length = service.encoded_len();
        let backends: usize = service.ports.iter().map(|p| p.backends.len()).sum();
        if length <= most || backends + service.endpoints.len() == 0 {
            return service;
        }
        let keep = |count: usize| count * most / (length + 1);
        for port in &mut service.ports {
            let cut = port.backends.drain(keep(port.backends.len())..);
            left_out.extend(cut.map(|backend| backend.address));
        }
        let cut = service.endpoints.drain(keep(service.endpoints.len())..);
        left_out.extend(cut.map(|endpoint| endpoint.address));
        service.left_out = u32::try_from(left_out.len()).unwrap_or(u32::MAX);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_is_too_long_has_fewer_backends_at_each_port() {
        let backend = |n: usize| v1::Backend {
            address: format!("10.0.{}.{}", n / 250, n % 250),
            ..v1::Backend::default()
        };
        let port = |count: usize| v1::ServicePort {
            backends: (0..count).map(backend).collect(),
            ..v1::ServicePort::default()
        };
        let service = v1::Service {
            ports: vec![port(1000), port(10), port(0)],
            ..v1::Service::default()
        };
        let counts = |most: usize| -> Vec<usize> {
            let sent = bounded(service.clone(), most);
            assert!(sent.encoded_len() <= most, "{most}");
            let counts: Vec<usize> = sent.ports.iter().map(|p| p.backends.len()).collect();
            // An address counts once, of how many ports it is left out.
            let left_out: BTreeSet<usize> = (counts[0]..1000).chain(counts[1]..10).collect();
            assert_eq!(left_out.len(), usize::try_from(sent.left_out).unwrap());
            counts
        };
        assert_eq!(counts(1 << 20), [1000, 10, 0]);
        let half = counts(service.encoded_len() / 2);
        assert!(
            (400..=500).contains(&half[0]) && (4..=5).contains(&half[1]),
            "{half:?}"
        );
        assert_eq!(counts(24), [1, 0, 0]);
    }
}
