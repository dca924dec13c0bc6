//! Paths of the agent's files under `root` and `run`.
//!
//! Typed paths only: no other module joins folder names. Not here: what is in the
//! files, beyond "one prost message". Called by the daemon, and by `netns`, `shim`.
//!
//! ```text
//! root/images                         content store (image.rs)
//! root/pods/UID/volumes/NAME
//! root/pods/UID/containers/ID         a container's root file system and last words
//! root/logs/NS_NAME_UID/CONTAINER/ATTEMPT.log
//! root/state/pushed                   what was last pushed (journal.rs)
//! run/pods/UID                        complete record of a pod, with its secrets
//! run/shim/UID/{socket,log,state}     state: config.json, with the environment
//! run/ns/UID/{net,ipc,uts}
//! run/seccomp                         compiled filters
//! ```

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use nix::unistd::{AccessFlags, access};

use crate::mounts;
use crate::removal::{self, Most};

/// A file of the agent could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A folder could not be made.
    #[error("create folder {path}: {source}")]
    Create { path: PathBuf, source: io::Error },
    /// A file could not be replaced.
    #[error("write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    /// A file is there and cannot be read.
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    /// A folder could not be listed.
    #[error("list {path}: {source}")]
    List { path: PathBuf, source: io::Error },
    /// A folder or file could not be removed.
    #[error("remove {path}: {source}")]
    Remove { path: PathBuf, source: io::Error },
    /// A folder of secrets is on a disk, and in use.
    #[error(
        "{path} is on a disk and not empty: environments and secrets of pods would be written \
         there; stop the pods and empty it, or name a folder on a tmpfs as `run`"
    )]
    OnDisk { path: PathBuf },
    /// A folder of secrets is another one than at the start.
    #[error(
        "{path} was unmounted or removed while it was in use: environments and secrets of pods \
         would be written to the disk below; start foil-agent again, which mounts a new tmpfs \
         there and begins the pods anew"
    )]
    Lost { path: PathBuf },
    /// A tmpfs could not be mounted.
    #[error("mount a tmpfs at {path}: {source}")]
    Mount { path: PathBuf, source: io::Error },
    /// Something is still mounted in a folder that is to go.
    #[error("remove {path}: {mount} is still mounted")]
    Mounted { path: PathBuf, mount: PathBuf },
}

/// The folders of one node.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    run: PathBuf,
}

