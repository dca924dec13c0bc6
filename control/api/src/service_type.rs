//! What belongs to which type of Service, and what becomes of it when a Service is
//! written again: what was allocated is kept, what the new type does not have is cleared.
//!
//! Kubernetes' pkg/registry/core/service/rest/storage.go (patchAllocatedValues) and
//! strategy.go (dropTypeDependentFields). Called by `service.rs`, and by `control-plan`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

/// The `clusterIP` of a headless service.
pub const HEADLESS: &str = "None";
/// The type of a service that stands for another name.
pub const EXTERNAL_NAME: &str = "ExternalName";
/// The type of a service that every node forwards to from one of its ports.
pub const NODE_PORT: &str = "NodePort";
/// The type of a service with addresses outside the cluster.
pub const LOAD_BALANCER: &str = "LoadBalancer";
/// Value of both traffic policies: only endpoints of the node itself.
pub const LOCAL: &str = "Local";

fn is(spec: &ServiceSpec, name: &str) -> bool {
    spec.type_.as_deref() == Some(name)
}

/// True when the type has ports of nodes.
pub fn has_node_ports(spec: &ServiceSpec) -> bool {
    is(spec, NODE_PORT) || is(spec, LOAD_BALANCER)
}

/// True when each port gets one of nodes, also where none is named.
pub fn allocates_node_ports(spec: &ServiceSpec) -> bool {
    let declined = spec.allocate_load_balancer_node_ports == Some(false);
    is(spec, NODE_PORT) || (is(spec, LOAD_BALANCER) && !declined)
}

/// True when it is reached from outside the cluster.
pub fn externally_accessible(spec: &ServiceSpec) -> bool {
    let is_cluster_ip = spec.type_.as_deref().is_none_or(|text| text == "ClusterIP");
    let has_external = spec.external_ips.iter().flatten().next().is_some();
    has_node_ports(spec) || (is_cluster_ip && has_external)
}

/// True when nodes tell a load balancer whether they have endpoints.
pub fn needs_health_check(spec: &ServiceSpec) -> bool {
    is(spec, LOAD_BALANCER) && spec.external_traffic_policy.as_deref() == Some(LOCAL)
}

/// True when some of its clients have other endpoints than others. With both policies `Local`
/// these are the pods that use an address for clients outside.
pub fn policies_differ(spec: &ServiceSpec) -> bool {
    let is_local = |policy: &Option<String>| policy.as_deref() == Some(LOCAL);
    let any = is_local(&spec.internal_traffic_policy) || is_local(&spec.external_traffic_policy);
    externally_accessible(spec) && any
}

/// The spec whose load balancer addresses come from the cluster's pool; `None` for
/// another type, and for a class, which another controller serves.
pub fn balanced(service: &Service) -> Option<&ServiceSpec> {
    let spec = service.spec.as_ref()?;
    let ours = spec.load_balancer_class.is_none();
    Some(spec).filter(|spec| ours && is(spec, LOAD_BALANCER))
}

/// Ports of nodes that a spec names.
fn node_ports(spec: &ServiceSpec) -> BTreeSet<i32> {
    let ports = spec.ports.iter().flatten().filter_map(|p| p.node_port);
    ports.filter(|port| *port != 0).collect()
}

/// Adds what `old` was given and `new`, which has the same need of it, does not name.
pub(crate) fn keep_allocated(new: &mut ServiceSpec, old: &ServiceSpec) {
    if has_node_ports(new) && has_node_ports(old) && allocates_node_ports(new) {
        let named = node_ports(new);
        let known = old.ports.iter().flatten();
        let known = known.filter_map(|p| Some((p.name.clone(), p.node_port?)));
        let known: BTreeMap<Option<String>, i32> = known.collect();
        for port in new.ports.iter_mut().flatten() {
            let unset = port.node_port.is_none_or(|port| port == 0);
            // Not one that is named for another port now.
            let before = known.get(&port.name).filter(|port| !named.contains(port));
            if unset && let Some(before) = before {
                port.node_port = Some(*before);
            }
        }
    }
    let unset = |port: Option<i32>| port.is_none_or(|port| port == 0);
    if needs_health_check(new) && needs_health_check(old) && unset(new.health_check_node_port) {
        new.health_check_node_port = old.health_check_node_port;
    }
}

