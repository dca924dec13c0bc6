//! What is special about version 1: the container's view of its groups, and a machine
//! that libcontainer takes for one of version 2.
//!
//! By us and not by libcontainer, which reads the table of mounts dozens of times
//! for it, longer the more pods a node has. Called by `create.rs` in its workers, before
//! libcontainer, and by `executor.rs` inside the container.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use agent_cgroup::MOUNTED;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// The mounts for libcontainer could not be made.
#[derive(Debug, thiserror::Error)]
#[error("version 2 for libcontainer: {0}")]
pub(crate) struct UnifiedError(nix::Error);

/// Shows libcontainer a machine with version 2 only, in a mount namespace of this
/// process: it then puts the container into its group there, which has no
/// controllers but is where our programs attach, and leaves version 1 alone.
pub(crate) fn show_unified() -> Result<(), UnifiedError> {
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
    shown().map_err(UnifiedError)
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
    fn hierarchies_of_a_process() {
        let table = "9:name=systemd:/\n3:cpu,cpuacct:/\n2:memory:/a\n0::/\n";
        assert_eq!(
            controllers(table).collect::<Vec<_>>(),
            ["cpu,cpuacct", "memory"]
        );
    }
}