impl Layout {
    /// `root` survives a reboot; `run` must not, and is to be on a tmpfs: environments and
    /// secrets of pods lie there. Both absolute; nothing is touched.
    pub fn new(root: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            run: run.into(),
        }
    }

    /// Makes the top folders, readable by root only.
    pub fn create(&self) -> Result<(), StateError> {
        for path in [&self.root, &self.run] {
            create_folder(path)?;
        }
        for path in self.parts() {
            create_folder(&path)?;
        }
        Ok(())
    }

    /// The folders of ours in the two top folders.
    pub fn parts(&self) -> [PathBuf; 8] {
        let [records, shims, namespaces, seccomp] = run_parts(&self.run);
        [
            self.images(),
            self.pods(),
            self.logs(),
            self.root.join("state"),
            records,
            shims,
            namespaces,
            seccomp,
        ]
    }

    /// What survives a reboot.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What lives as long as the machine is up.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// The image store's folder.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Folder of all pods' folders; their names are uids.
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// Folder of the complete records of all pods; their names are uids.
    pub fn records(&self) -> PathBuf {
        let [records, ..] = run_parts(&self.run);
        records
    }

    /// The complete record of one pod, with its environment and secrets.
    pub fn record(&self, uid: &str) -> PathBuf {
        self.records().join(uid)
    }

    /// Folder of one pod.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// Folder of a pod's volumes.
    pub fn volumes(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumes")
    }

    /// One volume of a pod.
    pub fn volume(&self, uid: &str, name: &str) -> PathBuf {
        self.volumes(uid).join(name)
    }

    /// Folder of a pod's containers; their names are container ids.
    pub fn bundles(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("containers")
    }

    /// What of one container lies on the disk. Its config.json does not: it has the
    /// environment in it, and lies with the shim, under `run`.
    pub fn bundle(&self, uid: &str, id: &str) -> PathBuf {
        self.bundles(uid).join(id)
    }

    /// Where one container's root file system is mounted: `ShimCreate.rootfs`.
    pub fn rootfs(&self, uid: &str, id: &str) -> PathBuf {
        self.bundle(uid, id).join("rootfs")
    }

    /// Folder of all pods' logs; names end with "_UID".
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Folder of one pod's logs; named as Kubernetes names it.
    pub fn pod_logs(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.logs().join(format!("{namespace}_{name}_{uid}"))
    }

    /// Log file of one attempt of a container: `ShimCreate.log_path`.
    pub fn log(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        container: &str,
        attempt: u32,
    ) -> PathBuf {
        self.pod_logs(namespace, name, uid)
            .join(container)
            .join(format!("{attempt}.log"))
    }

    /// A file kept over restarts: "pushed".
    pub fn state(&self, name: &str) -> PathBuf {
        self.root.join("state").join(name)
    }

    /// Folder of all shims' folders; their names are pod uids.
    pub fn shims(&self) -> PathBuf {
        let [_, shims, ..] = run_parts(&self.run);
        shims
    }

    /// Folder of one pod's shim.
    pub fn shim(&self, uid: &str) -> PathBuf {
        self.shims().join(uid)
    }

    /// The shim's socket.
    pub fn shim_socket(&self, uid: &str) -> PathBuf {
        self.shim(uid).join("socket")
    }

    /// Folder of all pods' pinned namespaces; their names are pod uids.
    pub fn namespaces(&self) -> PathBuf {
        let [_, _, namespaces, _] = run_parts(&self.run);
        namespaces
    }

    /// Folder of one pod's pinned namespaces: `net`, `ipc`, `uts`.
    pub fn namespace(&self, uid: &str) -> PathBuf {
        self.namespaces().join(uid)
    }

    /// Compiled seccomp filters, shared by all shims of the node.
    pub fn seccomp_cache(&self) -> PathBuf {
        let [.., seccomp] = run_parts(&self.run);
        seccomp
    }
}

/// The folders of ours in `run`: complete records, shims, namespaces, filters.
pub(crate) fn run_parts(run: &Path) -> [PathBuf; 4] {
    ["pods", "shim", "ns", "seccomp"].map(|name| run.join(name))
}

/// True if what is written there is in memory and never on a disk (but for swap).
pub fn is_in_memory(folder: &Path) -> Result<bool, StateError> {
    /// RAMFS_MAGIC of linux/magic.h.
    const RAMFS: FsType = FsType(0x8584_58f6);
    let found = statfs(folder).map_err(|errno| StateError::Read {
        path: folder.into(),
        source: errno.into(),
    })?;
    Ok([TMPFS_MAGIC, RAMFS].contains(&found.filesystem_type()))
}

/// Whether this process may write there; on a read-only file system it may not.
pub fn is_writable(folder: &Path) -> Result<(), StateError> {
    access(folder, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| StateError::Write {
        path: folder.into(),
        source: errno.into(),
    })
}

/// Whether a write failed because the file system, or the quota, is used up.
pub fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// Makes a folder and its parents, mode 0700. It may be there already.
pub fn create_folder(path: &Path) -> Result<(), StateError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| StateError::Create {
            path: path.into(),
            source,
        })
}

/// Replaces a file whole, on the disk when it returns. Blocking.
///
/// # Errors
/// [`StateError::Write`]
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), StateError> {
    proto::file::replace(path, content, mode).map_err(|source| StateError::Write {
        path: path.into(),
        source,
    })
}

