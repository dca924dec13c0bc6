//! A container's OCI spec from the agent's message, word for word. Pure.
//!
//! Decides nothing: defaults, lists and limits are in the message. Every field that
//! oci-spec would fill with a default of its own is set here. Called by `create.rs`.

use std::path::PathBuf;

use agent_cgroup::{GroupPath, PathError, Setup};
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, Capability, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder,
    LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder, Process,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, User, UserBuilder,
};
use proto::v1::{ShimCreate, ShimExec, ShimMount};

use crate::capability::CapabilitySet;
use crate::legacy::View;

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
}

/// What the executor needs until it gives them up: loading a filter without no_new_privs,
/// dropping from the bounding set, and giving the standard streams to the user.
const STARTING: [&str; 3] = ["CAP_SYS_ADMIN", "CAP_SETPCAP", "CAP_CHOWN"];

/// The capabilities that the container's program has: what is asked for, as far
/// as the machine has it (`bounding`).
pub(crate) fn capabilities(
    create: &ShimCreate,
    bounding: CapabilitySet,
) -> Result<CapabilitySet, SpecError> {
    let wanted = CapabilitySet::from_names(&create.capabilities);
    Ok(wanted
        .map_err(SpecError::Capability)?
        .intersection(bounding))
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
    linux
        .set_masked_paths(Some(create.masked_paths.clone()))
        .set_readonly_paths(Some(create.read_only_paths.clone()))
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
    // The UTS namespace that it joins has its hostname.
    spec.set_hostname(None).set_hooks(None);
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
    if exec.tty {
        env.extend(create.terminal_env.iter().cloned());
    }
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
        ("cwd", &create.cwd),
    ] {
        if value.is_empty() {
            return Err(SpecError::Empty(name));
        }
    }
    if create.args.is_empty() {
        return Err(SpecError::Empty("args"));
    }
    // libcontainer would ask the C library for a home, inside the container, which may
    // load code from there.
    let is_home = |entry: &String| entry.strip_prefix("HOME=").is_some_and(|h| !h.is_empty());
    if !create.env.iter().any(is_home) {
        return Err(SpecError::Empty("HOME"));
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
    let mut process = ProcessBuilder::default()
        .terminal(create.tty)
        .user(user(create)?)
        .args(create.args.clone())
        .env(create.env.clone())
        .cwd(PathBuf::from(&create.cwd))
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
    if create.cgroup_ns {
        add(LinuxNamespaceType::Cgroup, "")?;
    }
    Ok(namespaces)
}

/// Type of the mount that shows a container its groups.
const GROUPS: &str = "cgroup";

