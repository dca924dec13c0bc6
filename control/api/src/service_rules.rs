//! Rules of a Service, in Kubernetes' words (ValidateService of
//! pkg/apis/core/validation). Called by `service.rs`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::address::non_special;
use crate::invalid::{Causes, Field};
use crate::service_type::{
    EXTERNAL_NAME, HEADLESS, LOAD_BALANCER, NODE_PORT, externally_accessible, has_node_ports,
    needs_health_check,
};
use crate::{meta, name};

/// Annotation: how a backend is chosen for a new connection, one of [`LB_ALGORITHMS`].
pub const LB_ALGORITHM: &str = "hydrofoil.dev/lb-algorithm";
/// Values of [`LB_ALGORITHM`].
pub const LB_ALGORITHMS: [&str; 3] = ["hash", "maglev", "least-connections"];
/// The longest that a client may keep its backend, in seconds (a day).
const MOST_AFFINITY_SECONDS: i32 = 86_400;
const ONLY_BALANCED: &str = "may only be used when `type` is 'LoadBalancer'";

pub(crate) fn validate(service: &Service, causes: &mut Causes) {
    let at = Field::root("spec");
    let Some(spec) = &service.spec else { return };
    let headless = spec.cluster_ip.as_deref() == Some(HEADLESS);
    let external = spec.type_.as_deref() == Some(EXTERNAL_NAME);
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() && !headless && !external {
        causes.required(&at.child("ports"), "");
    }
    validate_ports(ports, &at.child("ports"), causes);
    validate_node_ports(spec, &at.child("ports"), causes);
    meta::validate_labels(spec.selector.as_ref(), &at.child("selector"), causes);
    if external {
        validate_external_name(spec, &at, causes);
    } else {
        validate_addresses(spec, &at, causes);
    }
    let types = ["ClusterIP", EXTERNAL_NAME, LOAD_BALANCER, NODE_PORT];
    one_of(spec.type_.as_deref(), &types, &at.child("type"), causes);
    validate_affinity(spec, &at, causes);
    validate_algorithm(service, causes);
    validate_external_ips(spec, &at.child("externalIPs"), causes);
    validate_balancer(spec, &at, causes);
    validate_external_policy(spec, &at, causes);
    if let Some(text) = spec.traffic_distribution.as_deref() {
        let known = ["PreferClose", "PreferSameNode", "PreferSameZone"];
        one_of(Some(text), &known, &at.child("trafficDistribution"), causes);
    }
    if external {
        return;
    }
    let policy = at.child("internalTrafficPolicy");
    one_of(
        spec.internal_traffic_policy.as_deref(),
        &["Cluster", "Local"],
        &policy,
        causes,
    );
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    one_of(
        spec.ip_family_policy.as_deref(),
        &policies,
        &at.child("ipFamilyPolicy"),
        causes,
    );
}

fn validate_affinity(spec: &ServiceSpec, at: &Field, causes: &mut Causes) {
    let affinity = spec.session_affinity.as_deref();
    let (is_set, is_client) = (at.child("sessionAffinity"), affinity == Some("ClientIP"));
    one_of(affinity, &["ClientIP", "None"], &is_set, causes);
    let at = at.child("sessionAffinityConfig");
    let config = spec.session_affinity_config.as_ref();
    if !is_client {
        if config.is_some() {
            let detail = "must not be set when session affinity is None";
            causes.forbidden(&at, detail);
        }
        return;
    }
    let client = config.and_then(|c| c.client_ip.as_ref());
    let seconds = client.and_then(|c| c.timeout_seconds).unwrap_or_default();
    if !(1..=MOST_AFFINITY_SECONDS).contains(&seconds) {
        let detail = format!("must be greater than 0 and less than {MOST_AFFINITY_SECONDS}");
        causes.invalid(&at.child("clientIP.timeoutSeconds"), seconds, detail);
    }
}

