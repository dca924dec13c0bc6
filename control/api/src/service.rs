//! Service: defaults, what is kept and cleared when it is written again, immutable
//! addresses. Its rules are `service_rules.rs`, what its types have `service_type.rs`; not
//! the allocation of addresses (`control-plan`), nor what nodes get (`proto`'s convert).

use k8s_openapi::api::core::v1::{ClientIPConfig, Service, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use crate::admit;
use crate::invalid::{Causes, Field};
use crate::kind::{Kind, NameRule, Rules, Words};
use crate::service_rules;
use crate::service_type::{
    self, LOAD_BALANCER, clear_leftovers, externally_accessible, keep_allocated,
};

pub use crate::service_rules::{LB_ALGORITHM, LB_ALGORITHMS};
pub use crate::service_type::{EXTERNAL_NAME, HEADLESS};

pub(crate) static KIND: Kind = admit::kind_of::<Service>(Words {
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    namespaced: true,
    has_status: true,
    pod_spec: "",
    name_rule: NameRule::Label1035,
});

/// How long a client keeps its backend by default, in seconds (3 hours).
const AFFINITY_SECONDS: i32 = 10_800;

impl Rules for Service {
    fn prepare(&mut self, old: Option<&Self>) {
        // A manifest that is applied again does not name the allocated address.
        let Some(old) = old.and_then(|old| old.spec.as_ref()) else {
            return;
        };
        let Some(spec) = self.spec.as_mut() else {
            return;
        };
        // A manifest with an empty address, written over what was allocated.
        if is_unset(&spec.cluster_ip) && spec.cluster_ips == old.cluster_ips {
            spec.cluster_ip = None;
            spec.cluster_ips = None;
        }
        clear_leftovers(spec, old);
        if spec.type_.as_deref() == Some(EXTERNAL_NAME) {
            return;
        }
        keep_allocated(spec, old);
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
        if spec.session_affinity.as_deref() == Some("ClientIP") {
            let config = spec.session_affinity_config.get_or_insert_default();
            let client = config.client_ip.get_or_insert_with(ClientIPConfig::default);
            client.timeout_seconds.get_or_insert(AFFINITY_SECONDS);
        } else if spec.session_affinity.as_deref() == Some("None") {
            spec.session_affinity_config = None;
        }
        if externally_accessible(spec) && is_unset(&spec.external_traffic_policy) {
            spec.external_traffic_policy = Some("Cluster".to_owned());
        }
        if spec.type_.as_deref() == Some(LOAD_BALANCER) {
            spec.allocate_load_balancer_node_ports.get_or_insert(true);
        }
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
        service_rules::validate(self, causes);
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
        let balanced = |spec: &ServiceSpec| spec.type_.as_deref() == Some(LOAD_BALANCER);
        if balanced(old) && balanced(new) && new.load_balancer_class != old.load_balancer_class {
            let class = new.load_balancer_class.clone().unwrap_or_default();
            let detail = "may not change once set";
            causes.invalid(&at.child("loadBalancerClass"), class, detail);
        }
        let checked = service_type::needs_health_check;
        if checked(old) && checked(new) && new.health_check_node_port != old.health_check_node_port
        {
            let port = new.health_check_node_port.unwrap_or_default();
            let detail = "field is immutable";
            causes.invalid(&at.child("healthCheckNodePort"), port, detail);
        }
    }

    fn initial_status(&self) -> Option<Value> {
        Some(json!({"loadBalancer": {}}))
    }
}

fn is_unset(text: &Option<String>) -> bool {
    text.as_deref().is_none_or(str::is_empty)
}
