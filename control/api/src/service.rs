//! Service: defaults, rules, immutable addresses. Not the allocation of
//! addresses (`control-plan`), nor what nodes get (`proto`'s convert).

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use crate::admit;
use crate::invalid::{Causes, Field};
use crate::kind::{Kind, NameRule, Rules, Words};
use crate::{meta, name};

pub(crate) static KIND: Kind = admit::kind_of::<Service>(Words {
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    namespaced: true,
    has_status: true,
    pod_spec: "",
    name_rule: NameRule::Label1035,
});

/// The `clusterIP` of a headless service.
pub const HEADLESS: &str = "None";
/// The type of a service that stands for another name.
pub const EXTERNAL_NAME: &str = "ExternalName";

impl Rules for Service {
    fn prepare(&mut self, old: Option<&Self>) {
        // A manifest that is applied again does not name the allocated address.
        let Some(old) = old.and_then(|old| old.spec.as_ref()) else {
            return;
        };
        let Some(spec) = self.spec.as_mut() else {
            return;
        };
        if spec.type_.as_deref() == Some(EXTERNAL_NAME) {
            return;
        }
        let unnamed = spec.cluster_ip.as_deref().unwrap_or_default().is_empty();
        if unnamed && spec.cluster_ips.as_deref().unwrap_or_default().is_empty() {
            spec.cluster_ip = old.cluster_ip.clone();
            spec.cluster_ips = old.cluster_ips.clone();
        }
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.type_.get_or_insert_with(|| "ClusterIP".to_owned());
        spec.session_affinity
            .get_or_insert_with(|| "None".to_owned());
        if spec.type_.as_deref() != Some(EXTERNAL_NAME) {
            spec.internal_traffic_policy
                .get_or_insert_with(|| "Cluster".to_owned());
            spec.ip_family_policy
                .get_or_insert_with(|| "SingleStack".to_owned());
            spec.ip_families
                .get_or_insert_with(|| vec!["IPv4".to_owned()]);
        }
        let filled = |ip: &&String| !ip.is_empty();
        match (spec.cluster_ip.clone(), spec.cluster_ips.clone()) {
            (Some(ip), None) if !ip.is_empty() => spec.cluster_ips = Some(vec![ip]),
            (None, Some(ips)) => spec.cluster_ip = ips.first().filter(filled).cloned(),
            (Some(_) | None, Some(_) | None) => {}
        }
        for port in spec.ports.iter_mut().flatten() {
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
            let unset = match &port.target_port {
                None | Some(IntOrString::Int(0)) => true,
                Some(IntOrString::String(text)) => text.is_empty(),
                Some(IntOrString::Int(_)) => false,
            };
            if unset {
                port.target_port = Some(IntOrString::Int(port.port));
            }
        }
    }

    fn validate(&self, causes: &mut Causes) {
        let at = Field::root("spec");
        let Some(spec) = &self.spec else { return };
        let headless = spec.cluster_ip.as_deref() == Some(HEADLESS);
        let external = spec.type_.as_deref() == Some(EXTERNAL_NAME);
        let ports = spec.ports.as_deref().unwrap_or_default();
        if ports.is_empty() && !headless && !external {
            causes.required(&at.child("ports"), "");
        }
        validate_ports(ports, &at.child("ports"), causes);
        meta::validate_labels(spec.selector.as_ref(), &at.child("selector"), causes);
        if external {
            validate_external_name(spec, &at, causes);
        } else {
            validate_addresses(spec, &at, causes);
        }
        let types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
        one_of(spec.type_.as_deref(), &types, &at.child("type"), causes);
        let affinity = at.child("sessionAffinity");
        one_of(
            spec.session_affinity.as_deref(),
            &["ClientIP", "None"],
            &affinity,
            causes,
        );
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

    fn validate_update(&self, old: &Self, causes: &mut Causes) {
        let (Some(new), Some(old)) = (&self.spec, &old.spec) else {
            return;
        };
        let at = Field::root("spec");
        let ip = |spec: &ServiceSpec| spec.cluster_ip.clone().unwrap_or_default();
        // Kubernetes lets a service lose its address to a name.
        let external = new.type_.as_deref() == Some(EXTERNAL_NAME);
        if !external && !ip(old).is_empty() && ip(new) != ip(old) {
            causes.invalid(&at.child("clusterIP"), ip(new), "field is immutable");
            let all = new.cluster_ips.clone().unwrap_or_default();
            causes.invalid(&at.child("clusterIPs"), all, "may not change once set");
        }
    }

    fn initial_status(&self) -> Option<Value> {
        Some(json!({"loadBalancer": {}}))
    }
}

fn one_of(value: Option<&str>, known: &[&str], at: &Field, causes: &mut Causes) {
    let value = value.unwrap_or_default();
    if !known.contains(&value) {
        causes.unsupported(at, value, known);
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
