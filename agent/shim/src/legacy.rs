//! Version 1 groups of a container: made, limited, joined; and its view of them.
//!
//! By us and not by libcontainer, which reads the table of mounts dozens of times
//! for it, longer the more pods a node has. (Where no version 2 is mounted beside,
//! libcontainer has to make them: the view only is ours.) Called by `create.rs` in its workers,
//! before libcontainer, and by `executor.rs` inside the container.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use proto::v1::ShimResources;

use crate::group::MOUNTED;

/// A group could not be made or joined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LegacyError {
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("create group {path}: {source}")]
    Create { path: PathBuf, source: io::Error },
    #[error("write {value:?} to {path}: {source}")]
    Write {
        path: PathBuf,
        value: String,
        source: io::Error,
    },
    #[error("version 2 for libcontainer: {0}")]
    Unified(nix::Error),
}

/// Device files that any container may use, as devices.allow has them: making any,
/// opening null, zero, full, random, urandom, tty, console, ptmx and terminals.
const DEVICES: [&str; 11] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// Makes a group in every hierarchy, with its limits. It may be there already.
pub(crate) fn make(
    group: &str,
    resources: &ShimResources,
    all_devices: bool,
) -> Result<(), LegacyError> {
    for hierarchy in mounted()? {
        let folder = hierarchy.folder(group);
        fs::create_dir_all(&folder).map_err(|source| LegacyError::Create {
            path: folder.clone(),
            source,
        })?;
        if hierarchy.has("cpuset") {
            inherit_cpuset(&hierarchy.point, group)?;
        }
        for (controller, file, value) in settings(resources) {
            if hierarchy.has(controller) {
                write(folder.join(file), value)?;
            }
        }
        if hierarchy.has("devices") && !all_devices {
            write(folder.join("devices.deny"), "a".to_owned())?;
            for rule in DEVICES {
                write(folder.join("devices.allow"), rule.to_owned())?;
            }
        }
    }
    Ok(())
}

/// Moves this process into a group, in every hierarchy.
pub(crate) fn join(group: &str) -> Result<(), LegacyError> {
    for hierarchy in mounted()? {
        write(hierarchy.folder(group).join("cgroup.procs"), "0".to_owned())?;
    }
    Ok(())
}

/// Shows libcontainer a machine with version 2 only, in a mount namespace of this
/// process: it then puts the container into its group there, which has no
/// controllers but is what programs of ours attach to, and leaves version 1 alone.
pub(crate) fn show_unified() -> Result<(), LegacyError> {
    let shown = || -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
        mount(None::<&str>, "/", None::<&str>, slave, None::<&str>)?;
        mount(
            Some("cgroup2"),
            MOUNTED,
            Some("cgroup2"),
            MsFlags::empty(),
            None::<&str>,
        )
    };
    shown().map_err(LegacyError::Unified)
}

/// Files of the limits, and in which hierarchy.
fn settings(resources: &ShimResources) -> Vec<(&'static str, &'static str, String)> {
    let mut all = Vec::new();
    if resources.cpu_shares > 0 {
        all.push(("cpu", "cpu.shares", resources.cpu_shares.to_string()));
    }
    if resources.cpu_quota > 0 {
        let period = if resources.cpu_period == 0 {
            100_000
        } else {
            resources.cpu_period
        };
        all.push(("cpu", "cpu.cfs_period_us", period.to_string()));
        all.push(("cpu", "cpu.cfs_quota_us", resources.cpu_quota.to_string()));
    }
    if resources.memory_limit > 0 {
        all.push((
            "memory",
            "memory.limit_in_bytes",
            resources.memory_limit.to_string(),
        ));
    }
    if resources.pids_limit > 0 {
        all.push(("pids", "pids.max", resources.pids_limit.to_string()));
    }
    all
}

/// A new group has no CPUs and no memory nodes, and takes no process until it has.
fn inherit_cpuset(point: &Path, group: &str) -> Result<(), LegacyError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut folder = point.to_owned();
        let mut value = read(folder.join(file))?;
        for part in Path::new(group.trim_start_matches('/')) {
            folder.push(part);
            let own = read(folder.join(file))?;
            if own.trim().is_empty() {
                write(folder.join(file), value.trim().to_owned())?;
            } else {
                value = own;
            }
        }
    }
    Ok(())
}

