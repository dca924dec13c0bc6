//! A container's cgroup, of either version: its processes, whether memory ran out,
//! its removal.
//!
//! Making it is libcontainer's on version 2, and `legacy.rs` on version 1. Called by
//! `container.rs`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::Pid;

/// Where all hierarchies are mounted.
pub(crate) const MOUNTED: &str = "/sys/fs/cgroup";

/// What the machine has mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setup {
    /// Version 2 only.
    Unified,
    /// Controllers in version 1, and version 2 beside it.
    Hybrid,
    /// Version 1 only.
    Legacy,
}

/// Looks at the mounts of this process.
pub(crate) fn setup() -> Setup {
    if is_unified() {
        return Setup::Unified;
    }
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if table.contains(" - cgroup2 ") {
        Setup::Hybrid
    } else {
        Setup::Legacy
    }
}

fn is_unified() -> bool {
    statfs(MOUNTED).is_ok_and(|s| s.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// A group that a container may be in: below a parent group, so never the root and
/// never one of somebody else's at the top. There is no other way to kill or remove.
#[derive(Debug, Clone)]
pub(crate) struct Group(String);

impl Group {
    /// Takes a path of the form "/PARENT/POD/..."; `None` for any other.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let relative = path.strip_prefix('/')?;
        let parts: Vec<&str> = relative.split('/').collect();
        let whole = parts.len() >= 2 && !parts.iter().any(|p| matches!(*p, "" | "." | ".."));
        whole.then(|| Self(relative.to_owned()))
    }

    /// Processes in the group and in those that the container made below it; none
    /// when it is gone.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let mut found = Vec::new();
        if let Some(folder) = self.folder("pids") {
            collect(&folder, &mut found);
        }
        // One that the shim itself is in is no container's.
        if found.contains(&Pid::this()) {
            Vec::new()
        } else {
            found
        }
    }

    /// Removes the group and what a privileged container made below it, in all
    /// hierarchies; it need not be there. Its processes must be reaped.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        for point in mount_points(&table) {
            remove_tree(&Path::new(point).join(&self.0))?;
        }
        Ok(())
    }

    /// How many of its processes the kernel has killed because memory ran out.
    pub(crate) fn oom_kills(&self) -> u64 {
        let file = if is_unified() {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let Some(folder) = self.folder("memory") else {
            return 0;
        };
        oom_kill(&fs::read_to_string(folder.join(file)).unwrap_or_default())
    }

    fn folder(&self, controller: &str) -> Option<PathBuf> {
        if is_unified() {
            return Some(Path::new(MOUNTED).join(&self.0));
        }
        let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
        Some(mount_point(&table, controller)?.join(&self.0))
    }
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

fn remove_tree(folder: &Path) -> io::Result<()> {
    for child in children(folder) {
        remove_tree(&child)?;
    }
    const TRIES: u32 = 100;
    let mut tried = 0;
    loop {
        match fs::remove_dir(folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // The kernel is not quite done with a process that was reaped.
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && tried < TRIES => {
                tried += 1;
                thread::sleep(Duration::from_millis(1));
            }
            done => return done,
        }
    }
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

fn oom_kill(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

/// Where hierarchies of either version are mounted, see proc_pid_mountinfo(5).
fn mount_points(table: &str) -> impl Iterator<Item = &str> {
    table.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - cgroup")?;
        matches!(after.split(' ').next()?, "" | "2").then(|| before.split(' ').nth(4))?
    })
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
    fn only_what_is_below_a_parent_is_a_group() {
        assert!(Group::parse("/hydrofoil/pod-uid/web").is_some());
        assert!(Group::parse("/hydrofoil/pod-uid").is_some());
        for path in [
            "", "/", "//", "web", "a/b", "/web", "/web/", "/a//b", "/a/../b", "/a/..", "/./b",
            "/../..",
        ] {
            assert!(Group::parse(path).is_none(), "{path:?}");
        }
    }

    #[test]
    fn our_own_group_has_no_processes_to_kill() {
        // As if somebody had put the shim into a container's group.
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let pids = own
            .lines()
            .find_map(|l| l.split(":pids:").nth(1))
            .unwrap_or("/");
        assert_eq!(
            Group(pids.trim_start_matches('/').to_owned()).processes(),
            []
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
