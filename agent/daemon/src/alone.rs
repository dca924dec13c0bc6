//! One agent works with a set of folders, a parent cgroup and a folder of pins, and one in a
//! network namespace.
//!
//! A lock in each folder says so of folders; a group and a folder on a bpffs take no files
//! and are locked themselves. In a network namespace `foil0` does: its alias is
//! the `run` folder of the agent that made it, and the lock there says whether that one runs.
//! Called by `main.rs`, `startup.rs` and `cleanup.rs`.

use std::fs::{File, Metadata, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_plan::link::SERVICE_LINK;
use agent_plan::settings::ServiceLink;
use agent_sys::bpf::{self, BpfError};
use agent_sys::cgroup::{GroupError, Groups};
use agent_sys::link::{self, LinkError, Mac, Netlink};
use agent_sys::state::{self, StateError};

use crate::config::Config;

/// Name of the lock in a folder.
pub(crate) const LOCK: &str = "lock";
/// How long an agent that was killed may take to be gone: the kernel closes its files,
/// and with them the lock, only after its memory and its BPF handles.
const LAST_BREATH: Duration = Duration::from_secs(3);
/// How often that is looked at.
const BREATH: Duration = Duration::from_millis(20);

/// Why the agent must not work here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AloneError {
    /// The folder of a lock.
    #[error(transparent)]
    State(#[from] StateError),
    /// The lock itself.
    #[error("{path} is not usable: {source}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent works with the same folder.
    #[error("another foil-agent runs with {path}: {source}")]
    Folder {
        /// The lock.
        path: PathBuf,
        /// Its answer.
        source: TryLockError,
    },
    /// The folder of the lock is another one by now.
    #[error(
        "{path} was removed while foil-agent waited for it: the start of another one has failed \
         there; start again"
    )]
    Removed {
        /// The lock.
        path: PathBuf,
    },
    /// An agent with other folders works with the same group or pins.
    #[error(
        "another foil-agent runs with {path} ({source}): agents of one machine need a `{key}` each"
    )]
    Shared {
        /// "cgroup" or "bpffs".
        key: &'static str,
        /// What both work with.
        path: PathBuf,
        /// The lock's answer.
        source: TryLockError,
    },
    /// The parent group.
    #[error(transparent)]
    Cgroup(#[from] GroupError),
    /// The folder of the pins.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// Another agent works in the same network namespace.
    #[error(
        "another foil-agent runs in this network namespace, with run = {run:?}: {SERVICE_LINK} is its"
    )]
    Namespace {
        /// Its folder.
        run: String,
    },
    /// Whose the namespace is cannot be asked.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// The locks: held for as long as this lives.
#[derive(Debug)]
pub(crate) struct Alone {
    files: Vec<File>,
}

/// Makes sure that no other agent works with the same folders. One that was just killed is
/// waited for.
pub(crate) async fn in_folders(config: &Config) -> Result<Alone, AloneError> {
    let mut files = Vec::new();
    for folder in [&config.run, &config.root] {
        state::create_folder(folder)?;
        let path = folder.join(LOCK);
        let file = File::create(&path).map_err(|source| AloneError::Lock {
            path: path.clone(),
            source,
        })?;
        match patiently(|| file.try_lock()).await {
            Ok(()) if leads_to(&path, &file) => files.push(file),
            Ok(()) => return Err(AloneError::Removed { path }),
            Err(source) => return Err(AloneError::Folder { path, source }),
        }
    }
    Ok(Alone { files })
}

/// Whether the path names this file: who waited for a lock may have one that was removed,
/// with its folder or file system.
fn leads_to(path: &Path, file: &File) -> bool {
    let (there, own) = (std::fs::metadata(path), file.metadata());
    let same =
        |there: Metadata, own: Metadata| (there.dev(), there.ino()) == (own.dev(), own.ino());
    there.is_ok_and(|there| own.is_ok_and(|own| same(there, own)))
}

/// What an agent shares with no other one beside its folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Is made: to work with it.
    Made,
    /// Stays so: to remove it.
    Left,
}

impl Alone {
    /// Makes sure that no other agent works with the same parent cgroup or the same folder of
    /// pins. Such an agent may have folders and a network namespace of its own.
    pub(crate) async fn with_parts(
        mut self,
        config: &Config,
        missing: Missing,
    ) -> Result<Alone, AloneError> {
        let groups = Groups::open(&config.cgroup)?;
        let parts = [
            ("cgroup", groups.parent_folder()?),
            ("bpffs", config.bpffs.clone()),
        ];
        // One that is refused has made nothing.
        let mut locks = locked(&parts).await?;
        if missing == Missing::Made {
            drop(locks);
            groups.make_parent()?;
            bpf::make_folder(&config.bpffs)?;
            locks = locked(&parts).await?;
        }
        self.files.extend(locks);
        Ok(self)
    }
}

