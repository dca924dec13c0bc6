//! A container's cgroup: its processes, whether memory ran out, and its view from inside.
//!
//! Making and removing groups is libcontainer's. Called by `container.rs`, and by
//! `executor.rs` inside the container.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::Pid;

const MOUNTED: &str = "/sys/fs/cgroup";

/// Whether this machine has version 2 only.
pub(crate) fn is_unified() -> bool {
    statfs(MOUNTED).is_ok_and(|s| s.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Processes in the group and in those that the container made below it; none when
/// it is gone.
pub(crate) fn processes(group: &str) -> Vec<Pid> {
    let mut found = Vec::new();
    if let Some(folder) = folder("pids", group) {
        collect(&folder, &mut found);
    }
    found
}

fn collect(folder: &Path, found: &mut Vec<Pid>) {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    found.extend(
        text.lines()
            .filter_map(|line| line.parse().ok())
            .map(Pid::from_raw),
    );
    for child in children(folder) {
        collect(&child, found);
    }
}

/// Removes what a privileged container made below its group, in all hierarchies:
/// libcontainer removes the group itself only.
pub(crate) fn remove_children(group: &str) -> io::Result<()> {
    for folder in folders(group)? {
        for child in children(&folder) {
            remove_tree(&child)?;
        }
    }
    Ok(())
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    for child in children(folder) {
        remove_tree(&child)?;
    }
    fs::remove_dir(folder)
}

/// Groups directly below one; none when it is gone.
fn children(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.is_dir())
        .collect()
}

/// How many processes the kernel has killed in this group because memory ran out.
pub(crate) fn oom_kills(group: &str) -> u64 {
    let file = if is_unified() {
        "memory.events"
    } else {
        "memory.oom_control"
    };
    let Some(folder) = folder("memory", group) else {
        return 0;
    };
    oom_kill(&fs::read_to_string(folder.join(file)).unwrap_or_default())
}

/// How a container sees its groups.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    pub(crate) read_only: bool,
}

/// Mounts version 1 hierarchies at their usual places. In a cgroup namespace each
/// shows the container's own group.
pub(crate) fn mount_v1(access: Access) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let read_only = |path: &Path| -> io::Result<()> {
        if access.read_only {
            let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
            mount(None::<&str>, path, None::<&str>, flags, None::<&str>)?;
        }
        Ok(())
    };
    let top = Path::new(MOUNTED);
    mount(Some("tmpfs"), top, Some("tmpfs"), flags, Some("mode=755"))?;
    for controllers in hierarchies(&fs::read_to_string("/proc/self/cgroup")?) {
        let path = top.join(controllers);
        fs::create_dir(&path)?;
        mount(
            Some("cgroup"),
            &path,
            Some("cgroup"),
            flags,
            Some(controllers),
        )?;
        read_only(&path)?;
        // Mounted together: each is found by its own name too.
        for controller in controllers.split(',').filter(|c| *c != controllers) {
            symlink(controllers, top.join(controller))?;
        }
    }
    read_only(top)
}

/// Controllers of each hierarchy of /proc/self/cgroup. Not those that have a name
/// instead: they are some program's accounts of processes, not limits.
fn hierarchies(table: &str) -> impl Iterator<Item = &str> {
    table
        .lines()
        .filter_map(|line| line.split(':').nth(1))
        .filter(|controllers| !controllers.is_empty() && !controllers.contains('='))
}

fn oom_kill(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

fn folder(controller: &str, group: &str) -> Option<PathBuf> {
    let relative = group.trim_start_matches('/');
    if is_unified() {
        return Some(Path::new(MOUNTED).join(relative));
    }
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    Some(mount_point(&table, controller)?.join(relative))
}

/// The group in every hierarchy that there is.
fn folders(group: &str) -> io::Result<Vec<PathBuf>> {
    let relative = group.trim_start_matches('/');
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - cgroup")?;
        let typ = after.split(' ').next()?;
        matches!(typ, "" | "2").then(|| before.split(' ').nth(4))?
    });
    Ok(points
        .map(|point| Path::new(point).join(relative))
        .collect())
}

/// Where a version 1 controller is mounted, see proc_pid_mountinfo(5).
fn mount_point(table: &str, controller: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let (typ, options) = (after.next()?, after.nth(1)?);
        let found = typ == "cgroup" && options.split(',').any(|o| o == controller);
        found.then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_found_where_they_are_mounted() {
        let table = "\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let found = |controller| mount_point(table, controller);
        assert_eq!(found("memory").unwrap(), Path::new("/sys/fs/cgroup/memory"));
        assert_eq!(
            found("cpuacct").unwrap(),
            Path::new("/sys/fs/cgroup/cpu,cpuacct")
        );
        assert_eq!(found("pids"), None);
    }

    #[test]
    fn hierarchies_with_controllers() {
        let table = "9:name=systemd:/\n3:cpu,cpuacct:/\n2:memory:/a\n0::/\n";
        assert_eq!(
            hierarchies(table).collect::<Vec<_>>(),
            ["cpu,cpuacct", "memory"]
        );
    }

    #[test]
    fn kills_are_counted_in_both_versions() {
        assert_eq!(oom_kill("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), 2);
        assert_eq!(
            oom_kill("low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n"),
            1
        );
        assert_eq!(oom_kill(""), 0);
    }
}