/// Names in a folder, sorted; none when the folder is not there.
pub fn list(folder: &Path) -> Result<Vec<String>, StateError> {
    let error = |source| StateError::List {
        path: folder.into(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(error(source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        // Not UTF-8: the agent did not make it.
        if let Ok(name) = entry.map_err(error)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// DNS label (RFC 1123): what uids, container and volume names are made of.
pub fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
}

/// DNS subdomain: names of pods.
pub fn is_subdomain(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|part| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

/// Names in a folder that can be uids of pods, sorted. Other names are not ours, and
/// must not become parts of paths: ".." is one of them.
pub fn uids(folder: &Path) -> Result<Vec<String>, StateError> {
    let mut names = list(folder)?;
    names.retain(|name| is_label(name));
    Ok(names)
}

/// The uid in the name of a pod's log folder, "NAMESPACE_NAME_UID"; `None` for any other
/// name.
pub fn uid_of_logs(name: &str) -> Option<&str> {
    let mut parts = name.split('_');
    let (namespace, pod, uid) = (parts.next()?, parts.next()?, parts.next()?);
    let is_whole = parts.next().is_none();
    (is_whole && is_label(namespace) && is_subdomain(pod) && is_label(uid)).then_some(uid)
}

/// Removes a folder and all in it; it need not be there. Its last part is removed from
/// the open parent folder: no link is followed, and ".." is refused. Refused while
/// something is mounted below: removal would empty what is mounted.
pub fn remove_folder(path: &Path) -> Result<(), StateError> {
    let below = mounts::list(path).map_err(|source| StateError::Read {
        path: mounts::TABLE.into(),
        source,
    })?;
    if let Some(mount) = below.into_iter().next_back() {
        return Err(StateError::Mounted {
            path: path.into(),
            mount: mount.path,
        });
    }
    let removed = if is_named(path) {
        removal::remove(path, Most::All)
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    };
    removed.map_err(|source| StateError::Remove {
        path: path.into(),
        source,
    })
}

/// Whether the last part of a path, as it was joined, is a name: [`Path::file_name`]
/// leaves out "" and ".", and would name the folder above.
fn is_named(path: &Path) -> bool {
    let mut parts = path.as_os_str().as_bytes().rsplit(|byte| *byte == b'/');
    !matches!(parts.next(), None | Some(b"" | b"." | b".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_memory_is_told_from_what_is_not() {
        assert!(is_in_memory(Path::new("/dev/shm")).unwrap());
        assert!(!is_in_memory(Path::new("/proc")).unwrap());
        assert!(is_in_memory(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn a_removal_is_not_led_out_of_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path().join("lib"), folder.path().join("run"));
        layout.create().unwrap();
        let kept = layout.record("u");
        fs::write(&kept, "secret").unwrap();
        std::os::unix::fs::symlink(layout.records(), layout.shim("link")).unwrap();
        for uid in ["..", ".", ""] {
            assert!(remove_folder(&layout.shim(uid)).is_err(), "{uid:?}");
            assert!(kept.exists(), "{uid:?}");
        }
        remove_folder(&layout.shim("link")).unwrap();
        assert!(kept.exists() && !layout.shim("link").exists());
    }

    #[test]
    fn names_from_the_disk_are_parsed_strictly() {
        for (name, uid) in [
            ("default_web-0.a_6f1a-b2", Some("6f1a-b2")),
            ("a_..", None),
            ("a_b_..", None),
            ("a_.._u", None),
            ("_b_u", None),
            ("a_b_", None),
            ("a_b_c_u", None),
            ("u", None),
            ("a_b_-u", None),
        ] {
            assert_eq!(uid_of_logs(name), uid, "{name}");
        }
        let folder = tempfile::tempdir().unwrap();
        for name in ["6f1a-b2", "a_b", "...", "-x", ".hidden", "u"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        assert_eq!(uids(folder.path()).unwrap(), ["6f1a-b2", "u"]);
    }

    #[test]
    fn a_missing_folder_lists_and_removes_as_empty() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        assert!(list(&missing).unwrap().is_empty());
        remove_folder(&missing).unwrap();
    }
}
