//! Which nodes prefer an endpoint: the hints that the `trafficDistribution` of its
//! Service asks for (KEP-2433, KEP-3015). Called by `endpointslice.rs`; a node decides
//! by the hints of all endpoints whether it follows them (`agent_plan::choice`).

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForNode, ForZone};

/// Hints of an endpoint. One that is not ready gets none, and needs none.
pub(crate) fn hints(service: &Service, endpoint: &Endpoint) -> Option<EndpointHints> {
    let spec = service.spec.as_ref()?;
    let nodes = match spec.traffic_distribution.as_deref()? {
        "PreferSameNode" => true,
        // The older name of PreferSameZone.
        "PreferSameZone" | "PreferClose" => false,
        _unknown => return None,
    };
    let conditions = endpoint.conditions.as_ref();
    if conditions.and_then(|c| c.ready) == Some(false) {
        return None;
    }
    let name = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    let for_zones = name(&endpoint.zone).map(|name| vec![ForZone { name }]);
    let node = name(&endpoint.node_name).filter(|_| nodes);
    let for_nodes = node.map(|name| vec![ForNode { name }]);
    let hints = EndpointHints {
        for_nodes,
        for_zones,
    };
    Some(hints).filter(|hints| *hints != EndpointHints::default())
}
