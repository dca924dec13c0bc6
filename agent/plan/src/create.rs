//! A container's spec and its image to what the shim is told: arguments,
//! environment, capabilities, limits.
//!
//! Paths are not here: they follow from the instance's id and the node's layout,
//! which the daemon fills in; so does the user (`user.rs`), who is known only once
//! the image's root is mounted. Called by `container.rs`.

use proto::v1;

use crate::cgroup;
use crate::restart::{Role, init_role};
use crate::settings::Settings;
use crate::world::{ImageFacts, container_id};

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

/// PATH of a container whose image sets none.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a container cannot be asked for: CreateContainerConfigError.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub String);

/// What the shim is told, but for paths.
pub fn create(
    pod: &v1::PodSpec,
    container: &v1::ContainerSpec,
    attempt: u32,
    image: &ImageFacts,
    settings: &Settings,
) -> Result<v1::ShimCreate, ConfigError> {
    let security = container.security.clone().unwrap_or_default();
    let pod_security = pod.security.clone().unwrap_or_default();
    let args = args(container, image);
    let hostname = hostname(pod, settings);
    if args.is_empty() {
        return Err(ConfigError("no command specified".into()));
    }
    let mut groups = pod_security.supplemental_groups.clone();
    groups.extend(pod_security.fs_group);
    let additional_gids = groups
        .into_iter()
        .filter_map(|g| u32::try_from(g).ok())
        .collect();
    let resources = container.resources.unwrap_or_default();
    let seccomp = match (security.seccomp.as_str(), pod_security.seccomp.as_str()) {
        ("", pod) => pod,
        (own, _) => own,
    };
    Ok(v1::ShimCreate {
        id: container_id(&pod.uid, &container.name, attempt),
        pid_ns: if pod.host_pid {
            "host".into()
        } else {
            String::new()
        },
        args,
        cwd: first_of(&[&container.working_dir, &image.working_dir, "/"]),
        env: env(&hostname, container, image),
        additional_gids,
        resources: Some(cgroup::container(&pod.qos_class, &resources, settings)),
        capabilities: capabilities(&security),
        no_new_privileges: security.allow_privilege_escalation == Some(false),
        read_only_root: security.read_only_root_filesystem,
        privileged: security.privileged,
        seccomp: seccomp != "Unconfined" && !security.privileged,
        tty: container.tty,
        stdin: container.stdin,
        oom_score_adj: cgroup::oom_score_adj(
            &pod.qos_class,
            &resources,
            settings.capacity.memory_bytes,
        ),
        sysctls: pod_security.sysctls.clone(),
        hostname,
        log_max_bytes: settings.log_max_bytes,
        ..v1::ShimCreate::default()
    })
}

/// What the pod's host is called; a pod on the node's network has the node's name.
pub fn hostname(pod: &v1::PodSpec, settings: &Settings) -> String {
    first_of(&[&pod.hostname, &settings.node_name])
}

fn first_of(texts: &[&str]) -> String {
    texts
        .iter()
        .find(|t| !t.is_empty())
        .map(|t| (*t).to_owned())
        .unwrap_or_default()
}

/// `command` replaces the image's entry point and its arguments; `args` only the latter.
fn args(container: &v1::ContainerSpec, image: &ImageFacts) -> Vec<String> {
    let (entry, arguments) = match (container.command.is_empty(), container.args.is_empty()) {
        (true, true) => (&image.entrypoint, &image.cmd),
        (true, false) => (&image.entrypoint, &container.args),
        (false, _) => (&container.command, &container.args),
    };
    entry.iter().chain(arguments).cloned().collect()
}

fn env(hostname: &str, container: &v1::ContainerSpec, image: &ImageFacts) -> Vec<String> {
    let mut env: Vec<String> = Vec::with_capacity(image.env.len() + container.env.len() + 2);
    let mut put = |entry: String| {
        let name = entry.split('=').next().unwrap_or_default();
        let same = |e: &String| e.split('=').next() == Some(name);
        match env.iter().position(same) {
            Some(at) => env[at] = entry,
            None => env.push(entry),
        }
    };
    put(PATH.into());
    put(format!("HOSTNAME={hostname}"));
    if container.tty {
        put("TERM=xterm".into());
    }
    for entry in &image.env {
        put(entry.clone());
    }
    for variable in &container.env {
        put(format!("{}={}", variable.name, variable.value));
    }
    env
}

fn capabilities(security: &v1::ContainerSecurity) -> Vec<String> {
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

/// What a container is in its pod.
pub fn role(pod: &v1::PodSpec, name: &str) -> Role {
    pod.init_containers
        .iter()
        .find(|c| c.name == name)
        .map_or(Role::Main, init_role)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::settings;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|t| (*t).to_owned()).collect()
    }

    #[test]
    fn command_and_args_as_kubernetes_joins_them() {
        let image = ImageFacts {
            entrypoint: texts(&["/entry"]),
            cmd: texts(&["default"]),
            ..Default::default()
        };
        // (command, args, argv)
        let rows: [(&[&str], &[&str], &[&str]); 4] = [
            (&[], &[], &["/entry", "default"]),
            (&["/c"], &[], &["/c"]),
            (&[], &["a"], &["/entry", "a"]),
            (&["/c"], &["a"], &["/c", "a"]),
        ];
        for (command, arguments, argv) in rows {
            let container = v1::ContainerSpec {
                command: texts(command),
                args: texts(arguments),
                ..Default::default()
            };
            assert_eq!(args(&container, &image), argv, "{command:?} {arguments:?}");
        }
    }

    #[test]
    fn environment_later_ones_win() {
        let image = ImageFacts {
            env: texts(&["A=image", "PATH=/bin"]),
            ..Default::default()
        };
        let variable = |name: &str, value: &str| v1::EnvVar {
            name: name.into(),
            value: value.into(),
        };
        let container = v1::ContainerSpec {
            env: vec![variable("A", "1"), variable("B", "x=y"), variable("A", "2")],
            ..Default::default()
        };
        assert_eq!(
            env("h", &container, &image),
            texts(&["PATH=/bin", "HOSTNAME=h", "A=2", "B=x=y"])
        );
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
            let held = capabilities(&v1::ContainerSecurity {
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
    fn nothing_to_run_is_a_config_error() {
        let container = v1::ContainerSpec {
            name: "c".into(),
            ..Default::default()
        };
        let made = create(
            &v1::PodSpec::default(),
            &container,
            0,
            &ImageFacts::default(),
            &settings(),
        );
        assert_eq!(made.unwrap_err().0, "no command specified");
    }
}