/// How the executor mounts a container's version 1 groups, if it has to: libcontainer
/// would take as long for these as for all the rest of the mounts.
pub(crate) fn group_view(create: &ShimCreate, setup: Setup) -> Option<View> {
    let asked = create.mounts.iter().find(|m| m.r#type == GROUPS)?;
    (setup != Setup::Unified).then(|| View {
        read_only: asked.options.iter().any(|o| o == "ro"),
    })
}

fn mounts(create: &ShimCreate, setup: Setup) -> Result<Vec<Mount>, SpecError> {
    let by_libcontainer = |m: &&ShimMount| setup == Setup::Unified || m.r#type != GROUPS;
    let asked = create.mounts.iter().filter(by_libcontainer);
    asked
        .map(|m| mount(&m.destination, &m.r#type, &m.source, m.options.clone()))
        .collect()
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

    fn create() -> ShimCreate {
        ShimCreate {
            id: "uid_web_0".into(),
            rootfs: "/rootfs".into(),
            cgroup: "/hydrofoil/pod-uid/web_0".into(),
            net_ns: "/run/ns/uid/net".into(),
            cgroup_ns: true,
            args: vec!["true".into()],
            cwd: "/srv".into(),
            env: vec!["PATH=/bin".into(), "HOME=/root".into()],
            terminal_env: vec!["TERM=xterm".into()],
            capabilities: vec!["CAP_CHOWN".into(), "CAP_NET_RAW".into()],
            ..ShimCreate::default()
        }
    }

    fn surroundings() -> Surroundings {
        Surroundings {
            bounding: CapabilitySet::ALL,
            setup: Setup::Unified,
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
        assert_eq!(spec["process"]["cwd"], "/srv");
        let env = serde_json::json!(["PATH=/bin", "HOME=/root"]);
        assert_eq!(spec["process"]["env"], env);
        assert_eq!(spec["mounts"], serde_json::json!([]));
        assert_eq!(spec["linux"]["maskedPaths"], serde_json::json!([]));
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
        let all = ShimCreate {
            capabilities: CapabilitySet::ALL.names().map(str::to_owned).collect(),
            ..create()
        };
        let bounding = CapabilitySet::from_names(&["CAP_CHOWN".to_owned()]).unwrap();
        assert_eq!(capabilities(&all, bounding).unwrap(), bounding);
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
            cgroup_ns: false,
            ..create()
        };
        assert_eq!(of(&host), ["ipc:new", "uts:new", "mount:new"]);
    }

    #[test]
    fn mounts_are_those_of_the_message_and_groups_those_of_the_machine() {
        let one = |destination: &str, typ: &str, option: &str| ShimMount {
            source: typ.into(),
            destination: destination.into(),
            r#type: typ.into(),
            options: vec![option.into()],
        };
        let create = ShimCreate {
            mounts: vec![
                one("/proc", "proc", "nosuid"),
                one("/sys/fs/cgroup", "cgroup", "ro"),
                one("/data", "bind", "rbind"),
            ],
            ..create()
        };
        let places = |setup| -> Vec<PathBuf> {
            let mounts = mounts(&create, setup).unwrap();
            mounts.iter().map(|m| m.destination().clone()).collect()
        };
        let of = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        let all = ["/proc", "/sys/fs/cgroup", "/data"];
        assert_eq!(places(Setup::Unified), of(&all));
        assert!(group_view(&create, Setup::Unified).is_none());
        for setup in [Setup::Hybrid, Setup::Legacy] {
            assert_eq!(places(setup), of(&["/proc", "/data"]));
            assert!(group_view(&create, setup).unwrap().read_only);
        }
    }

    #[test]
    fn hidden_paths_are_those_of_the_message() {
        let spec = json(&ShimCreate {
            masked_paths: vec!["/proc/kcore".into()],
            read_only_paths: vec!["/proc/sys".into()],
            ..create()
        });
        let paths = |name: &str| spec["linux"][name].clone();
        assert_eq!(paths("maskedPaths"), serde_json::json!(["/proc/kcore"]));
        assert_eq!(paths("readonlyPaths"), serde_json::json!(["/proc/sys"]));
    }

    #[test]
    fn the_environment_of_a_further_process() {
        for (tty, expected) in [
            (false, &["PATH=/bin", "HOME=/root"][..]),
            (true, &["PATH=/bin", "HOME=/root", "TERM=xterm"]),
        ] {
            let asked = ShimExec {
                args: vec!["sh".into()],
                tty,
                ..ShimExec::default()
            };
            let process = exec(&create(), &asked, &surroundings()).unwrap();
            assert_eq!(process.env().clone().unwrap(), expected);
        }
    }

    #[test]
    fn what_is_not_finished_is_refused() {
        type Spoil = fn(&mut ShimCreate);
        let rows: [(&str, Spoil); 4] = [
            ("args is empty", |c| c.args.clear()),
            ("cwd is empty", |c| c.cwd.clear()),
            ("HOME is empty", |c| c.env.truncate(1)),
            ("HOME is empty", |c| c.env[1] = "HOME=".into()),
        ];
        for (text, spoil) in rows {
            let mut create = create();
            spoil(&mut create);
            assert_eq!(check(&create).unwrap_err().to_string(), text);
        }
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
