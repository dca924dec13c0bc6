//! A control group whose members are threads of the test, so that sockets that a test opens are
//! those of the group.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tests_harness::{NetNs, unique_name};

/// A threaded group below the one that the test runs in; removed in `Drop`.
pub(crate) struct Group {
    folder: PathBuf,
}

impl Group {
    /// Makes it.
    ///
    /// # Panics
    /// If cgroup v2 is not mounted, or the kernel refuses.
    pub(crate) fn new() -> Self {
        let all = fs::read_to_string("/proc/self/cgroup").expect("read own groups");
        let own = all.lines().find_map(|line| line.strip_prefix("0::"));
        let own = own.expect("a group of version 2").trim_end_matches('/');
        let path = format!("{own}/{}", unique_name());
        let groups = agent_sys::cgroup::Groups::open(&path).expect("open groups");
        let folder = groups.parent_in_version_2().expect("cgroup v2");
        fs::create_dir(&folder).expect("make the group");
        let this = Self { folder };
        fs::write(this.folder.join("cgroup.type"), "threaded").expect("make it threaded");
        this
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs a closure on a thread of its own that is in the group and in the namespace.
    ///
    /// # Panics
    /// If the thread cannot join, or if the closure panics.
    pub(crate) fn enter<T: Send>(&self, netns: &NetNs, inside: impl FnOnce() -> T + Send) -> T {
        netns.enter(|| {
            fs::write(self.folder.join("cgroup.threads"), "0").expect("join the group");
            inside()
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel takes a moment to be done with threads that have ended.
        for _ in 0..2000 {
            match fs::remove_dir(&self.folder) {
                Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                removed => {
                    if let Err(error) = removed {
                        eprintln!("{} stays: {error}", self.folder.display());
                    }
                    return;
                }
            }
        }
        eprintln!("{} stays: it is busy", self.folder.display());
    }
}
