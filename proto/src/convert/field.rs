//! Values of `fieldRef` and `resourceFieldRef`: the pod's own fields and its
//! containers' resources as text. Called by `env` and `volume`.

use std::collections::BTreeMap;

use control_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use super::input::PodInput;

/// The value of a field; `None` for one that we do not know.
pub fn pod_field(input: &PodInput<'_>, path: &str) -> Option<String> {
    let pod: &Pod = input.pod;
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    if let Some((map, key)) = path.split_once('[') {
        let key = key.strip_suffix(']')?.trim_matches('\'');
        let map = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _other => return None,
        };
        return Some(
            map.and_then(|map| map.get(key))
                .cloned()
                .unwrap_or_default(),
        );
    }
    let text = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => Some(lines(meta.labels.as_ref())),
        "metadata.annotations" => Some(lines(meta.annotations.as_ref())),
        "spec.nodeName" => Some(input.node.name.clone()),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()),
        "status.hostIP" => input.node.addresses.first().cloned(),
        "status.hostIPs" => Some(input.node.addresses.join(",")),
        "status.podIP" => input.pod_ips().first().cloned(),
        "status.podIPs" => Some(input.pod_ips().join(",")),
        _other => return None,
    };
    Some(text.unwrap_or_default())
}

/// `key="value"` a line, in key order.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", quoted(value)));
    lines.collect::<Vec<_>>().join("\n")
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A request or limit in units of the divisor, rounded up. A limit that is not
/// set is what the node has.
pub fn resource_field(
    input: &PodInput<'_>,
    container: &Container,
    field: &ResourceFieldSelector,
) -> Option<String> {
    let (list, name) = field.resource.split_once('.')?;
    let resources = container.resources.as_ref();
    let set = match list {
        "limits" => resources.and_then(|r| r.limits.as_ref()),
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _other => return None,
    };
    let set = set.and_then(|list| list.get(name)).and_then(Quantity::of);
    let set = set.filter(|quantity| !quantity.is_zero());
    let divisor = field
        .divisor
        .as_ref()
        .and_then(Quantity::of)
        .filter(|d| !d.is_zero());
    let divisor = divisor.unwrap_or(Quantity::from_units(1));
    let (amount, unit) = match (name, set) {
        ("cpu", Some(quantity)) => (quantity.millis(), divisor.millis()),
        ("cpu", None) if list == "limits" => (input.node.cpu_millis, divisor.millis()),
        (_, Some(quantity)) => (quantity.units(), divisor.units()),
        ("memory", None) if list == "limits" => (input.node.memory_bytes, divisor.units()),
        (_, None) => (0, 1),
    };
    Some(amount.div_ceil(unit.max(1)).to_string())
}
