//! A container's spec and its image to what the shim is told: arguments,
//! environment, capabilities, limits.
//!
//! Paths are not here: they follow from the instance's id and the node's layout,
//! which the daemon fills in; so does the user (`user.rs`), who is known only once
//! the image's root is mounted. Called by `container.rs`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use proto::v1;

use crate::capability;
use crate::cgroup;
use crate::mount;
use crate::restart::{Role, init_role};
use crate::settings::Settings;
use crate::volume;
use crate::world::{ImageFacts, container_id};

/// PATH of a container that sets none, nor its image; Docker's.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Of a container with a terminal, and of further processes that have one.
const TERM: &str = "TERM=xterm";

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
    let env = env(&hostname(pod, settings), container, image);
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
        cgroup_ns: !security.privileged,
        pid_ns: if pod.host_pid {
            "host".into()
        } else {
            String::new()
        },
        args,
        cwd: first_of(&[&container.working_dir, &image.working_dir, "/"]),
        terminal_env: terminal_env(&env),
        env,
        mounts: mount::usual(security.privileged, &volume::mounts(pod, container)),
        masked_paths: mount::masked(security.privileged),
        read_only_paths: mount::read_only(security.privileged),
        additional_gids,
        resources: Some(cgroup::container(&pod.qos_class, &resources, settings)),
        capabilities: capability::held(&security),
        no_new_privileges: security.allow_privilege_escalation == Some(false),
        read_only_root: security.read_only_root_filesystem,
        all_devices: security.privileged,
        seccomp: seccomp != "Unconfined" && !security.privileged,
        tty: container.tty,
        stdin: container.stdin,
        oom_score_adj: cgroup::oom_score_adj(
            &pod.qos_class,
            &resources,
            settings.capacity.memory_bytes,
        ),
        sysctls: pod_security.sysctls.clone(),
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

/// The whole environment but for HOME, each name once: the container's own values win
/// over the image's, and those over the node's.
fn env(hostname: &str, container: &v1::ContainerSpec, image: &ImageFacts) -> Vec<String> {
    let mut entries = vec![format!("PATH={PATH}"), format!("HOSTNAME={hostname}")];
    entries.extend(container.tty.then(|| TERM.to_owned()));
    entries.extend(image.env.iter().cloned());
    let own = container.env.iter();
    entries.extend(own.map(|variable| format!("{}={}", variable.name, variable.value)));
    let mut env: Vec<String> = Vec::with_capacity(entries.len());
    let mut places = HashMap::new();
    for entry in entries {
        match places.entry(name(&entry).to_owned()) {
            Entry::Occupied(at) => env[*at.get()] = entry,
            Entry::Vacant(place) => {
                place.insert(env.len());
                env.push(entry);
            }
        }
    }
    // Set to nothing, no program would be found.
    if env.iter().any(|e| e == "PATH=") {
        put(&mut env, format!("PATH={PATH}"));
    }
    env
}

/// Of an entry "NAME=value".
fn name(entry: &str) -> &str {
    entry.split('=').next().unwrap_or_default()
}

/// What a further process with a terminal has in addition.
fn terminal_env(env: &[String]) -> Vec<String> {
    if env.iter().any(|e| e.starts_with("TERM=")) {
        Vec::new()
    } else {
        vec![TERM.into()]
    }
}

/// In the place of an entry of the same name, if there is one.
fn put(env: &mut Vec<String>, entry: String) {
    let same = |e: &String| name(e) == name(&entry);
    match env.iter().position(same) {
        Some(at) => env[at] = entry,
        None => env.push(entry),
    }
}

/// HOME, unless the container or its image sets it: the folder that the image's passwd
/// file names for the user that it runs as.
pub fn set_home(create: &mut v1::ShimCreate, home: &str) {
    let is_set = |e: &String| e.strip_prefix("HOME=").is_some_and(|h| !h.is_empty());
    if !create.env.iter().any(is_set) {
        put(&mut create.env, format!("HOME={home}"));
    }
}

/// The oldest instance whose log is kept while this one is there: kubelet keeps one
/// dead container of each (maxPerPodContainer).
pub fn oldest_log(attempt: u32) -> u32 {
    attempt.saturating_sub(1)
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
    fn what_is_set_to_nothing_is_not_set() {
        let image = ImageFacts {
            env: texts(&["PATH=", "HOME="]),
            ..Default::default()
        };
        let container = v1::ContainerSpec {
            command: texts(&["true"]),
            ..Default::default()
        };
        let mut made = create(&v1::PodSpec::default(), &container, 0, &image, &settings()).unwrap();
        assert!(made.env.contains(&format!("PATH={PATH}")), "{:?}", made.env);
        set_home(&mut made, "/srv");
        assert_eq!(made.env[2..], texts(&["HOME=/srv"]));
        set_home(&mut made, "/other");
        assert_eq!(made.env[2..], texts(&["HOME=/srv"]));
    }

    #[test]
    fn a_terminal_has_a_type() {
        // (tty, the image's environment, TERM of the container, of further processes)
        type Entries = &'static [&'static str];
        let rows: [(bool, Entries, Entries, Entries); 4] = [
            (false, &[], &[], &["TERM=xterm"]),
            (true, &[], &["TERM=xterm"], &[]),
            (false, &["TERM=vt100"], &["TERM=vt100"], &[]),
            (true, &["TERM=vt100"], &["TERM=vt100"], &[]),
        ];
        for (tty, of_image, own, further) in rows {
            let image = ImageFacts {
                env: texts(of_image),
                ..Default::default()
            };
            let container = v1::ContainerSpec {
                command: texts(&["true"]),
                tty,
                ..Default::default()
            };
            let made = create(&v1::PodSpec::default(), &container, 0, &image, &settings()).unwrap();
            let term: Vec<_> = made.env.iter().filter(|e| e.starts_with("TERM=")).collect();
            assert_eq!(term, own);
            assert_eq!(made.terminal_env, further);
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
            expand: false,
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
