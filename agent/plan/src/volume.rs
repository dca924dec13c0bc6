//! What a pod's containers see of the file system beside their image: volumes,
//! and the files that the node writes for every pod (hosts, resolv.conf,
//! hostname, the termination log).
//!
//! Nothing is mounted here, and the files' contents are `agent-sys`'s.
//! Called by `pod.rs` and `container.rs`.

use proto::v1;

/// Volume of every pod that is shared memory: /dev/shm of all its containers.
/// No name that a manifest can have: those are DNS labels.
pub const SHM: &str = "_shm";

/// Size of /dev/shm, bytes, as container runtimes have it.
const SHM_BYTES: u64 = 64 << 20;

/// Where the bytes behind a mount are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A volume of the pod, or something inside it.
    Volume {
        /// Name of the volume.
        volume: String,
        /// Relative path inside it; empty: all of it.
        sub_path: String,
    },
    /// A path of the node.
    Host {
        /// Absolute.
        path: String,
        /// Relative path inside it; empty: all of it.
        sub_path: String,
    },
    /// A file that the node writes for the pod: "hosts", "resolv.conf", "hostname".
    File(&'static str),
    /// The instance's own termination log.
    TerminationLog,
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted.
    pub source: Source,
    /// Where, in the container. Absolute.
    pub destination: String,
    /// "rbind", "ro", "rprivate", ...
    pub options: Vec<String>,
}

/// The volumes to make for a pod: its own, and the shared memory.
pub fn volumes(spec: &v1::PodSpec) -> Vec<v1::Volume> {
    let mut volumes = spec.volumes.clone();
    if !spec.host_ipc {
        volumes.push(v1::Volume {
            name: SHM.into(),
            source: Some(v1::volume::Source::EmptyDir(v1::volume::EmptyDir {
                memory: true,
                size_limit_bytes: SHM_BYTES,
            })),
        });
    }
    volumes
}

/// The mounts of one container, parents before what lies in them.
pub fn mounts(pod: &v1::PodSpec, container: &v1::ContainerSpec) -> Vec<Mount> {
    let mut mounts = Vec::new();
    for mount in &container.mounts {
        let host = pod
            .volumes
            .iter()
            .find(|v| v.name == mount.volume)
            .and_then(|v| match &v.source {
                Some(v1::volume::Source::HostPath(host)) => Some(host.path.clone()),
                Some(v1::volume::Source::EmptyDir(_) | v1::volume::Source::Files(_)) | None => None,
            });
        let sub_path = mount.sub_path.clone();
        let source = match host {
            Some(path) => Source::Host { path, sub_path },
            None => Source::Volume {
                volume: mount.volume.clone(),
                sub_path,
            },
        };
        let propagation = match mount.propagation.as_str() {
            "HostToContainer" => "rslave",
            "Bidirectional" => "rshared",
            _ => "rprivate",
        };
        let access = if mount.read_only { "ro" } else { "rw" };
        mounts.push(Mount {
            source,
            destination: mount.mount_path.clone(),
            options: vec!["rbind".into(), propagation.into(), access.into()],
        });
    }
    let taken = |mounts: &[Mount], path: &str| mounts.iter().any(|m| m.destination == path);
    let bind = |source, destination: &str, access: &str| Mount {
        source,
        destination: destination.into(),
        options: vec!["bind".into(), "rprivate".into(), access.into()],
    };
    let access = if container
        .security
        .as_ref()
        .is_some_and(|s| s.read_only_root_filesystem)
    {
        "ro"
    } else {
        "rw"
    };
    for (file, destination) in [
        ("hosts", "/etc/hosts"),
        ("resolv.conf", "/etc/resolv.conf"),
        ("hostname", "/etc/hostname"),
    ] {
        if !taken(&mounts, destination) {
            mounts.push(bind(Source::File(file), destination, access));
        }
    }
    if !pod.host_ipc && !taken(&mounts, "/dev/shm") {
        mounts.push(bind(
            Source::Volume {
                volume: SHM.into(),
                sub_path: String::new(),
            },
            "/dev/shm",
            "rw",
        ));
    }
    let last_words = termination_path(container);
    if !taken(&mounts, last_words) {
        mounts.push(bind(Source::TerminationLog, last_words, "rw"));
    }
    mounts.sort_by_key(|m| {
        m.destination
            .split('/')
            .filter(|part| !part.is_empty())
            .count()
    });
    mounts
}

/// Where the container writes its last words.
pub fn termination_path(container: &v1::ContainerSpec) -> &str {
    match container.termination_message_path.as_str() {
        "" => "/dev/termination-log",
        path => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(volume: &str, path: &str) -> v1::VolumeMount {
        v1::VolumeMount {
            volume: volume.into(),
            mount_path: path.into(),
            ..Default::default()
        }
    }

    #[test]
    fn parents_come_first_and_manifests_win() {
        let container = v1::ContainerSpec {
            mounts: vec![
                mount("b", "/a/b/c"),
                mount("a", "/a"),
                mount("h", "/etc/hosts"),
            ],
            ..Default::default()
        };
        let found: Vec<_> = mounts(&v1::PodSpec::default(), &container)
            .into_iter()
            .map(|m| m.destination)
            .collect();
        let place = |path: &str| found.iter().position(|d| d == path).unwrap();
        assert!(place("/a") < place("/a/b/c"), "{found:?}");
        assert_eq!(found.iter().filter(|d| *d == "/etc/hosts").count(), 1);
        assert!(found.contains(&"/dev/shm".to_owned()));
        assert!(found.contains(&"/dev/termination-log".to_owned()));
    }

    #[test]
    fn host_paths_are_mounted_from_the_host() {
        let pod = v1::PodSpec {
            volumes: vec![v1::Volume {
                name: "h".into(),
                source: Some(v1::volume::Source::HostPath(v1::volume::HostPath {
                    path: "/srv".into(),
                    r#type: String::new(),
                })),
            }],
            ..Default::default()
        };
        let mut wanted = mount("h", "/data");
        wanted.read_only = true;
        wanted.propagation = "HostToContainer".into();
        let container = v1::ContainerSpec {
            mounts: vec![wanted],
            ..Default::default()
        };
        let mounts = mounts(&pod, &container);
        let first = mounts.iter().find(|m| m.destination == "/data").unwrap();
        assert_eq!(
            first.source,
            Source::Host {
                path: "/srv".into(),
                sub_path: String::new()
            }
        );
        assert_eq!(first.options, ["rbind", "rslave", "ro"]);
    }
}
