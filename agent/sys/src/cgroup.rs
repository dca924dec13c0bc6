//! Cgroups of pods: one group per pod under our parent group, containers below.
//!
//! Version 1 (each controller a hierarchy of its own, also the hybrid layout) and
//! version 2. The groups of containers are made by libcontainer in the shim; the
//! values of limits are `cgroup/limit.rs`. What is not under our parent group is
//! never touched. Called by the daemon's `apply.rs` and `observe.rs`.
//!
//! ```text
//! HIERARCHY/PARENT/pod-UID/CONTAINER
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use cgroups_rs::fs::Cgroup;
use cgroups_rs::fs::hierarchies;

use crate::process::Pidfd;

mod limit;

pub use limit::{Limits, Version};

/// A group could not be made, set, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The parent group must be a name of ours: "/hydrofoil", never the root.
    #[error("parent group {0:?} is not of the form /NAME")]
    Parent(String),
    /// A pod's uid or a container's name that is not a folder's name.
    #[error("{0:?} is not the name of a group")]
    Name(String),
    /// No cgroup file system is mounted.
    #[error("no cgroup hierarchy is mounted")]
    NoHierarchy,
    /// A group could not be made.
    #[error("create group {group}: {source}")]
    Create {
        group: String,
        source: cgroups_rs::fs::error::Error,
    },
    /// A limit was refused.
    #[error("write {value} to {path}: {source}")]
    Set {
        path: PathBuf,
        value: String,
        source: io::Error,
    },
    /// A figure could not be read.
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    /// A group could not be removed.
    #[error("remove {path}: {source}")]
    Remove { path: PathBuf, source: io::Error },
}

/// What a group uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Memory that cannot be reclaimed at once: usage without inactive file pages.
    pub memory_bytes: u64,
    /// CPU time since the group was made, nanoseconds.
    pub cpu_ns: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// Our part of the machine's groups.
#[derive(Debug, Clone)]
pub struct Groups {
    version: Version,
    /// Mount points with the controllers found there; on version 2 just one.
    roots: Vec<(Vec<String>, PathBuf)>,
    /// Without the leading slash.
    parent: String,
}

impl Groups {
    /// Finds the hierarchies; makes nothing. `parent` is relative to their roots:
    /// "/hydrofoil".
    pub fn open(parent: &str) -> Result<Self, CgroupError> {
        let name = parent.strip_prefix('/').unwrap_or_default();
        let whole = !name.is_empty() && name.split('/').all(|p| !matches!(p, "" | "." | ".."));
        if !whole {
            return Err(CgroupError::Parent(parent.into()));
        }
        let unified = hierarchies::is_cgroup2_unified_mode();
        let (version, roots) = if unified {
            (
                Version::V2,
                vec![(Vec::new(), PathBuf::from(hierarchies::UNIFIED_MOUNTPOINT))],
            )
        } else {
            (Version::V1, legacy_roots())
        };
        if roots.is_empty() {
            return Err(CgroupError::NoHierarchy);
        }
        Ok(Self {
            version,
            roots,
            parent: name.into(),
        })
    }

    /// Which kind this machine has.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Group of a pod, relative to the hierarchies' roots.
    pub fn pod_path(&self, uid: &str) -> String {
        format!("/{}/pod-{uid}", self.parent)
    }

    /// Group of a container: `ShimCreate.cgroup`.
    pub fn container_path(&self, uid: &str, container: &str) -> String {
        format!("{}/{container}", self.pod_path(uid))
    }

    /// Makes a pod's group and sets its limits. It may be there already.
    pub fn create(&self, uid: &str, limits: &Limits) -> Result<(), CgroupError> {
        let group = self.checked(uid)?;
        Cgroup::new(hierarchies::auto(), group.trim_start_matches('/'))
            .map_err(|source| CgroupError::Create { group, source })?;
        self.set(uid, limits)
    }

