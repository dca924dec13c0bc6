//! Resident memory of our processes, with the pods of the benchmark running.

use super::sample;
use serde_json::json;
use std::fs;
use tests_harness::Cluster;

/// `rss.agent`, `rss.shim`, `rss.control`, in MiB.
pub(super) fn run(cluster: &Cluster) {
    let pods = crate::objects::pods(cluster).len();
    for (id, program) in [
        ("rss.agent", "foil-agent"),
        ("rss.shim", "foil-shim"),
        ("rss.control", "foil-control"),
    ] {
        let samples = resident(cluster, program, "VmRSS:");
        // Of it, what is the process's own and not a page of a file that others share.
        let own = sample::median(&resident(cluster, program, "RssAnon:"));
        let varies = [("pods", json!(pods)), ("own", json!(sample::rounded(own)))];
        sample::print(id, "MiB", &samples, &varies);
    }
}

/// A line of the status of each process of that program that belongs to this cluster.
fn resident(cluster: &Cluster, program: &str, field: &str) -> Vec<f64> {
    let mut samples = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        let exe = fs::read_link(path.join("exe")).unwrap_or_default();
        if exe.file_name().is_none_or(|name| name != program) {
            continue;
        }
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        if !String::from_utf8_lossy(&line).contains(cluster.name()) {
            continue;
        }
        let status = fs::read_to_string(path.join("status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = resident.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
        samples.extend(kib.map(|kib| kib / 1024.0));
    }
    samples
}
