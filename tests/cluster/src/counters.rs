//! What the BPF maps of a node counted, as `foil bpf ... -o json` and `bpftool` print it.
//!
//! Called by the cases.

use crate::objects;
use serde_json::Value;
use std::collections::BTreeMap;
use tests_harness::{Cluster, process};

/// Connections that a node's programs gave to each backend of the service, by pod address.
///
/// # Panics
/// If `foil` prints no JSON list.
pub fn connections(cluster: &Cluster, node: usize, service: &str) -> BTreeMap<String, u64> {
    let text = objects::bpf(cluster, node, &["backend", "list", "-o", "json"]);
    let rows: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let mut counts = BTreeMap::new();
    for row in rows.as_array().into_iter().flatten() {
        if objects::is_of_service(cluster, row, service) {
            let address = row["address"].as_str().unwrap_or_default().to_owned();
            *counts.entry(address).or_insert(0) += row["connections"].as_u64().unwrap_or_default();
        }
    }
    counts
}

/// `bpftool map dump pinned PINS/NAME`, as JSON.
///
/// # Panics
/// If bpftool fails.
pub fn dump(cluster: &Cluster, node: usize, map: &str) -> String {
    let mut command = std::process::Command::new("bpftool");
    let pin = cluster.nodes()[node].pins.join(map);
    process::run(command.args(["map", "dump", "pinned"]).arg(pin)).success()
}