/// Ports of nodes, each once for a protocol, of the types that have them.
fn validate_node_ports(spec: &ServiceSpec, at: &Field, causes: &mut Causes) {
    let mut numbers = BTreeSet::new();
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        let at = at.index(i).child("nodePort");
        let Some(number) = port.node_port.filter(|number| *number != 0) else {
            continue;
        };
        if !has_node_ports(spec) {
            let of = spec.type_.as_deref().unwrap_or_default();
            causes.forbidden(&at, format!("may not be used when `type` is '{of}'"));
        } else if let Err(detail) = name::port(number) {
            causes.invalid(&at, number, detail);
        } else if !numbers.insert((number, port.protocol.as_deref())) {
            causes.duplicate(&at, number);
        }
    }
}

fn validate_external_ips(spec: &ServiceSpec, at: &Field, causes: &mut Causes) {
    for (i, text) in spec.external_ips.iter().flatten().enumerate() {
        let at = at.index(i);
        let checked = match text.parse::<IpAddr>() {
            Err(_not_an_address) => {
                Err("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
            }
            Ok(ip) if ip.is_ipv6() => {
                non_special(ip).and(Err("IPv6 is not supported by Hydrofoil yet"))
            }
            Ok(ip) => non_special(ip),
        };
        if let Err(detail) = checked {
            causes.invalid(&at, text, detail);
        }
    }
}

fn validate_balancer(spec: &ServiceSpec, at: &Field, causes: &mut Causes) {
    let balanced = spec.type_.as_deref() == Some(LOAD_BALANCER);
    let ranges = at.child("loadBalancerSourceRanges");
    let named = spec
        .load_balancer_source_ranges
        .as_deref()
        .unwrap_or_default();
    if !balanced && !named.is_empty() {
        causes.forbidden(&ranges, ONLY_BALANCED);
    }
    for (i, range) in named.iter().enumerate() {
        if !is_range(range) {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            causes.invalid(&ranges.index(i), range, detail);
        }
    }
    if !balanced && spec.allocate_load_balancer_node_ports.is_some() {
        causes.forbidden(&at.child("allocateLoadBalancerNodePorts"), ONLY_BALANCED);
    }
    if let Some(class) = &spec.load_balancer_class {
        let at = at.child("loadBalancerClass");
        if !balanced {
            causes.forbidden(&at, ONLY_BALANCED);
        } else if let Err(detail) = name::qualified(class) {
            causes.invalid(&at, class, detail);
        }
    }
    if balanced && let Some(text) = spec.load_balancer_ip.as_ref().filter(|ip| !ip.is_empty()) {
        // Kubernetes leaves this to the implementation of the load balancer.
        if text.parse::<IpAddr>().is_err() {
            causes.invalid(
                &at.child("loadBalancerIP"),
                text,
                "must be a valid IP address",
            );
        }
    }
}

fn is_range(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else {
        return false;
    };
    let most = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_not_an_address) => return false,
    };
    length.parse::<u8>().is_ok_and(|length| length <= most)
}

fn validate_external_policy(spec: &ServiceSpec, at: &Field, causes: &mut Causes) {
    let policy = spec.external_traffic_policy.as_deref().unwrap_or_default();
    let field = at.child("externalTrafficPolicy");
    if externally_accessible(spec) {
        one_of(Some(policy), &["Cluster", "Local"], &field, causes);
    } else if !policy.is_empty() {
        let detail = "may only be set for externally-accessible services";
        causes.invalid(&field, policy, detail);
    }
    let port = spec.health_check_node_port.unwrap_or_default();
    let field = at.child("healthCheckNodePort");
    if !needs_health_check(spec) {
        if port != 0 {
            let detail = "may only be set when `type` is 'LoadBalancer' and \
                          `externalTrafficPolicy` is 'Local'";
            causes.invalid(&field, port, detail);
        }
    } else if port != 0
        && let Err(detail) = name::port(port)
    {
        causes.invalid(&field, port, detail);
    }
}

fn one_of(value: Option<&str>, known: &[&str], at: &Field, causes: &mut Causes) {
    let value = value.unwrap_or_default();
    if !known.contains(&value) {
        causes.unsupported(at, value, known);
    }
}

