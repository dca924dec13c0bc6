//! Services: their addresses, and who answers behind them.

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod;
use super::text::Text;
use super::{Describer, Related, typed, typed_all};
use crate::client::Selection;
use crate::printer::{NONE, or_none, pairs};

pub(crate) const DESCRIBER: Describer = Describer {
    related: Some(Related {
        word: "endpointslices",
        selection: |service| Selection {
            namespace: control_api::meta::namespace(service).to_owned(),
            labels: format!(
                "kubernetes.io/service-name={}",
                control_api::meta::name(service)
            ),
            ..Selection::default()
        },
    }),
    text: |text, object, related, _| {
        describe(text, &typed(object)?, &typed_all(related)?);
        Ok(())
    },
};

fn describe(text: &mut Text, service: &Service, slices: &[EndpointSlice]) {
    let spec = service.spec.clone().unwrap_or_default();
    pod::heading(text, &service.metadata);
    text.pair(0, "Selector", pairs(spec.selector.iter().flatten(), "="));
    text.pair(0, "Type", spec.type_.as_deref().unwrap_or("ClusterIP"));
    text.pair(
        0,
        "IP Family Policy",
        or_none(spec.ip_family_policy.as_deref()),
    );
    text.pair(0, "IP", or_none(spec.cluster_ip.as_deref()));
    text.pair(
        0,
        "IPs",
        or_none(Some(
            &spec.cluster_ips.clone().unwrap_or_default().join(","),
        )),
    );
    if let Some(external) = spec.external_ips.as_ref().filter(|ips| !ips.is_empty()) {
        text.pair(0, "External IPs", external.join(","));
    }
    let wanted = spec.load_balancer_ip.as_deref();
    if let Some(address) = wanted.filter(|ip| !ip.is_empty()) {
        text.pair(0, "Desired LoadBalancer IP", address);
    }
    if let Some(ingress) = ingress(service) {
        text.pair(0, "LoadBalancer Ingress", ingress);
    }
    for port in spec.ports.iter().flatten() {
        let name = port
            .name
            .as_deref()
            .filter(|name| !name.is_empty())
            .unwrap_or("<unset>");
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        text.pair(0, "Port", format!("{name}  {}/{protocol}", port.port));
        let target = match &port.target_port {
            Some(IntOrString::Int(number)) => number.to_string(),
            Some(IntOrString::String(name)) => name.clone(),
            None => port.port.to_string(),
        };
        text.pair(0, "TargetPort", format!("{target}/{protocol}"));
        if let Some(node_port) = port.node_port.filter(|node_port| *node_port > 0) {
            text.pair(0, "NodePort", format!("{name}  {node_port}/{protocol}"));
        }
        text.pair(
            0,
            "Endpoints",
            endpoints(port, slices, |endpoint| serves(endpoint) && !ends(endpoint)),
        );
        let draining = endpoints(port, slices, |endpoint| serves(endpoint) && ends(endpoint));
        if draining != NONE {
            text.pair(0, "Terminating Endpoints", draining);
        }
    }
    text.pair(
        0,
        "Session Affinity",
        spec.session_affinity.as_deref().unwrap_or("None"),
    );
    if let Some(policy) = spec.external_traffic_policy.as_deref() {
        text.pair(0, "External Traffic Policy", policy);
    }
    text.pair(
        0,
        "Internal Traffic Policy",
        spec.internal_traffic_policy.as_deref().unwrap_or("Cluster"),
    );
    if let Some(distribution) = spec.traffic_distribution.as_deref() {
        text.pair(0, "Traffic Distribution", distribution);
    }
    if let Some(port) = spec.health_check_node_port.filter(|port| *port > 0) {
        text.pair(0, "HealthCheck NodePort", port.to_string());
    }
    let ranges = spec.load_balancer_source_ranges.unwrap_or_default();
    if !ranges.is_empty() {
        text.pair(0, "LoadBalancer Source Ranges", ranges.join(","));
    }
}

