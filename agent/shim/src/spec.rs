//! A container's OCI spec from the agent's message. Pure.
//!
//! Every field that oci-spec would fill with a default of its own is set here.
//! Called by `create.rs` for containers and by `exec.rs` for processes in them.

use std::path::PathBuf;

use agent_cgroup::{GroupPath, MOUNTED, PathError, Setup};
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, Capability, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder,
    LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder, Process,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, User, UserBuilder,
};
use proto::v1::{ShimCreate, ShimExec};

use crate::capability::CapabilitySet;

/// The message makes no sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("{0} is empty")]
    Empty(&'static str),
    #[error("id {0:?} is not a plain name")]
    Id(String),
    #[error("cgroup: {0}")]
    Cgroup(#[from] PathError),
    #[error("no capability {0:?}")]
    Capability(String),
    #[error("spec: {0}")]
    Oci(#[from] OciSpecError),
}

/// What the spec depends on beside the message.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// What a container may have at most.
    pub(crate) bounding: CapabilitySet,
    pub(crate) setup: Setup,
    /// Home of the container's user.
    pub(crate) home: String,
}

/// What images expect where they say nothing; Docker's.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Hidden from containers that are not privileged; Kubernetes' list.
const MASKED: [&str; 13] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/sys/devices/system/cpu/cpu0/thermal_throttle",
];

/// Read-only in containers that are not privileged.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What the default executor needs until it gives them up: loading a filter
/// without no_new_privs, and dropping from the bounding set.
const STARTING: [&str; 2] = ["CAP_SYS_ADMIN", "CAP_SETPCAP"];

/// The capabilities that the container's program has: what is asked for, as far
/// as the machine has it (`bounding`).
pub(crate) fn capabilities(
    create: &ShimCreate,
    bounding: CapabilitySet,
) -> Result<CapabilitySet, SpecError> {
    let wanted = if create.privileged {
        CapabilitySet::ALL
    } else {
        CapabilitySet::from_names(&create.capabilities).map_err(SpecError::Capability)?
    };
    Ok(wanted.intersection(bounding))
}

/// The spec of a container.
pub(crate) fn container(
    create: &ShimCreate,
    surroundings: &Surroundings,
) -> Result<Spec, SpecError> {
    check(create)?;
    let mut linux = LinuxBuilder::default()
        .cgroups_path(PathBuf::from(&create.cgroup))
        .namespaces(namespaces(create)?)
        .sysctl(
            create
                .sysctls
                .clone()
                .into_iter()
                .collect::<std::collections::HashMap<_, _>>(),
        )
        .uid_mappings(Vec::new())
        .gid_mappings(Vec::new())
        // The default devices are made by libcontainer; these come on top.
        .devices(Vec::new())
        // A mount that a volume propagates to the node must not stay behind in the container.
        .rootfs_propagation("slave")
        .build()?;
    let paths = |list: &[&str]| {
        let list = if create.privileged { &[] } else { list };
        Some(list.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>())
    };
    linux
        .set_masked_paths(paths(&MASKED))
        .set_readonly_paths(paths(&READ_ONLY))
        .set_seccomp(None)
        // The group is there, with its limits: libcontainer only joins it.
        .set_resources(None);
    let mut spec = SpecBuilder::default()
        .version("1.0.2")
        .root(
            RootBuilder::default()
                .path(PathBuf::from(&create.rootfs))
                .readonly(create.read_only_root)
                .build()?,
        )
        .mounts(mounts(create, surroundings.setup)?)
        .process(process(create, surroundings)?)
        .linux(linux)
        .annotations(std::collections::HashMap::new())
        .build()?;
    let own_uts = create.uts_ns.is_empty() && !create.hostname.is_empty();
    // A joined UTS namespace has its hostname already.
    spec.set_hostname(own_uts.then(|| create.hostname.clone()))
        .set_hooks(None);
    Ok(spec)
}

/// The spec of a further process in a container.
pub(crate) fn exec(
    create: &ShimCreate,
    exec: &ShimExec,
    surroundings: &Surroundings,
) -> Result<Process, SpecError> {
    if exec.args.is_empty() {
        return Err(SpecError::Empty("args"));
    }
    let mut env = create.env.clone();
    env.extend(exec.env.iter().cloned());
    let asked = ShimCreate {
        args: exec.args.clone(),
        env,
        tty: exec.tty,
        ..create.clone()
    };
    process(&asked, surroundings)
}

