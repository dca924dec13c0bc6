//! The capabilities of a container, all of them by name: what it asks for, and what it
//! has without asking.
//!
//! Called by `create.rs`. What the machine itself lacks is the shim's affair.

use proto::v1;

/// Capabilities of a container that asks for none: what container runtimes agree on.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Every capability of Linux 6.18, capabilities(7).
const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// Names, sorted; a privileged container has every one.
pub fn held(security: &v1::ContainerSecurity) -> Vec<String> {
    let all = || {
        ALL_CAPABILITIES
            .iter()
            .map(|c| (*c).to_owned())
            .collect::<Vec<_>>()
    };
    if security.privileged {
        return all();
    }
    let named = |name: &String| {
        let name = name.to_ascii_uppercase();
        if name.starts_with("CAP_") {
            name
        } else {
            format!("CAP_{name}")
        }
    };
    let is_all = |name: &String| name.eq_ignore_ascii_case("all");
    let mut held: Vec<String> = if security.capabilities_add.iter().any(is_all) {
        all()
    } else if security.capabilities_drop.iter().any(is_all) {
        Vec::new()
    } else {
        DEFAULT_CAPABILITIES
            .iter()
            .map(|c| (*c).to_owned())
            .collect()
    };
    let dropped: Vec<String> = security
        .capabilities_drop
        .iter()
        .filter(|n| !is_all(n))
        .map(named)
        .collect();
    held.retain(|c| !dropped.contains(c));
    held.extend(
        security
            .capabilities_add
            .iter()
            .filter(|n| !is_all(n))
            .map(named),
    );
    held.sort();
    held.dedup();
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|t| (*t).to_owned()).collect()
    }

    #[test]
    fn capability_sets() {
        // (add, drop, has, lacks)
        let rows: [(&[&str], &[&str], &str, &str); 5] = [
            (&[], &[], "CAP_CHOWN", "CAP_SYS_ADMIN"),
            (&["SYS_TIME"], &["CHOWN"], "CAP_SYS_TIME", "CAP_CHOWN"),
            (&["NET_ADMIN"], &["ALL"], "CAP_NET_ADMIN", "CAP_KILL"),
            (&["ALL"], &["SYS_ADMIN"], "CAP_BPF", "CAP_SYS_ADMIN"),
            (&["net_raw"], &["all"], "CAP_NET_RAW", "CAP_CHOWN"),
        ];
        for (add, drop, has, lacks) in rows {
            let held = held(&v1::ContainerSecurity {
                capabilities_add: texts(add),
                capabilities_drop: texts(drop),
                ..Default::default()
            });
            assert!(held.contains(&has.to_owned()), "{add:?} {drop:?}: {held:?}");
            assert!(
                !held.contains(&lacks.to_owned()),
                "{add:?} {drop:?}: {held:?}"
            );
        }
    }

    #[test]
    fn privileged_has_all() {
        let security = v1::ContainerSecurity {
            privileged: true,
            capabilities_drop: texts(&["ALL"]),
            ..Default::default()
        };
        assert_eq!(held(&security).len(), ALL_CAPABILITIES.len());
    }
}