fn read(path: PathBuf) -> Result<String, LegacyError> {
    fs::read_to_string(&path).map_err(|source| LegacyError::Read { path, source })
}

fn write(path: PathBuf, value: String) -> Result<(), LegacyError> {
    fs::write(&path, &value).map_err(|source| LegacyError::Write {
        path,
        value,
        source,
    })
}

/// A mounted hierarchy with controllers.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    point: PathBuf,
    /// Its controllers, and the file system's other options.
    options: String,
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.options.split(',').any(|o| o == controller)
    }

    fn folder(&self, group: &str) -> PathBuf {
        self.point.join(group.trim_start_matches('/'))
    }
}

fn mounted() -> Result<Vec<Hierarchy>, LegacyError> {
    Ok(parse(&read("/proc/self/mountinfo".into())?))
}

/// See proc_pid_mountinfo(5). Not hierarchies with a name instead of controllers: they
/// are some program's accounts of processes, not limits.
fn parse(table: &str) -> Vec<Hierarchy> {
    let hierarchy = |line: &str| {
        let (before, after) = line.split_once(" - cgroup ")?;
        let options = after.split(' ').nth(1)?;
        let point = before.split(' ').nth(4)?;
        let named = options.split(',').any(|o| o.starts_with("name="));
        (!named).then(|| Hierarchy {
            point: point.into(),
            options: options.to_owned(),
        })
    };
    table.lines().filter_map(hierarchy).collect()
}

/// How a container sees its groups.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    pub(crate) read_only: bool,
}

/// Mounts the hierarchies at their usual places. In a cgroup namespace each shows
/// the container's own group.
pub(crate) fn mount_view(view: View) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let finish = |path: &Path| -> io::Result<()> {
        if view.read_only {
            let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
            mount(None::<&str>, path, None::<&str>, flags, None::<&str>)?;
        }
        Ok(())
    };
    let top = Path::new(MOUNTED);
    mount(Some("tmpfs"), top, Some("tmpfs"), flags, Some("mode=755"))?;
    for controllers in controllers(&fs::read_to_string("/proc/self/cgroup")?) {
        let path = top.join(controllers);
        fs::create_dir(&path)?;
        mount(
            Some("cgroup"),
            &path,
            Some("cgroup"),
            flags,
            Some(controllers),
        )?;
        finish(&path)?;
        // Mounted together: each is found by its own name too.
        for controller in controllers.split(',').filter(|c| *c != controllers) {
            symlink(controllers, top.join(controller))?;
        }
    }
    finish(top)
}

/// Controllers of each hierarchy of /proc/self/cgroup.
fn controllers(table: &str) -> impl Iterator<Item = &str> {
    table
        .lines()
        .filter_map(|line| line.split(':').nth(1))
        .filter(|controllers| !controllers.is_empty() && !controllers.contains('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_the_node() {
        let table = "\
            31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let found = parse(table);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].has("cpuacct") && !found[0].has("memory"));
        assert_eq!(
            found[0].folder("/a/b"),
            Path::new("/sys/fs/cgroup/cpu,cpuacct/a/b")
        );
    }

    #[test]
    fn hierarchies_of_a_process() {
        let table = "9:name=systemd:/\n3:cpu,cpuacct:/\n2:memory:/a\n0::/\n";
        assert_eq!(
            controllers(table).collect::<Vec<_>>(),
            ["cpu,cpuacct", "memory"]
        );
    }

    #[test]
    fn only_limits_that_are_asked_for_are_written() {
        assert_eq!(settings(&ShimResources::default()), []);
        let resources = ShimResources {
            cpu_shares: 204,
            cpu_quota: 50_000,
            memory_limit: 1 << 20,
            pids_limit: 9,
            ..ShimResources::default()
        };
        assert_eq!(
            settings(&resources),
            [
                ("cpu", "cpu.shares", "204".to_owned()),
                ("cpu", "cpu.cfs_period_us", "100000".to_owned()),
                ("cpu", "cpu.cfs_quota_us", "50000".to_owned()),
                ("memory", "memory.limit_in_bytes", "1048576".to_owned()),
                ("pids", "pids.max", "9".to_owned()),
            ]
        );
    }
}
