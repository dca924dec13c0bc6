//! Reading a container's cgroup: its processes, and whether memory ran out.
//!
//! Making and removing groups is libcontainer's. Called by `container.rs`.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::Pid;

const MOUNTED: &str = "/sys/fs/cgroup";

/// Whether this machine has version 2 only.
pub(crate) fn is_unified() -> bool {
    statfs(MOUNTED).is_ok_and(|s| s.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Processes in the group; none when it is gone.
pub(crate) fn processes(group: &str) -> Vec<Pid> {
    let Some(folder) = folder("pids", group) else {
        return Vec::new();
    };
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.parse().ok())
        .map(Pid::from_raw)
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
    fn kills_are_counted_in_both_versions() {
        assert_eq!(oom_kill("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), 2);
        assert_eq!(
            oom_kill("low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n"),
            1
        );
        assert_eq!(oom_kill(""), 0);
    }
}