/// What must hold before anything is done: after this, the id is a file's name and
/// the group is one that may be killed and removed.
pub(crate) fn check(create: &ShimCreate) -> Result<GroupPath, SpecError> {
    for (name, value) in [
        ("id", &create.id),
        ("rootfs", &create.rootfs),
        ("bundle", &create.bundle),
    ] {
        if value.is_empty() {
            return Err(SpecError::Empty(name));
        }
    }
    if create.args.is_empty() {
        return Err(SpecError::Empty("args"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if matches!(create.id.as_str(), "." | "..") || !create.id.chars().all(plain) {
        return Err(SpecError::Id(create.id.clone()));
    }
    CapabilitySet::from_names(&create.capabilities).map_err(SpecError::Capability)?;
    // An empty one would be our own group, and deleting the container would kill us.
    Ok(GroupPath::parse(&create.cgroup)?)
}

fn process(create: &ShimCreate, surroundings: &Surroundings) -> Result<Process, SpecError> {
    let mut env = Vec::with_capacity(create.env.len() + 1);
    for entry in &create.env {
        let name = entry.split('=').next().unwrap_or_default();
        // Later ones win, at the place of the first.
        match env
            .iter_mut()
            .find(|e: &&mut String| e.split('=').next() == Some(name))
        {
            Some(earlier) => *earlier = entry.clone(),
            None => env.push(entry.clone()),
        }
    }
    let mut default = |name: &str, value: &str| {
        // Set to nothing is not set: libcontainer and the look-up of programs see it so.
        env.retain(|e| e.strip_prefix(name) != Some("="));
        if !env
            .iter()
            .any(|e| e.split_once('=').is_some_and(|(n, _)| n == name))
        {
            env.push(format!("{name}={value}"));
        }
    };
    default("PATH", PATH);
    default("HOME", &surroundings.home);
    if create.tty {
        default("TERM", "xterm");
    }
    let cwd = if create.cwd.is_empty() {
        "/"
    } else {
        &create.cwd
    };
    let mut process = ProcessBuilder::default()
        .terminal(create.tty)
        .user(user(create)?)
        .args(create.args.clone())
        .env(env)
        .cwd(PathBuf::from(cwd))
        .capabilities(starting_capabilities(capabilities(
            create,
            surroundings.bounding,
        )?)?)
        // None: those of the agent, which the service manager sets for the node.
        .rlimits(Vec::new())
        .build()?;
    process
        // Some(false) is taken for true in places.
        .set_no_new_privileges(create.no_new_privileges.then_some(true))
        .set_apparmor_profile(None)
        .set_selinux_label(None)
        // Written by the worker, which can do without it where it is refused.
        .set_oom_score_adj(None);
    Ok(process)
}

fn user(create: &ShimCreate) -> Result<User, SpecError> {
    Ok(UserBuilder::default()
        .uid(create.uid)
        .gid(create.gid)
        .additional_gids(create.additional_gids.clone())
        .build()?)
}

/// What libcontainer sets: the executor narrows it to the wanted ones.
fn starting_capabilities(wanted: CapabilitySet) -> Result<LinuxCapabilities, SpecError> {
    let mut set = wanted;
    for name in STARTING {
        set = set.with(name).unwrap_or(set);
    }
    let set: Capabilities = set
        .names()
        .filter_map(|name| name.trim_start_matches("CAP_").parse::<Capability>().ok())
        .collect();
    let none = Capabilities::new();
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set)
        .inheritable(none.clone())
        .ambient(none)
        .build()?)
}

fn namespaces(create: &ShimCreate) -> Result<Vec<LinuxNamespace>, SpecError> {
    let mut namespaces = Vec::new();
    let mut add = |typ, path: &str| -> Result<(), SpecError> {
        let mut namespace = LinuxNamespaceBuilder::default().typ(typ).build()?;
        namespace.set_path((!path.is_empty()).then(|| PathBuf::from(path)));
        namespaces.push(namespace);
        Ok(())
    };
    for (typ, path) in [
        (LinuxNamespaceType::Network, &create.net_ns),
        (LinuxNamespaceType::Ipc, &create.ipc_ns),
        (LinuxNamespaceType::Uts, &create.uts_ns),
        (LinuxNamespaceType::Pid, &create.pid_ns),
    ] {
        if path != "host" {
            add(typ, path)?;
        }
    }
    add(LinuxNamespaceType::Mount, "")?;
    if !create.privileged {
        add(LinuxNamespaceType::Cgroup, "")?;
    }
    Ok(namespaces)
}

/// Whether the executor mounts a container's version 1 groups: libcontainer would
/// take as long for these as for all the rest of the mounts.
pub(crate) fn mounts_groups(create: &ShimCreate, setup: Setup) -> bool {
    setup != Setup::Unified && !create.mounts.iter().any(|m| m.destination == MOUNTED)
}

/// The usual mounts, then the agent's; one of the agent's at the same place wins.
fn mounts(create: &ShimCreate, setup: Setup) -> Result<Vec<Mount>, SpecError> {
    let access = if create.privileged { "rw" } else { "ro" };
    let usual: [(&str, &str, &str, &[&str]); 7] = [
        ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        (
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        (
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        (
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        (
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", access],
        ),
        (
            MOUNTED,
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        ),
    ];
    let mut mounts = Vec::with_capacity(usual.len() + create.mounts.len());
    for (destination, typ, source, options) in usual {
        let replaced = create.mounts.iter().any(|m| m.destination == destination);
        if !replaced && (destination != MOUNTED || setup == Setup::Unified) {
            let options = options.iter().map(|o| (*o).to_owned()).collect();
            mounts.push(mount(destination, typ, source, options)?);
        }
    }
    for asked in &create.mounts {
        mounts.push(mount(
            &asked.destination,
            &asked.r#type,
            &asked.source,
            asked.options.clone(),
        )?);
    }
    Ok(mounts)
}

fn mount(
    destination: &str,
    typ: &str,
    source: &str,
    options: Vec<String>,
) -> Result<Mount, SpecError> {
    Ok(MountBuilder::default()
        .destination(PathBuf::from(destination))
        .typ(typ)
        .source(PathBuf::from(source))
        .options(options)
        .build()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::ShimMount;

    fn create() -> ShimCreate {
        ShimCreate {
            id: "uid_web_0".into(),
            rootfs: "/rootfs".into(),
            bundle: "/bundle".into(),
            cgroup: "/hydrofoil/pod-uid/web_0".into(),
            net_ns: "/run/ns/uid/net".into(),
            args: vec!["true".into()],
            capabilities: vec!["CAP_CHOWN".into(), "CAP_NET_RAW".into()],
            ..ShimCreate::default()
        }
    }

    fn surroundings() -> Surroundings {
        Surroundings {
            bounding: CapabilitySet::ALL,
            setup: Setup::Unified,
            home: "/root".into(),
        }
    }

    fn json(create: &ShimCreate) -> serde_json::Value {
        serde_json::to_value(container(create, &surroundings()).unwrap()).unwrap()
    }

    #[test]
    fn nothing_of_oci_specs_own_taste_is_left() {
        let spec = json(&create());
        assert_eq!(spec["hostname"], serde_json::Value::Null);
        assert_eq!(spec["process"]["rlimits"], serde_json::json!([]));
        assert_eq!(spec["process"]["cwd"], "/");
        assert_eq!(spec["process"]["noNewPrivileges"], serde_json::Value::Null);
        assert_eq!(spec["linux"]["seccomp"], serde_json::Value::Null);
        assert_eq!(spec["linux"]["cgroupsPath"], "/hydrofoil/pod-uid/web_0");
        assert_eq!(spec["linux"]["resources"], serde_json::Value::Null);
        assert_eq!(spec["root"]["readonly"], false);
    }

    #[test]
    fn capabilities_are_those_asked_for_and_those_of_the_start() {
        let spec = json(&create());
        let mut effective: Vec<String> =
            serde_json::from_value(spec["process"]["capabilities"]["effective"].clone()).unwrap();
        effective.sort();
        assert_eq!(
            effective,
            ["CAP_CHOWN", "CAP_NET_RAW", "CAP_SETPCAP", "CAP_SYS_ADMIN"]
        );
        assert_eq!(
            spec["process"]["capabilities"]["ambient"],
            serde_json::json!([])
        );
        let wanted = capabilities(&create(), CapabilitySet::ALL).unwrap();
        assert_eq!(
            wanted.names().collect::<Vec<_>>(),
            ["CAP_CHOWN", "CAP_NET_RAW"]
        );
        let privileged = ShimCreate {
            privileged: true,
            ..create()
        };
        let bounding = CapabilitySet::from_names(&["CAP_CHOWN".to_owned()]).unwrap();
        assert_eq!(capabilities(&privileged, bounding).unwrap(), bounding);
    }

    #[test]
    fn namespaces_are_joined_made_or_the_nodes() {
        let of = |create: &ShimCreate| -> Vec<String> {
            let spec = json(create);
            let all = spec["linux"]["namespaces"].as_array().unwrap();
            let one = |n: &serde_json::Value| {
                format!(
                    "{}:{}",
                    n["type"].as_str().unwrap(),
                    n["path"].as_str().unwrap_or("new")
                )
            };
            all.iter().map(one).collect()
        };
        assert_eq!(
            of(&create()),
            [
                "network:/run/ns/uid/net",
                "ipc:new",
                "uts:new",
                "pid:new",
                "mount:new",
                "cgroup:new"
            ]
        );
        let host = ShimCreate {
            net_ns: "host".into(),
            pid_ns: "host".into(),
            ..create()
        };
        assert_eq!(of(&host), ["ipc:new", "uts:new", "mount:new", "cgroup:new"]);
    }

    #[test]
    fn a_mount_of_the_pod_takes_the_place_of_the_usual_one() {
        let shm = ShimMount {
            source: "/pod/shm".into(),
            destination: "/dev/shm".into(),
            r#type: "bind".into(),
            options: vec!["rbind".into()],
        };
        let spec = json(&ShimCreate {
            mounts: vec![shm],
            ..create()
        });
        let mounts = spec["mounts"].as_array().unwrap();
        let places: Vec<_> = mounts
            .iter()
            .map(|m| m["destination"].as_str().unwrap())
            .collect();
        assert_eq!(
            places,
            [
                "/proc",
                "/dev",
                "/dev/pts",
                "/dev/mqueue",
                "/sys",
                "/sys/fs/cgroup",
                "/dev/shm"
            ]
        );
        assert_eq!(mounts[6]["source"], "/pod/shm");
    }

    #[test]
    fn privileged_hides_nothing() {
        let spec = json(&ShimCreate {
            privileged: true,
            ..create()
        });
        assert_eq!(spec["linux"]["maskedPaths"], serde_json::json!([]));
        assert_eq!(spec["linux"]["readonlyPaths"], serde_json::json!([]));
    }

    #[test]
    fn the_environment_of_a_further_process() {
        let create = ShimCreate {
            env: vec!["A=1".into(), "B=2".into()],
            ..create()
        };
        let asked = ShimExec {
            args: vec!["sh".into()],
            env: vec!["A=3".into()],
            tty: true,
            ..ShimExec::default()
        };
        let process = exec(&create, &asked, &surroundings()).unwrap();
        let env = process.env().clone().unwrap();
        assert_eq!(env[..2], ["A=3", "B=2"]);
        assert_eq!(env[2], format!("PATH={PATH}"));
        assert_eq!(env[3..], ["HOME=/root", "TERM=xterm"]);
    }

    #[test]
    fn groups_that_are_not_below_a_parent_are_refused() {
        for cgroup in ["", "/", "web", "/web", "/a//b", "/a/../b", "/a/."] {
            let create = ShimCreate {
                cgroup: cgroup.into(),
                ..create()
            };
            let refused = check(&create);
            assert!(matches!(refused, Err(SpecError::Cgroup(_))), "{cgroup:?}");
        }
    }

    #[test]
    fn ids_that_are_not_plain_names_are_refused() {
        assert!(check(&create()).is_ok());
        for id in [".", "..", "a/b", "../x", "a b", "\u{e4}"] {
            let create = ShimCreate {
                id: id.into(),
                ..create()
            };
            assert!(matches!(check(&create), Err(SpecError::Id(_))), "{id:?}");
        }
        let create = ShimCreate {
            id: String::new(),
            ..create()
        };
        assert!(matches!(check(&create), Err(SpecError::Empty("id"))));
    }
}
