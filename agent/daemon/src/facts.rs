//! What the node is, for the control plane: addresses, capacity, kernel.
//!
//! Read once at the start. Called by `health.rs`, which adds the conditions.

use std::fs;

use agent_plan::settings::{Resources, Settings};
use proto::v1;

fn text(path: &str) -> String {
    fs::read_to_string(path)
        .map(|t| t.trim().to_owned())
        .unwrap_or_default()
}

/// A value of os-release(5).
fn os_release(file: &str, key: &str) -> Option<String> {
    let prefix = format!("{key}=");
    let line = file.lines().find_map(|line| line.strip_prefix(&prefix))?;
    Some(line.trim_matches('"').to_owned())
}

/// The node's status, except its conditions.
pub(crate) fn status(settings: &Settings, allocatable: Resources, max_pods: u32) -> v1::NodeStatus {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    v1::NodeStatus {
        addresses: vec![settings.node_ip.to_string()],
        hostname: settings.node_name.clone(),
        cpu_millis: settings.capacity.cpu_millis,
        memory_bytes: settings.capacity.memory_bytes,
        allocatable_cpu_millis: Some(allocatable.cpu_millis),
        allocatable_memory_bytes: Some(allocatable.memory_bytes),
        max_pods,
        kernel_version: text("/proc/sys/kernel/osrelease"),
        os_image: os_release(&text("/etc/os-release"), "PRETTY_NAME").unwrap_or_default(),
        architecture: architecture.into(),
        boot_id: text("/proc/sys/kernel/random/boot_id"),
        machine_id: text("/etc/machine-id"),
        conditions: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::os_release;

    #[test]
    fn names_of_systems() {
        let file = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(
            os_release(file, "PRETTY_NAME").unwrap(),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(os_release(file, "ID"), None);
    }
}
