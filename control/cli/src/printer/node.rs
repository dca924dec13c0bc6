//! Nodes: ready or not, and what they are.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::Value;

use super::{NONE, Printer, narrow, wide};
use crate::output::age;

/// Labels that say a node's role end with it.
const ROLE: &str = "node-role.kubernetes.io/";

pub(crate) const PRINTER: Printer = Printer {
    columns: &[
        narrow("NAME"),
        narrow("STATUS"),
        narrow("ROLES"),
        narrow("AGE"),
        narrow("VERSION"),
        wide("INTERNAL-IP"),
        wide("EXTERNAL-IP"),
        wide("OS-IMAGE"),
        wide("KERNEL-VERSION"),
        wide("CONTAINER-RUNTIME"),
    ],
    cells,
};

fn cells(object: &Value, now: Timestamp) -> Result<Vec<String>, serde_json::Error> {
    let node = Node::deserialize(object)?;
    let info = node
        .status
        .as_ref()
        .and_then(|status| status.node_info.clone());
    let fact = |fact: Option<String>| {
        fact.filter(|text| !text.is_empty())
            .unwrap_or_else(|| "<unknown>".into())
    };
    Ok(vec![
        node.metadata.name.clone().unwrap_or_default(),
        status(&node),
        roles(&node),
        age::since(node.metadata.creation_timestamp.as_ref(), now),
        info.as_ref()
            .map(|info| info.kubelet_version.clone())
            .unwrap_or_default(),
        address(&node, "InternalIP"),
        address(&node, "ExternalIP"),
        fact(info.as_ref().map(|info| info.os_image.clone())),
        fact(info.as_ref().map(|info| info.kernel_version.clone())),
        fact(info.map(|info| info.container_runtime_version)),
    ])
}

fn status(node: &Node) -> String {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition.type_ == "Ready");
    let mut words = match ready {
        Some(condition) if condition.status == "True" => "Ready".to_string(),
        Some(_) => "NotReady".to_string(),
        None => "Unknown".to_string(),
    };
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        words.push_str(",SchedulingDisabled");
    }
    words
}

fn roles(node: &Node) -> String {
    let roles: Vec<&str> = node
        .metadata
        .labels
        .iter()
        .flatten()
        .filter_map(|(key, _)| key.strip_prefix(ROLE))
        .collect();
    if roles.is_empty() {
        NONE.into()
    } else {
        roles.join(",")
    }
}

fn address(node: &Node, kind: &str) -> String {
    let addresses = node
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_ref());
    let found = addresses
        .into_iter()
        .flatten()
        .find(|address| address.type_ == kind);
    found.map_or_else(|| NONE.to_string(), |address| address.address.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::rows::line;
    use super::*;

    #[test]
    fn rows() {
        let info = json!({"architecture": "amd64", "bootID": "", "containerRuntimeVersion": "foil://0.0.0", "kernelVersion": "6.18.0",
            "kubeProxyVersion": "", "kubeletVersion": "v0.0.0", "machineID": "", "operatingSystem": "linux", "osImage": "Debian 12", "systemUUID": ""});
        for (ready, spec, want) in [
            (
                "True",
                json!({}),
                "n1|Ready|worker|10m|v0.0.0|172.31.0.11|<none>|Debian 12|6.18.0|foil://0.0.0",
            ),
            (
                "Unknown",
                json!({"unschedulable": true}),
                "n1|NotReady,SchedulingDisabled|worker|10m|v0.0.0|172.31.0.11|<none>|Debian 12|6.18.0|foil://0.0.0",
            ),
        ] {
            let object = json!({"metadata": {"name": "n1", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"node-role.kubernetes.io/worker": ""}},
                "spec": spec,
                "status": {"conditions": [{"type": "Ready", "status": ready}], "addresses": [{"type": "InternalIP", "address": "172.31.0.11"}], "nodeInfo": info}});
            assert_eq!(line(&PRINTER, &object), want);
        }
        assert_eq!(
            line(&PRINTER, &json!({"metadata": {"name": "n2"}})),
            "n2|Unknown|<none>|<unknown>||<none>|<none>|<unknown>|<unknown>|<unknown>"
        );
    }
}
