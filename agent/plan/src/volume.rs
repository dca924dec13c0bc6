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

/// Where it is mounted, and where the node has its own.
const SHM_PATH: &str = "/dev/shm";

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

/// Who fills what is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The node's administrator.
    Host,
    /// The containers.
    Own,
    /// This node, from objects of the control plane.
    Files,
}

impl Kind {
    /// What files in it are not taken for. A mount of a mount has only the options that
    /// it is given.
    fn refused(self) -> &'static [&'static str] {
        match self {
            // Devices of the node are mounted so.
            Kind::Host => &[],
            Kind::Own => &["nodev"],
            Kind::Files => &["nodev", "nosuid"],
        }
    }
}

fn access(read_only: bool) -> &'static str {
    if read_only { "ro" } else { "rw" }
}

/// The mounts of one container, parents before what lies in them.
pub fn mounts(pod: &v1::PodSpec, container: &v1::ContainerSpec) -> Vec<Mount> {
    let mut mounts = Vec::new();
    for mount in &container.mounts {
        let volume = pod.volumes.iter().find(|v| v.name == mount.volume);
        let (host, kind) = match volume.and_then(|v| v.source.as_ref()) {
            Some(v1::volume::Source::HostPath(host)) => (Some(host.path.clone()), Kind::Host),
            Some(v1::volume::Source::Files(_)) => (None, Kind::Files),
            Some(v1::volume::Source::EmptyDir(_)) | None => (None, Kind::Own),
        };
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
        // Always read-only, as in Kubernetes: the node updates the
        // files of a configMap, secret, downwardAPI or projected volume.
        let read_only = mount.read_only || kind == Kind::Files;
        let mut options = vec!["rbind".into(), propagation.into(), access(read_only).into()];
        options.extend(kind.refused().iter().map(|o| (*o).to_owned()));
        mounts.push(Mount {
            source,
            destination: mount.mount_path.clone(),
            options,
        });
    }
    let taken = |mounts: &[Mount], path: &str| mounts.iter().any(|m| m.destination == path);
    let bind = |source, destination: &str, access: &str| Mount {
        source,
        destination: destination.into(),
        options: ["bind", "rprivate", access]
            .iter()
            .chain(Kind::Files.refused())
            .map(|o| (*o).to_owned())
            .collect(),
    };
    let root = container.security.as_ref();
    let access = access(root.is_some_and(|s| s.read_only_root_filesystem));
    for (file, destination) in [
        ("hosts", "/etc/hosts"),
        ("resolv.conf", "/etc/resolv.conf"),
        ("hostname", "/etc/hostname"),
    ] {
        if !taken(&mounts, destination) {
            mounts.push(bind(Source::File(file), destination, access));
        }
    }
    if !taken(&mounts, SHM_PATH) {
        let sub_path = String::new();
        let source = if pod.host_ipc {
            Source::Host {
                path: SHM_PATH.into(),
                sub_path,
            }
        } else {
            Source::Volume {
                volume: SHM.into(),
                sub_path,
            }
        };
        mounts.push(bind(source, SHM_PATH, "rw"));
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
    fn what_the_node_writes_is_read_only() {
        use v1::volume::{EmptyDir, Files, HostPath, Source};
        let volume = |name: &str, source| v1::Volume {
            name: name.into(),
            source: Some(source),
        };
        let pod = v1::PodSpec {
            volumes: vec![
                volume("files", Source::Files(Files::default())),
                volume("empty", Source::EmptyDir(EmptyDir::default())),
                volume("host", Source::HostPath(HostPath::default())),
            ],
            ..Default::default()
        };
        let part = v1::VolumeMount {
            sub_path: "key".into(),
            ..mount("files", "/part")
        };
        let container = v1::ContainerSpec {
            mounts: vec![
                mount("files", "/files"),
                part,
                mount("empty", "/empty"),
                mount("host", "/host"),
            ],
            ..Default::default()
        };
        let mounts = mounts(&pod, &container);
        // (where, its options)
        for (path, expected) in [
            ("/files", "rbind rprivate ro nodev nosuid"),
            ("/part", "rbind rprivate ro nodev nosuid"),
            ("/empty", "rbind rprivate rw nodev"),
            ("/host", "rbind rprivate rw"),
            ("/dev/shm", "bind rprivate rw nodev nosuid"),
            ("/etc/hosts", "bind rprivate rw nodev nosuid"),
        ] {
            let found = mounts.iter().find(|m| m.destination == path).unwrap();
            assert_eq!(found.options.join(" "), expected, "{path}");
        }
    }

    #[test]
    fn a_pod_in_the_hosts_ipc_namespace_has_its_shared_memory() {
        let container = v1::ContainerSpec::default();
        let shared = |host_ipc| {
            let pod = v1::PodSpec {
                host_ipc,
                ..Default::default()
            };
            let mut mounts = mounts(&pod, &container).into_iter();
            mounts.find(|m| m.destination == "/dev/shm")
        };
        let own = shared(false).map(|m| m.source);
        let volume = Source::Volume {
            volume: SHM.into(),
            sub_path: String::new(),
        };
        assert_eq!(own, Some(volume));
        let of_host = shared(true).map(|m| m.source);
        let host = Source::Host {
            path: "/dev/shm".into(),
            sub_path: String::new(),
        };
        assert_eq!(of_host, Some(host));
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