/// Clears fields of the type of `old` that the type of `new` does not have, unless the
/// write changed them: they were left over, not asked for.
pub(crate) fn clear_leftovers(new: &mut ServiceSpec, old: &ServiceSpec) {
    let balanced = is(old, LOAD_BALANCER) && !is(new, LOAD_BALANCER);
    if is(new, EXTERNAL_NAME) && !is(old, EXTERNAL_NAME) {
        let same = |a: &Option<String>, b: &Option<String>| a.as_deref() == b.as_deref();
        if same(&new.cluster_ip, &old.cluster_ip) && new.cluster_ips == old.cluster_ips {
            new.cluster_ip = None;
            new.cluster_ips = None;
        }
        if new.ip_families == old.ip_families {
            new.ip_families = None;
        }
        if new.ip_family_policy == old.ip_family_policy {
            new.ip_family_policy = None;
        }
    }
    if has_node_ports(old) && !has_node_ports(new) && node_ports(new).is_subset(&node_ports(old)) {
        for port in new.ports.iter_mut().flatten() {
            port.node_port = None;
        }
    }
    if needs_health_check(old)
        && !needs_health_check(new)
        && new.health_check_node_port == old.health_check_node_port
    {
        new.health_check_node_port = None;
    }
    if balanced && new.allocate_load_balancer_node_ports == old.allocate_load_balancer_node_ports {
        new.allocate_load_balancer_node_ports = None;
    }
    if balanced && new.load_balancer_class == old.load_balancer_class {
        new.load_balancer_class = None;
    }
    if externally_accessible(old)
        && !externally_accessible(new)
        && new.external_traffic_policy == old.external_traffic_policy
    {
        new.external_traffic_policy = None;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: Value) -> ServiceSpec {
        serde_json::from_value(value).unwrap()
    }

    /// What `new` is when it is written over `old`.
    fn written(new: Value, old: Value) -> Value {
        let (mut new, old) = (spec(new), spec(old));
        clear_leftovers(&mut new, &old);
        keep_allocated(&mut new, &old);
        serde_json::to_value(new).unwrap()
    }

    #[test]
    fn what_was_allocated_is_kept() {
        let ports = |a: i32, b: i32| json!([{"name": "a", "port": 1, "nodePort": a}, {"name": "b", "port": 2, "nodePort": b}]);
        let of = |kind: &str, ports: Value| json!({"type": kind, "ports": ports});
        // (new type, new ports, old type, old ports, then)
        let rows = [
            (
                "NodePort",
                ports(0, 0),
                "NodePort",
                ports(30_001, 30_002),
                ports(30_001, 30_002),
            ),
            (
                "LoadBalancer",
                ports(0, 0),
                "NodePort",
                ports(30_001, 30_002),
                ports(30_001, 30_002),
            ),
            // The number of one port is asked for by the other one.
            (
                "NodePort",
                ports(0, 30_001),
                "NodePort",
                ports(30_001, 30_002),
                ports(0, 30_001),
            ),
            (
                "NodePort",
                ports(0, 30_009),
                "NodePort",
                ports(30_001, 30_002),
                ports(30_001, 30_009),
            ),
            (
                "NodePort",
                ports(0, 0),
                "ClusterIP",
                ports(0, 0),
                ports(0, 0),
            ),
        ];
        for (kind, new, old_kind, old, expected) in rows {
            let got = written(of(kind, new), of(old_kind, old));
            assert_eq!(got["ports"], expected, "{kind} {old_kind}");
        }
        let balancer = |more: Value| {
            let mut spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
            spec.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            spec
        };
        let got = written(
            balancer(json!({})),
            balancer(json!({"healthCheckNodePort": 30_003})),
        );
        assert_eq!(got["healthCheckNodePort"], 30_003);
        let port = json!([{"port": 1, "nodePort": 30_001}]);
        let declined =
            balancer(json!({"allocateLoadBalancerNodePorts": false, "ports": [{"port": 1}]}));
        let got = written(declined, balancer(json!({"ports": port})));
        assert_eq!(got["ports"], json!([{"port": 1}]), "it wants none now");
    }

    #[test]
    fn leftovers_of_another_type_go_and_what_is_asked_for_stays() {
        let old = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 30_003, "loadBalancerClass": "a/b",
            "allocateLoadBalancerNodePorts": true, "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"port": 1, "nodePort": 30_001}]});
        let turned = |kind: &str| {
            let mut new = old.clone();
            new["type"] = json!(kind);
            written(new, old.clone())
        };
        let address = json!({"type": "ClusterIP", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "ports": [{"port": 1}]});
        assert_eq!(turned("ClusterIP"), address);
        let name = json!({"type": "ExternalName", "ports": [{"port": 1}]});
        assert_eq!(turned("ExternalName"), name);
        let got = turned("NodePort");
        assert_eq!(got["ports"], old["ports"]);
        assert_eq!(got["externalTrafficPolicy"], "Local");
        assert_eq!(got.get("healthCheckNodePort"), None);
        // A port that was not there before is asked for, and refused later.
        let new = json!({"type": "ClusterIP", "ports": [{"port": 1, "nodePort": 30_002}]});
        assert_eq!(written(new.clone(), old)["ports"], new["ports"]);
    }
}
