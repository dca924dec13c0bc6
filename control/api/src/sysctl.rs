//! Sysctls of a pod: which names are allowed. Kubernetes' list of safe sysctls;
//! its unsafe ones are opted into on a node, which Hydrofoil does not offer.
//! Called by `podspec`.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PodSpec;

use crate::invalid::{Causes, Field};

/// Sysctls that are namespaced, isolated between pods, and without effect on the
/// node's other pods.
const SAFE: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

const MAX_BYTES: usize = 253;

/// Judges `securityContext.sysctls`; `at` is the PodSpec.
pub(crate) fn validate(spec: &PodSpec, at: &Field, causes: &mut Causes) {
    let context = spec.security_context.as_ref();
    let sysctls = context.and_then(|context| context.sysctls.as_ref());
    let mut names = BTreeSet::new();
    for (i, sysctl) in sysctls.into_iter().flatten().enumerate() {
        let at = at.child("securityContext.sysctls").index(i).child("name");
        let name = sysctl.name.as_str();
        if name.is_empty() {
            causes.required(&at, "");
            continue;
        }
        if !is_name(name) {
            let detail = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            causes.invalid(&at, name, detail);
            continue;
        }
        let dotted = dotted(name);
        let shared = if dotted.starts_with("net.") && spec.host_network == Some(true) {
            Some("hostNetwork")
        } else if dotted.starts_with("kernel.") && spec.host_ipc == Some(true) {
            Some("hostIPC")
        } else {
            None
        };
        if !SAFE.contains(&dotted.as_str()) {
            let detail = format!(
                "unsafe sysctls are not supported, safe are {}",
                SAFE.join(", ")
            );
            causes.forbidden(&at, detail);
        } else if let Some(field) = shared {
            let detail = format!("may not be specified when '{field}' is true");
            causes.invalid(&at, name, detail);
        }
        if !names.insert(dotted) {
            causes.duplicate(&at, name);
        }
    }
}

fn is_name(name: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= MAX_BYTES
        && name.split(['.', '/']).all(|part| {
            part.starts_with(word)
                && part.ends_with(word)
                && part.chars().all(|c| word(c) || "-_".contains(c))
        })
}

/// The first separator says which form a name has; in the form with slashes, a
/// dot is part of a word (`net/ipv4/conf/eth0.100/forwarding`).
fn dotted(name: &str) -> String {
    if name
        .find(['.', '/'])
        .is_none_or(|at| name[at..].starts_with('.'))
    {
        return name.to_owned();
    }
    let swap = |c: char| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    name.chars().map(swap).collect()
}