fn validate_algorithm(service: &Service, causes: &mut Causes) {
    let annotations = service.metadata.annotations.as_ref();
    let Some(value) = annotations.and_then(|a| a.get(LB_ALGORITHM)) else {
        return;
    };
    let at = Field::root("metadata")
        .child("annotations")
        .key(LB_ALGORITHM);
    if !LB_ALGORITHMS.contains(&value.as_str()) {
        causes.unsupported(&at, value, &LB_ALGORITHMS);
    }
}

fn validate_addresses(spec: &ServiceSpec, at: &Field, causes: &mut Causes) {
    let ips = spec.cluster_ips.as_deref().unwrap_or_default();
    let first = spec.cluster_ip.as_deref().unwrap_or_default();
    let (one, all) = (at.child("clusterIP"), at.child("clusterIPs"));
    if !first.is_empty() && ips.first().map(String::as_str) != Some(first) {
        causes.invalid(&all, ips, "first value must match `clusterIP`");
    }
    if !first.is_empty() && first != HEADLESS {
        match first.parse::<std::net::IpAddr>() {
            Ok(ip) if ip.is_ipv4() => {}
            Ok(_) => causes.invalid(&one, first, "IPv6 is not supported by Hydrofoil yet"),
            Err(_not_an_address) => {
                let detail = "must be empty, 'None', or a valid IP address";
                causes.invalid(&one, first, detail);
            }
        }
    }
    let of = spec.type_.as_deref().unwrap_or_default();
    if first == HEADLESS && has_node_ports(spec) {
        let detail = format!("may not be set to 'None' for {of} services");
        causes.invalid(&all.index(0), first, detail);
    }
    if ips.len() > 1 {
        causes.invalid(
            &all,
            ips,
            "may only hold up to 1 value: dual stack is not supported by Hydrofoil yet",
        );
    }
}

/// A name and nothing that belongs to an address (Kubernetes' ValidateService).
fn validate_external_name(spec: &ServiceSpec, at: &Field, causes: &mut Causes) {
    let detail = "may not be set for ExternalName services";
    if !spec.cluster_ip.as_deref().unwrap_or_default().is_empty() {
        causes.forbidden(&at.child("clusterIP"), detail);
    } else if spec.cluster_ips.iter().flatten().any(|ip| !ip.is_empty()) {
        causes.forbidden(&at.child("clusterIPs"), detail);
    }
    let at = at.child("externalName");
    let name = spec.external_name.as_deref().unwrap_or_default();
    let bare = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        causes.required(&at, "");
    } else if let Err(detail) = name::subdomain(bare) {
        causes.invalid(&at, name, detail);
    }
}

fn validate_ports(ports: &[ServicePort], at: &Field, causes: &mut Causes) {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = at.index(i);
        let name = port.name.as_deref().unwrap_or_default();
        if name.is_empty() {
            if ports.len() > 1 {
                causes.required(&at.child("name"), "");
            }
        } else if let Err(detail) = name::label(name) {
            causes.invalid(&at.child("name"), name, detail);
        } else if !names.insert(name) {
            causes.duplicate(&at.child("name"), name);
        }
        if let Err(detail) = name::port(port.port) {
            causes.invalid(&at.child("port"), port.port, detail);
        }
        let protocol = port.protocol.as_deref().unwrap_or_default();
        if !["SCTP", "TCP", "UDP"].contains(&protocol) {
            causes.unsupported(&at.child("protocol"), protocol, &["SCTP", "TCP", "UDP"]);
        }
        if !numbers.insert((port.port, protocol)) {
            causes.duplicate(&at, format!("{}/{protocol}", port.port));
        }
        let verdict = match &port.target_port {
            Some(IntOrString::Int(number)) => name::port(*number),
            Some(IntOrString::String(name)) => name::port_name(name),
            None => Ok(()),
        };
        if let Err(detail) = verdict {
            let shown = match &port.target_port {
                Some(IntOrString::Int(number)) => number.to_string(),
                Some(IntOrString::String(name)) => name.clone(),
                None => String::new(),
            };
            causes.invalid(&at.child("targetPort"), shown, detail);
        }
    }
}
