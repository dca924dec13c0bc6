//! Nodes: what they are, what they hold, and which pods are on them.

use std::collections::BTreeMap;

use control_api::effective::effective;
use control_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Node, Pod};
use k8s_openapi::jiff::Timestamp;

use super::pod;
use super::text::{Text, time};
use super::{Describer, Related, typed, typed_all};
use crate::client::Selection;
use crate::output::age;
use crate::printer::NONE;

pub(crate) const DESCRIBER: Describer = Describer {
    related: Some(Related {
        word: "pods",
        selection: |node| Selection {
            fields: format!("spec.nodeName={}", control_api::meta::name(node)),
            ..Selection::default()
        },
    }),
    text: |text, object, related, now| {
        describe(text, &typed(object)?, &typed_all(related)?, now);
        Ok(())
    },
};

fn describe(text: &mut Text, node: &Node, pods: &[Pod], now: Timestamp) {
    let spec = node.spec.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    pod::heading(text, &node.metadata);
    text.pair(
        0,
        "CreationTimestamp",
        time(node.metadata.creation_timestamp.as_ref()),
    );
    let taints: Vec<String> = spec
        .taints
        .iter()
        .flatten()
        .map(|taint| {
            format!(
                "{}={}:{}",
                taint.key,
                taint.value.as_deref().unwrap_or_default(),
                taint.effect
            )
        })
        .collect();
    text.pair(
        0,
        "Taints",
        if taints.is_empty() {
            NONE.into()
        } else {
            taints.join("\n")
        },
    );
    text.pair(
        0,
        "Unschedulable",
        spec.unschedulable.unwrap_or(false).to_string(),
    );
    text.section(0, "Conditions");
    let mut rows = vec![
        ["Type", "Status", "LastTransitionTime", "Reason", "Message"]
            .map(String::from)
            .to_vec(),
    ];
    for condition in status.conditions.unwrap_or_default() {
        let since = time(condition.last_transition_time.as_ref());
        let (reason, message) = (
            condition.reason.unwrap_or_default(),
            condition.message.unwrap_or_default(),
        );
        rows.push(vec![
            condition.type_,
            condition.status,
            since,
            reason,
            message,
        ]);
    }
    text.table(1, rows);
    text.section(0, "Addresses");
    for address in status.addresses.unwrap_or_default() {
        text.pair(1, &address.type_, &address.address);
    }
    for (name, amounts) in [
        ("Capacity", status.capacity),
        ("Allocatable", status.allocatable),
    ] {
        text.section(0, name);
        for (resource, amount) in amounts.unwrap_or_default() {
            text.pair(1, &resource, &amount.0);
        }
    }
    if let Some(info) = status.node_info {
        text.section(0, "System Info");
        for (name, fact) in [
            ("Machine ID", info.machine_id),
            ("Boot ID", info.boot_id),
            ("Kernel Version", info.kernel_version),
            ("OS Image", info.os_image),
            ("Operating System", info.operating_system),
            ("Architecture", info.architecture),
            ("Container Runtime Version", info.container_runtime_version),
            ("Agent Version", info.kubelet_version),
        ] {
            text.pair(1, name, fact);
        }
    }
    text.pair(0, "PodCIDR", spec.pod_cidr.as_deref().unwrap_or(NONE));
    on_it(text, pods, now);
}

/// The pods that have not come to their end, with what they ask for.
fn on_it(text: &mut Text, pods: &[Pod], now: Timestamp) {
    let ended = |pod: &&Pod| {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        !matches!(phase, Some("Succeeded" | "Failed"))
    };
    let alive: Vec<&Pod> = pods.iter().filter(ended).collect();
    text.section(0, "Non-terminated Pods");
    let header = [
        "Namespace",
        "Name",
        "CPU Requests",
        "CPU Limits",
        "Memory Requests",
        "Memory Limits",
        "Age",
    ];
    let mut rows = vec![header.map(String::from).to_vec()];
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for pod in alive {
        let mut row = vec![
            pod.metadata.namespace.clone().unwrap_or_default(),
            pod.metadata.name.clone().unwrap_or_default(),
        ];
        for resource in ["cpu", "memory"] {
            let (request, limit) = amounts(pod, resource);
            let sum = sums.entry(resource).or_default();
            *sum = (sum.0 + request, sum.1 + limit);
            row.extend([shown(resource, request), shown(resource, limit)]);
        }
        row.push(age::since(pod.metadata.creation_timestamp.as_ref(), now));
        rows.push(row);
    }
    text.table(1, rows);
    text.section(0, "Allocated resources");
    let mut rows = vec![
        ["Resource", "Requests", "Limits"]
            .map(String::from)
            .to_vec(),
    ];
    for (resource, (request, limit)) in sums {
        rows.push(vec![
            resource.to_string(),
            shown(resource, request),
            shown(resource, limit),
        ]);
    }
    text.table(1, rows);
}

/// What a pod asks for and may have, in thousandths, as the scheduler counts it.
fn amounts(pod: &Pod, resource: &str) -> (u64, u64) {
    let of = |container: &Container| {
        let resources = container.resources.as_ref();
        let amount = |amounts: Option<&BTreeMap<String, _>>| {
            let found = amounts.and_then(|amounts| amounts.get(resource));
            found
                .and_then(Quantity::of)
                .map_or(0, |quantity| quantity.millis())
        };
        [
            amount(resources.and_then(|r| r.requests.as_ref())),
            amount(resources.and_then(|r| r.limits.as_ref())),
        ]
    };
    let [requests, limits] = pod.spec.as_ref().map_or([0; 2], |spec| effective(spec, of));
    (requests, limits)
}

fn shown(resource: &str, millis: u64) -> String {
    match resource {
        "cpu" => format!("{millis}m"),
        _ => format!("{}Mi", millis / 1000 / (1 << 20)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_counts_as_the_scheduler_counts_it() {
        let resources = |cpu: &str| json!({"requests": {"cpu": cpu}, "limits": {"cpu": "2"}});
        let pod = json!({"spec": {
        "containers": [{"name": "main", "resources": resources("100m")}],
        "initContainers": [
            {"name": "side", "restartPolicy": "Always", "resources": resources("500m")},
            {"name": "init", "resources": resources("1200m")},
        ]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        assert_eq!(amounts(&pod, "cpu"), (1_700, 4_000));
        assert_eq!(amounts(&pod, "memory"), (0, 0));
    }
}
