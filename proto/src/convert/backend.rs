//! The backends of a service port, from the endpoint slices of its service. Called by
//! `service.rs`; which of them one node uses is the agent's choice.

use std::collections::BTreeMap;
use std::net::IpAddr;

use control_api::endpointslice::WEIGHTS;
use k8s_openapi::api::core::v1::ServicePort;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::v1;
use crate::v1::backend::State;

/// Backends of one port, each once, in the order of their addresses. Ready ones take
/// new connections; where there is none, those that terminate and still serve
/// (Kubernetes' pkg/proxy/topology.go, CategorizeEndpoints).
pub(super) fn backends(port: &ServicePort, slices: &[&EndpointSlice]) -> Vec<v1::Backend> {
    let mut found: BTreeMap<(IpAddr, u32), (Use, v1::Backend)> = BTreeMap::new();
    for slice in slices {
        let weights = weights(slice);
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
                    let backend = v1::Backend {
                        weight: weights.get(address.as_str()).copied().unwrap_or(0),
                        last_resort: used == Use::Last,
                        ..backend(endpoint, address, number)
                    };
                    found.insert((ip, number), (used, backend));
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
pub(super) enum Use {
    None,
    /// It terminates and still serves: better than no endpoint at all.
    Last,
    Ready,
}

pub(super) fn use_of(endpoint: &Endpoint) -> Use {
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
    let hints = endpoint.hints.as_ref();
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
        for_zones: names(hints.and_then(|h| h.for_zones.as_ref()), |zone| &zone.name),
        for_nodes: names(hints.and_then(|h| h.for_nodes.as_ref()), |node| &node.name),
        ..v1::Backend::default()
    }
}

fn names<T>(hints: Option<&Vec<T>>, name: fn(&T) -> &String) -> Vec<String> {
    hints.into_iter().flatten().map(name).cloned().collect()
}

/// Weights by address, as the slice's annotation names them.
fn weights(slice: &EndpointSlice) -> BTreeMap<&str, u32> {
    let annotations = slice.metadata.annotations.as_ref();
    let text = annotations.and_then(|a| a.get(WEIGHTS));
    let pairs = text.into_iter().flat_map(|text| text.split(','));
    let pairs = pairs.filter_map(|pair| pair.split_once('='));
    pairs
        .filter_map(|(address, weight)| Some((address, weight.parse().ok()?)))
        .collect()
}
