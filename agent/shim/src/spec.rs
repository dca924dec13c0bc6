//! A container's OCI spec from the agent's message. Pure.
//!
//! Every field that oci-spec would fill with a default of its own is set here.
//! Called by `create.rs` for containers and by `exec.rs` for processes in them.

use std::path::PathBuf;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, Capability, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder,
    LinuxCpuBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
    LinuxMemoryBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, Mount, MountBuilder, Process,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, User, UserBuilder,
};
use proto::v1::{ShimCreate, ShimExec, ShimResources};

use crate::capability::CapabilitySet;

/// The message makes no sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("{0} is empty")]
    Empty(&'static str),
    #[error("cgroup {0:?} is not of the form /PARENT/...")]
    Cgroup(String),
    #[error("no capability {0:?}")]
    Capability(String),
    #[error("spec: {0}")]
    Oci(#[from] OciSpecError),
}

/// What images expect where they say nothing; Docker's.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
pub(crate) fn container(create: &ShimCreate, bounding: CapabilitySet) -> Result<Spec, SpecError> {
    check(create)?;
    let mut linux = LinuxBuilder::default()
        .cgroups_path(PathBuf::from(&create.cgroup))
        .namespaces(namespaces(create)?)
        .resources(resources(create)?)
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
        .set_seccomp(None);
    let mut spec = SpecBuilder::default()
        .version("1.0.2")
        .root(
            RootBuilder::default()
                .path(PathBuf::from(&create.rootfs))
                .readonly(create.read_only_root)
                .build()?,
        )
        .mounts(mounts(create)?)
        .process(process(create, bounding)?)
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
    bounding: CapabilitySet,
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
    process(&asked, bounding)
}

fn check(create: &ShimCreate) -> Result<(), SpecError> {
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
    // An empty one would be our own group, and deleting the container would kill us.
    let parts = create.cgroup.strip_prefix('/').unwrap_or_default();
    if !parts.contains('/') || parts.split('/').any(|p| matches!(p, "" | "." | "..")) {
        return Err(SpecError::Cgroup(create.cgroup.clone()));
    }
    Ok(())
}

fn process(create: &ShimCreate, bounding: CapabilitySet) -> Result<Process, SpecError> {
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
    if !env.iter().any(|e| e.starts_with("PATH=")) {
        env.push(PATH.to_owned());
    }
    if create.tty && !env.iter().any(|e| e.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
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
        .capabilities(starting_capabilities(capabilities(create, bounding)?)?)
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

fn resources(create: &ShimCreate) -> Result<LinuxResources, SpecError> {
    let asked = create.resources.unwrap_or_default();
    let mut resources = LinuxResourcesBuilder::default()
        .devices(vec![all_devices(create.privileged)?])
        .build()?;
    resources
        .set_cpu(cpu(&asked)?)
        .set_memory(memory(&asked)?)
        .set_pids(pids(&asked)?);
    Ok(resources)
}

/// libcontainer allows the default devices after this rule.
fn all_devices(allow: bool) -> Result<LinuxDeviceCgroup, SpecError> {
    Ok(LinuxDeviceCgroupBuilder::default()
        .allow(allow)
        .typ(LinuxDeviceType::A)
        .access("rwm")
        .build()?)
}

fn cpu(asked: &ShimResources) -> Result<Option<oci_spec::runtime::LinuxCpu>, SpecError> {
    if asked.cpu_shares == 0 && asked.cpu_quota <= 0 {
        return Ok(None);
    }
    let mut cpu = LinuxCpuBuilder::default().build()?;
    if asked.cpu_shares > 0 {
        cpu.set_shares(Some(asked.cpu_shares));
    }
    if asked.cpu_quota > 0 {
        let period = if asked.cpu_period == 0 {
            100_000
        } else {
            asked.cpu_period
        };
        cpu.set_quota(Some(asked.cpu_quota))
            .set_period(Some(period));
    }
    Ok(Some(cpu))
}

fn memory(asked: &ShimResources) -> Result<Option<oci_spec::runtime::LinuxMemory>, SpecError> {
    if asked.memory_limit <= 0 {
        return Ok(None);
    }
    Ok(Some(
        LinuxMemoryBuilder::default()
            .limit(asked.memory_limit)
            .build()?,
    ))
}

fn pids(asked: &ShimResources) -> Result<Option<oci_spec::runtime::LinuxPids>, SpecError> {
    if asked.pids_limit <= 0 {
        return Ok(None);
    }
    Ok(Some(
        LinuxPidsBuilder::default()
            .limit(asked.pids_limit)
            .build()?,
    ))
}

/// The usual mounts, then the agent's; one of the agent's at the same place wins.
fn mounts(create: &ShimCreate) -> Result<Vec<Mount>, SpecError> {
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
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        ),
    ];
    let mut mounts = Vec::with_capacity(usual.len() + create.mounts.len());
    for (destination, typ, source, options) in usual {
        if !create.mounts.iter().any(|m| m.destination == destination) {
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