/// Locks those of these folders that are there.
async fn locked(parts: &[(&'static str, PathBuf)]) -> Result<Vec<File>, AloneError> {
    let mut locks = Vec::new();
    for (key, path) in parts {
        let path = path.clone();
        let folder = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(|source| AloneError::Lock {
                path: path.clone(),
                source,
            })?,
        };
        match patiently(|| folder.try_lock()).await {
            Ok(()) => locks.push(folder),
            Err(source) => return Err(AloneError::Shared { key, path, source }),
        }
    }
    Ok(locks)
}

async fn patiently(mut lock: impl FnMut() -> Result<(), TryLockError>) -> Result<(), TryLockError> {
    let mut waited = Duration::ZERO;
    loop {
        match lock() {
            Err(TryLockError::WouldBlock) if waited < LAST_BREATH => {
                tokio::time::sleep(BREATH).await;
                waited += BREATH;
            }
            other => return other,
        }
    }
}

/// Removes a folder that has nothing but the lock in it, while the lock is held: a start
/// refuses a `run` on a disk that is not empty.
pub(crate) fn forget(run: &Path) {
    let only = |name: &String| name == LOCK;
    let names = state::list(run).unwrap_or_default();
    if !names.iter().all(only) {
        return;
    }
    let removed = std::fs::remove_file(run.join(LOCK)).and_then(|()| std::fs::remove_dir(run));
    if let Err(error) = removed {
        tracing::debug!(%error, run = %run.display(), "the lock stays");
    }
}

/// What `foil0` has as its alias if the agent with this folder made it.
pub(crate) fn owner(run: &Path) -> String {
    let run = std::fs::canonicalize(run).unwrap_or_else(|_| run.to_owned());
    link::alias(&run.to_string_lossy()).to_owned()
}

/// `foil0`, found or made as this owner's, with the index and address that it has.
pub(crate) async fn service_link(
    netlink: &Netlink,
    mtu: u32,
    owner: &str,
    fixed: Option<(u32, Mac)>,
) -> Result<ServiceLink, LinkError> {
    let wanted = link::ServiceLink {
        name: SERVICE_LINK.into(),
        mtu,
        fixed,
        owner: owner.into(),
    };
    let (ifindex, mac) = netlink.put_service_link(&wanted).await?;
    Ok(ServiceLink { ifindex, mac, mtu })
}

/// Makes sure that no other agent works in this network namespace. Returns the folder of one
/// that did and does not run any more, if `foil0` is of its making.
pub(crate) async fn in_namespace(
    netlink: &Netlink,
    run: &Path,
) -> Result<Option<String>, AloneError> {
    let observed = netlink.observe().await?;
    let mut links = observed.links.into_iter();
    let alias = links
        .find(|link| link.name == SERVICE_LINK)
        .and_then(|link| link.alias);
    let Some(other) = alias.filter(|alias| *alias != owner(run)) else {
        return Ok(None);
    };
    // Not to be made: the folder may be gone, or be that of another mount namespace.
    let held = match File::open(Path::new(&other).join(LOCK)) {
        Ok(file) => patiently(|| file.try_lock_shared()).await.is_err(),
        Err(_) => false,
    };
    if held {
        return Err(AloneError::Namespace { run: other });
    }
    Ok(Some(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(run: &Path, root: &Path) -> Config {
        let text = format!(
            "node_name = \"n1\"\ncontrol = \"https://172.31.0.1:7443\"\nrun = {run:?}\nroot = {root:?}\n"
        );
        crate::config::parse(&text).unwrap()
    }

    /// A killed agent keeps its lock for a moment; its successor must not give up on it.
    #[tokio::test]
    async fn waits_for_one_that_is_on_its_way_out_and_refuses_one_that_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name| folder.path().join(name);
        let same = config(&at("run"), &at("root"));
        let first = in_folders(&same).await.unwrap();
        let (freed, second) = tokio::join!(
            async {
                tokio::time::sleep(5 * BREATH).await;
                drop(first);
            },
            in_folders(&same)
        );
        let () = freed;
        let _second = second.unwrap();
        for (run, root) in [("run", "root"), ("run", "other"), ("other", "root")] {
            let refused = in_folders(&config(&at(run), &at(root))).await;
            assert!(
                matches!(refused, Err(AloneError::Folder { .. })),
                "{run} {root}: {refused:?}"
            );
        }
    }
}