    /// Sets a pod's limits; those that are not given are taken off.
    pub fn set(&self, uid: &str, limits: &Limits) -> Result<(), CgroupError> {
        let group = self.checked(uid)?;
        for setting in limits.settings(self.version) {
            let Some(path) = self.file(setting.controller, &group, setting.file) else {
                continue;
            };
            match fs::write(&path, &setting.value) {
                Ok(()) => {}
                // The controller is not compiled in, or is not delegated: where nothing
                // is asked for, nothing is missing.
                Err(e) if e.kind() == io::ErrorKind::NotFound && setting.is_default => {}
                Err(source) => {
                    return Err(CgroupError::Set {
                        path,
                        value: setting.value,
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    /// Pod uids that have a group in any hierarchy.
    pub fn list(&self) -> Result<Vec<String>, CgroupError> {
        let mut uids = Vec::new();
        for path in self.folders(&format!("/{}", self.parent)) {
            uids.extend(
                children(&path)?
                    .iter()
                    .filter_map(|n| Some(n.strip_prefix("pod-")?.to_owned())),
            );
        }
        uids.sort();
        uids.dedup();
        Ok(uids)
    }

    /// What a pod uses, or one of its containers.
    pub fn usage(&self, uid: &str, container: Option<&str>) -> Result<Usage, CgroupError> {
        let group = match container {
            Some(name) => format!("{}/{}", self.checked(uid)?, plain(name)?),
            None => self.checked(uid)?,
        };
        let read = |controller, file| -> Result<String, CgroupError> {
            let path = self
                .file(controller, &group, file)
                .ok_or(CgroupError::NoHierarchy)?;
            fs::read_to_string(&path).map_err(|source| CgroupError::Read { path, source })
        };
        let number = |text: String| text.trim().parse::<u64>().unwrap_or(0);
        let stat = read("memory", "memory.stat")?;
        Ok(match self.version {
            Version::V1 => Usage {
                memory_bytes: number(read("memory", "memory.usage_in_bytes")?)
                    .saturating_sub(keyed(&stat, "total_inactive_file")),
                cpu_ns: number(read("cpuacct", "cpuacct.usage")?),
                pids: number(read("pids", "pids.current")?),
            },
            Version::V2 => Usage {
                memory_bytes: number(read("memory", "memory.current")?)
                    .saturating_sub(keyed(&stat, "inactive_file")),
                cpu_ns: keyed(&read("cpu", "cpu.stat")?, "usage_usec") * 1000,
                pids: number(read("pids", "pids.current")?),
            },
        })
    }

    /// Sends SIGKILL to all processes of a pod; how many there were. For what a
    /// dead shim left behind.
    pub fn kill(&self, uid: &str) -> Result<usize, CgroupError> {
        let mut pids = Vec::new();
        for path in self.folders(&self.checked(uid)?) {
            processes(&path, &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        for pid in &pids {
            if let Ok(process) = Pidfd::open(*pid) {
                // One that we may not kill shows when its group cannot be removed.
                if let Err(error) = process.signal(libc::SIGKILL) {
                    tracing::warn!(pid, %error, "cannot kill a pod's process");
                }
            }
        }
        Ok(pids.len())
    }

    /// Removes a pod's groups, containers' included; they need not be there. Waits
    /// up to a second for processes that are just ending. Blocking.
    pub fn remove(&self, uid: &str) -> Result<(), CgroupError> {
        for path in self.folders(&self.checked(uid)?) {
            remove_tree(&path)?;
        }
        Ok(())
    }

    /// Removes our parent group, which must have no pods any more.
    pub fn remove_parent(&self) -> Result<(), CgroupError> {
        for path in self.folders(&format!("/{}", self.parent)) {
            remove_one(&path)?;
        }
        Ok(())
    }

    /// A pod's group; the uid comes from outside and must not lead elsewhere.
    fn checked(&self, uid: &str) -> Result<String, CgroupError> {
        Ok(self.pod_path(plain(uid)?))
    }

    /// A group's folders in those hierarchies where it is.
    fn folders(&self, group: &str) -> Vec<PathBuf> {
        let relative = group.trim_start_matches('/');
        self.roots
            .iter()
            .map(|(_, root)| root.join(relative))
            .filter(|p| p.is_dir())
            .collect()
    }

    /// A group's file in the hierarchy of a controller; `None` without such one.
    fn file(&self, controller: &str, group: &str, file: &str) -> Option<PathBuf> {
        let (_, root) = self.roots.iter().find(|(controllers, _)| {
            self.version == Version::V2 || controllers.iter().any(|c| c == controller)
        })?;
        Some(root.join(group.trim_start_matches('/')).join(file))
    }
}

/// A name that is one folder's.
fn plain(name: &str) -> Result<&str, CgroupError> {
    if name.is_empty() || name.contains('/') || matches!(name, "." | "..") {
        return Err(CgroupError::Name(name.into()));
    }
    Ok(name)
}

/// Mount points of version 1, and of the version 2 beside it: without controllers, but
/// containers are in our groups there too.
fn legacy_roots() -> Vec<(Vec<String>, PathBuf)> {
    let mounts = hierarchies::mountinfo_self();
    let mut roots: Vec<_> = mounts
        .into_iter()
        .map(|m| (m.super_opts, m.mount_point))
        .collect();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let beside = table.lines().filter_map(|line| {
        let (before, _) = line.split_once(" - cgroup2 ")?;
        before.split(' ').nth(4)
    });
    roots.extend(beside.map(|point| (Vec::new(), PathBuf::from(point))));
    roots
}

/// The number behind a key of a flat keyed file; 0 when it is not there.
fn keyed(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find_map(|(k, v)| (k == key).then(|| v.trim().parse().ok())?)
        .unwrap_or(0)
}

fn children(group: &Path) -> Result<Vec<String>, CgroupError> {
    let error = |source| CgroupError::Read {
        path: group.into(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(group).map_err(error)? {
        let entry = entry.map_err(error)?;
        if entry.file_type().map_err(error)?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    Ok(names)
}

fn processes(group: &Path, pids: &mut Vec<u32>) -> Result<(), CgroupError> {
    for child in children(group)? {
        processes(&group.join(child), pids)?;
    }
    let path = group.join("cgroup.procs");
    let text = fs::read_to_string(&path).map_err(|source| CgroupError::Read { path, source })?;
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    Ok(())
}

fn remove_tree(group: &Path) -> Result<(), CgroupError> {
    for child in children(group)? {
        remove_tree(&group.join(child))?;
    }
    remove_one(group)
}

fn remove_one(group: &Path) -> Result<(), CgroupError> {
    const TRIES: u32 = 100;
    let mut tried = 0;
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A killed process leaves its group only when the kernel is done with it.
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && tried < TRIES => {
                tried += 1;
                thread::sleep(Duration::from_millis(10));
            }
            Err(source) => {
                return Err(CgroupError::Remove {
                    path: group.into(),
                    source,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_never_ours() {
        for parent in ["", "/", "hydrofoil", "/..", "/a//b", "/a/../..", "/./a"] {
            assert!(
                matches!(Groups::open(parent), Err(CgroupError::Parent(_))),
                "{parent:?}"
            );
        }
    }

    #[test]
    fn names_from_outside_do_not_lead_elsewhere() {
        let groups = Groups {
            version: Version::V2,
            roots: vec![(vec![], "/cg".into())],
            parent: "p".into(),
        };
        for uid in ["", ".", "..", "/", "a/b", "x/../../.."] {
            let refused = |r: Result<(), CgroupError>| matches!(r, Err(CgroupError::Name(_)));
            assert!(refused(groups.kill(uid).map(drop)), "{uid:?}");
            assert!(refused(groups.remove(uid)), "{uid:?}");
            assert!(refused(groups.create(uid, &Limits::default())), "{uid:?}");
            assert!(refused(groups.usage("uid", Some(uid)).map(drop)), "{uid:?}");
        }
    }

    #[test]
    fn files_are_found_by_controller() {
        let v1 = Groups {
            version: Version::V1,
            roots: vec![
                (
                    vec!["rw".into(), "cpu".into(), "cpuacct".into()],
                    "/cg/cpu,cpuacct".into(),
                ),
                (vec!["rw".into(), "memory".into()], "/cg/memory".into()),
            ],
            parent: "hydrofoil".into(),
        };
        let group = v1.container_path("u1", "web");
        assert_eq!(group, "/hydrofoil/pod-u1/web");
        assert_eq!(
            v1.file("cpuacct", &group, "cpuacct.usage").unwrap(),
            Path::new("/cg/cpu,cpuacct/hydrofoil/pod-u1/web/cpuacct.usage")
        );
        assert_eq!(v1.file("pids", &group, "pids.max"), None);

        let v2 = Groups {
            version: Version::V2,
            roots: vec![(vec![], "/cg".into())],
            ..v1
        };
        assert_eq!(
            v2.file("pids", &group, "pids.max").unwrap(),
            Path::new("/cg/hydrofoil/pod-u1/web/pids.max")
        );
    }

    #[test]
    fn keyed_values() {
        let text = "cache 12\ntotal_inactive_file 7\n";
        assert_eq!(keyed(text, "total_inactive_file"), 7);
        assert_eq!(keyed(text, "inactive_file"), 0);
    }
}