/// "203.0.113.7 (VIP)"; `None`: the service has no address outside the cluster.
fn ingress(service: &Service) -> Option<String> {
    let status = service.status.as_ref()?.load_balancer.as_ref()?;
    let all = status.ingress.iter().flatten().map(|ingress| {
        let address = ingress.ip.clone().or_else(|| ingress.hostname.clone());
        let address = address.unwrap_or_default();
        match ingress.ip_mode.as_deref() {
            Some(mode) => format!("{address} ({mode})"),
            None => address,
        }
    });
    let all: Vec<String> = all.collect();
    (!all.is_empty()).then(|| all.join(", "))
}

fn serves(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    conditions.serving.or(conditions.ready).unwrap_or(true)
}

fn ends(endpoint: &Endpoint) -> bool {
    endpoint
        .conditions
        .as_ref()
        .and_then(|conditions| conditions.terminating)
        .unwrap_or(false)
}

/// "10.244.1.5:8080,10.244.2.6:8080"
fn endpoints(
    port: &ServicePort,
    slices: &[EndpointSlice],
    wanted: impl Fn(&Endpoint) -> bool,
) -> String {
    let mut found = Vec::new();
    for slice in slices {
        let name = port.name.as_deref().unwrap_or_default();
        let number = slice
            .ports
            .iter()
            .flatten()
            .find(|of_slice| of_slice.name.as_deref().unwrap_or_default() == name)
            .and_then(|of_slice| of_slice.port);
        let Some(number) = number else { continue };
        let addresses = slice
            .endpoints
            .iter()
            .filter(|endpoint| wanted(endpoint))
            .flat_map(|endpoint| &endpoint.addresses);
        found.extend(addresses.map(|address| match address.contains(':') {
            true => format!("[{address}]:{number}"),
            false => format!("{address}:{number}"),
        }));
    }
    if found.is_empty() {
        NONE.into()
    } else {
        found.join(",")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_load_balancer_tells_how_it_is_reached() {
        let service = serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30003,
            "loadBalancerSourceRanges": ["10.0.0.0/8", "192.0.2.0/24"], "trafficDistribution": "PreferClose",
            "ports": [{"port": 80, "nodePort": 30080}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7", "ipMode": "VIP"}]}}}))
        .unwrap();
        let mut text = Text::default();
        describe(&mut text, &service, &[]);
        let text = text.finish();
        for (name, expected) in [
            ("LoadBalancer Ingress:", "203.0.113.7 (VIP)"),
            ("NodePort:", "<unset>  30080/TCP"),
            ("External Traffic Policy:", "Local"),
            ("Traffic Distribution:", "PreferClose"),
            ("HealthCheck NodePort:", "30003"),
            ("LoadBalancer Source Ranges:", "10.0.0.0/8,192.0.2.0/24"),
        ] {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            assert_eq!(line.map(str::trim), Some(expected), "{text}");
        }
    }

    #[test]
    fn endpoints_are_those_of_the_port() {
        let service = serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "selector": {"app": "web"},
                "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}, {"name": "other", "port": 81}]}}))
        .unwrap();
        let slices = vec![
            serde_json::from_value(json!({"metadata": {}, "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
                "endpoints": [{"addresses": ["10.244.1.5"], "conditions": {"ready": true}}, {"addresses": ["10.244.1.6"], "conditions": {"ready": false}},
                    {"addresses": ["10.244.1.7"], "conditions": {"ready": false, "serving": true, "terminating": true}}]}))
            .unwrap(),
        ];
        let mut text = Text::default();
        describe(&mut text, &service, &slices);
        let text = text.finish();
        let line = |name: &str| -> Vec<String> {
            let of = |line: &str| line.strip_prefix(name).map(|rest| rest.trim().to_string());
            text.lines().filter_map(of).collect()
        };
        assert_eq!(line("Endpoints:"), ["10.244.1.5:8080", "<none>"], "{text}");
        assert_eq!(line("Terminating Endpoints:"), ["10.244.1.7:8080"]);
        assert_eq!(line("TargetPort:"), ["http/TCP", "81/TCP"]);
    }
}
