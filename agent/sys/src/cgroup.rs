//! Cgroups of pods, below our parent group: what the agent does with them.
//!
//! Paths, values and the operations themselves are `agent-cgroup`'s; the groups of
//! containers are made by the shim. Called by the daemon's `apply.rs` and `observe.rs`.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use proto::v1::ShimResources;

use crate::process::Pidfd;

use agent_cgroup::{Group, Hierarchies};
pub use agent_cgroup::{GroupError, GroupPath, Parent, PathError, Version};

/// How often the processes of a pod are killed, and the pause after each time.
const KILLS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(5);

/// Our part of the machine's groups.
#[derive(Debug, Clone)]
pub struct Groups {
    hierarchies: Arc<Hierarchies>,
    parent: Parent,
}

impl Groups {
    /// Finds the hierarchies; makes nothing. `parent` is relative to their roots:
    /// "/hydrofoil".
    pub fn open(parent: &str) -> Result<Self, GroupError> {
        Ok(Self {
            parent: Parent::parse(parent)?,
            hierarchies: Arc::new(Hierarchies::mounted()?),
        })
    }

    /// Which kind this machine has.
    pub fn version(&self) -> Version {
        self.hierarchies.version()
    }

    /// Path of a pod's group.
    pub fn pod_path(&self, uid: &str) -> Result<GroupPath, PathError> {
        self.parent.pod(uid)
    }

    /// Path of the group of a container's attempt: `ShimCreate.cgroup`.
    pub fn container_path(
        &self,
        uid: &str,
        container: &str,
        attempt: u32,
    ) -> Result<GroupPath, PathError> {
        self.pod_path(uid)?.container(container, attempt)
    }

    /// Makes our parent group, and leaves its limits as they are.
    pub fn make_parent(&self) -> Result<(), GroupError> {
        self.hierarchies.make_parent(&self.parent)
    }

    /// The folder that stands for our parent group; it need not be there.
    pub fn parent_folder(&self) -> Result<PathBuf, GroupError> {
        self.hierarchies.parent_folder(&self.parent)
    }

    /// Makes our parent group and limits all pods together. It may be there already.
    pub fn create_parent(&self, limits: &ShimResources) -> Result<(), GroupError> {
        self.hierarchies.create_parent(&self.parent, limits)
    }

    /// Makes a pod's group and sets its limits. It may be there already; limits that are
    /// not given are then taken off.
    pub fn create(&self, uid: &str, limits: &ShimResources) -> Result<(), GroupError> {
        self.pod(uid)?.create(limits)
    }

    /// Pod uids that have a group in any hierarchy, sorted.
    pub fn list(&self) -> Result<Vec<String>, GroupError> {
        self.hierarchies.pods(&self.parent)
    }

    /// Sends SIGKILL to all processes of a pod until none is left, for up to a second: one
    /// that is listed may fork before it is killed. How many there were at first. For what
    /// a dead shim left behind, a container in the making among it. Blocking.
    pub fn kill(&self, uid: &str) -> Result<usize, GroupError> {
        let pod = self.pod(uid)?;
        let mut pids = pod.processes();
        let count = pids.len();
        for _ in 0..KILLS {
            if pids.is_empty() {
                break;
            }
            for pid in &pids {
                if let Ok(process) = Pidfd::open(*pid) {
                    // One that we may not kill shows when its group cannot be removed.
                    if let Err(error) = process.signal(libc::SIGKILL) {
                        tracing::warn!(pid, %error, "cannot kill a pod's process");
                    }
                }
            }
            thread::sleep(PAUSE);
            pids = pod.processes();
        }
        Ok(count)
    }

    /// Removes a pod's groups, containers' included; they need not be there. Waits up to
    /// a second for processes that are just ending. Blocking.
    pub fn remove(&self, uid: &str) -> Result<(), GroupError> {
        self.pod(uid)?.remove()
    }

    /// Folder of our parent group in version 2, where programs on sockets are attached; `None`
    /// when only version 1 is mounted.
    pub fn parent_in_version_2(&self) -> Option<PathBuf> {
        self.hierarchies.parent_in_version_2(&self.parent)
    }

    /// Removes our parent group, which must have no pods any more.
    pub fn remove_parent(&self) -> Result<(), GroupError> {
        self.hierarchies.remove_parent(&self.parent)
    }

    fn pod(&self, uid: &str) -> Result<Group, GroupError> {
        Ok(Group::new(&self.hierarchies, self.pod_path(uid)?))
    }
}
