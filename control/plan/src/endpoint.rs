//! A pod as an endpoint of a Service: where it answers, at which ports, and what it is
//! to connections.
//!
//! In which slice it stands is `endpointslice.rs`, the caller.

use control_api::pod::WEIGHT;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::hints::hints;
use crate::object;

/// What all endpoints of a slice have in common: port name, protocol, number.
pub(crate) type Ports = Vec<(String, String, i32)>;

/// True when the service has addresses of pods that are not ready.
pub(crate) fn publishes(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|s| s.publish_not_ready_addresses == Some(true))
}

/// Where the pod answers for this service, on a node of this zone; `None` while it has no address, or
/// when it has come to its end.
pub(crate) fn endpoint(
    service: &Service,
    pod: &Pod,
    zone: Option<String>,
) -> Option<(Ports, Endpoint)> {
    if object::pod_finished(pod) {
        return None;
    }
    let status = pod.status.as_ref()?;
    let address = status.pod_ip.clone().filter(|ip| !ip.is_empty())?;
    let spec = service.spec.as_ref()?;
    let ports = (spec.ports.iter().flatten())
        .filter_map(|port| Some((name(port), protocol(port), target(port, pod)?)))
        .collect();
    let terminating = object::deleting(&pod.metadata);
    let serving = object::pod_ready(pod);
    // A service that publishes addresses before they are ready does so to the end.
    let published = publishes(service);
    let hostname = pod.spec.as_ref().and_then(|s| {
        let here = s.subdomain.as_deref() == service.metadata.name.as_deref();
        s.hostname.clone().filter(|_| here)
    });
    let mut endpoint = Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(published || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname,
        node_name: object::pod_node(pod).map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        zone,
        ..Endpoint::default()
    };
    endpoint.hints = hints(service, &endpoint);
    Some((ports, endpoint))
}

/// The pod's share of new connections, relative to the others'; `None`: 1.
pub(crate) fn weight(pod: &Pod) -> Option<&str> {
    object::annotation(&pod.metadata, WEIGHT).filter(|weight| *weight != "1")
}

fn name(port: &ServicePort) -> String {
    port.name.clone().unwrap_or_default()
}

fn protocol(port: &ServicePort) -> String {
    port.protocol.clone().unwrap_or_default()
}

/// The pod's port number: as it stands, by the name of a container's port, or
/// the service's own.
fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let named = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(named)) if named.is_empty() => return Some(port.port),
        Some(IntOrString::String(named)) => named,
    };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let found = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten());
    found
        .filter(|p| p.protocol == port.protocol)
        .find(|p| p.name.as_deref() == Some(named))
        .map(|p| p.container_port)
        .or_else(|| named.parse().ok())
}
