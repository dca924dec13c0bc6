//! Services: where to reach them.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec, ServiceStatus};
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::Value;

use super::{NONE, Printer, narrow, pairs, wide};
use crate::output::age;

pub(crate) const PRINTER: Printer = Printer {
    columns: &[
        narrow("NAME"),
        narrow("TYPE"),
        narrow("CLUSTER-IP"),
        narrow("EXTERNAL-IP"),
        narrow("PORT(S)"),
        narrow("AGE"),
        wide("SELECTOR"),
    ],
    cells,
};

fn cells(object: &Value, now: Timestamp) -> Result<Vec<String>, serde_json::Error> {
    let service = Service::deserialize(object)?;
    let spec = service.spec.unwrap_or_default();
    let status = service.status.unwrap_or_default();
    Ok(vec![
        service.metadata.name.unwrap_or_default(),
        spec.type_.clone().unwrap_or_else(|| "ClusterIP".into()),
        spec.cluster_ip
            .clone()
            .filter(|ip| !ip.is_empty())
            .unwrap_or_else(|| NONE.into()),
        external(&spec, &status),
        ports(spec.ports.as_deref().unwrap_or_default()),
        age::since(service.metadata.creation_timestamp.as_ref(), now),
        pairs(spec.selector.iter().flatten(), "="),
    ])
}

/// How it is reached from outside.
fn external(spec: &ServiceSpec, status: &ServiceStatus) -> String {
    let fixed = spec.external_ips.clone().unwrap_or_default();
    match spec.type_.as_deref() {
        Some("ExternalName") => spec.external_name.clone().unwrap_or_default(),
        Some("LoadBalancer") => {
            let ingress = status
                .load_balancer
                .as_ref()
                .and_then(|balancer| balancer.ingress.as_ref());
            let given = ingress
                .into_iter()
                .flatten()
                .filter_map(|ingress| ingress.ip.clone().or(ingress.hostname.clone()));
            let all: Vec<String> = given.chain(fixed).collect();
            if all.is_empty() {
                "<pending>".into()
            } else {
                all.join(",")
            }
        }
        Some(_) | None if fixed.is_empty() => NONE.into(),
        Some(_) | None => fixed.join(","),
    }
}

/// "80/TCP,443:30443/TCP"
pub(crate) fn ports(ports: &[ServicePort]) -> String {
    let one = |port: &ServicePort| {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        match port.node_port {
            Some(node_port) if node_port > 0 => format!("{}:{node_port}/{protocol}", port.port),
            Some(_) | None => format!("{}/{protocol}", port.port),
        }
    };
    let all: Vec<String> = ports.iter().map(one).collect();
    if all.is_empty() {
        NONE.into()
    } else {
        all.join(",")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::rows::line;
    use super::*;

    #[test]
    fn rows() {
        for (spec, status, want) in [
            (
                json!({"type": "ClusterIP", "clusterIP": "10.96.0.9", "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}], "selector": {"app": "web", "b": "c"}}),
                json!({}),
                "s|ClusterIP|10.96.0.9|<none>|80/TCP,53/UDP|<unknown>|app=web,b=c",
            ),
            (
                json!({"clusterIP": "None"}),
                json!({}),
                "s|ClusterIP|None|<none>|<none>|<unknown>|<none>",
            ),
            (
                json!({"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30080}], "externalIPs": ["1.2.3.4"]}),
                json!({}),
                "s|NodePort|10.96.0.9|1.2.3.4|80:30080/TCP|<unknown>|<none>",
            ),
            (
                json!({"type": "LoadBalancer"}),
                json!({}),
                "s|LoadBalancer|<none>|<pending>|<none>|<unknown>|<none>",
            ),
            (
                json!({"type": "LoadBalancer"}),
                json!({"loadBalancer": {"ingress": [{"ip": "9.9.9.9"}]}}),
                "s|LoadBalancer|<none>|9.9.9.9|<none>|<unknown>|<none>",
            ),
            (
                json!({"type": "ExternalName", "externalName": "db.example"}),
                json!({}),
                "s|ExternalName|<none>|db.example|<none>|<unknown>|<none>",
            ),
        ] {
            let object = json!({"metadata": {"name": "s"}, "spec": spec, "status": status});
            assert_eq!(line(&PRINTER, &object), want);
        }
    }
}
