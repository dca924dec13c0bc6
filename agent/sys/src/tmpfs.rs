//! File systems in memory: for volumes, and for the folder of what must not reach a disk.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;

use crate::mounts;
use crate::state::{StateError, is_in_memory};

/// A file system in memory.
pub(crate) struct Tmpfs {
    /// Bytes; 0: half of the memory, the kernel's default.
    pub(crate) size: u64,
    /// Of its root.
    pub(crate) mode: u32,
    /// Of its root.
    pub(crate) group: Option<u32>,
    /// Whether its pages may be written to swap, that is to a disk.
    pub(crate) swap: bool,
}

impl Tmpfs {
    fn options(&self) -> String {
        let mut options = format!("mode={:o}", self.mode);
        if self.size > 0 {
            options.push_str(&format!(",size={}", self.size));
        }
        if let Some(group) = self.group {
            options.push_str(&format!(",gid={group}"));
        }
        options
    }

    /// Mounts it at an open folder.
    pub(crate) fn mount(&self, target: BorrowedFd<'_>) -> io::Result<()> {
        let target = PathBuf::from(format!("/proc/self/fd/{}", target.as_raw_fd()));
        let mount = |options: &str| {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            nix::mount::mount(
                Some(mounts::OURS),
                &target,
                Some("tmpfs"),
                flags,
                Some(options),
            )
        };
        let options = self.options();
        if !self.swap {
            // Linux 6.4 and later have the option.
            match mount(&format!("{options},noswap")) {
                Err(Errno::EINVAL) => {}
                mounted => return Ok(mounted?),
            }
        }
        Ok(mount(&options)?)
    }
}

/// Makes sure that what is written to this folder is in memory and never on a disk: mounts
/// a tmpfs at a folder on a disk, if it is empty. True: one was mounted. It stays until the
/// machine restarts, or until the folder is removed by the agent's `cleanup`.
///
/// # Errors
/// [`StateError::OnDisk`] for a folder on a disk that is not empty: what is in it would be
/// hidden, and is on the disk already.
pub fn keep_in_memory(folder: &Path) -> Result<bool, StateError> {
    let failed = |source| StateError::Mount {
        path: folder.to_owned(),
        source,
    };
    if !needs_tmpfs(folder)? {
        return Ok(false);
    }
    let below = File::open(folder).map_err(failed)?;
    // Of two agents that begin at the same time the second one finds the first one's mount.
    below.lock().map_err(failed)?;
    if !needs_tmpfs(folder)? {
        return Ok(false);
    }
    let tmpfs = Tmpfs {
        size: 0,
        mode: 0o700,
        group: None,
        swap: false,
    };
    tmpfs.mount(below.as_fd()).map_err(failed)?;
    Ok(true)
}

/// Whether [`keep_in_memory`] would mount a tmpfs; changes nothing. The folder need not be
/// there.
///
/// # Errors
/// As of [`keep_in_memory`].
pub fn needs_tmpfs(folder: &Path) -> Result<bool, StateError> {
    let existing = folder.ancestors().find(|path| path.exists());
    let existing = existing.unwrap_or(folder);
    if is_in_memory(existing)? {
        return Ok(false);
    }
    let list = |source| StateError::List {
        path: folder.to_owned(),
        source,
    };
    if existing == folder && fs::read_dir(folder).map_err(list)?.next().is_some() {
        return Err(StateError::OnDisk {
            path: folder.to_owned(),
        });
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use nix::mount::{MntFlags, umount2};

    use super::*;

    #[test]
    fn a_folder_on_a_disk_gets_a_tmpfs_once_and_only_if_it_is_empty() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        assert!(
            !is_in_memory(folder.path()).unwrap(),
            "/var/tmp is on a disk"
        );
        let (used, run) = (folder.path().join("used"), folder.path().join("run"));
        fs::create_dir_all(used.join("pods")).unwrap();
        assert!(needs_tmpfs(&run).unwrap(), "not there yet");
        fs::create_dir(&run).unwrap();
        let refused = keep_in_memory(&used).unwrap_err();
        assert!(matches!(refused, StateError::OnDisk { .. }), "{refused}");
        assert!(!is_in_memory(&used).unwrap());

        let mounted = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let made = keep_in_memory(&run).unwrap();
                    mounted.fetch_add(usize::from(made), Ordering::SeqCst);
                });
            }
        });
        let held = is_in_memory(&run).unwrap();
        let mode = fs::metadata(&run).unwrap().permissions().mode() & 0o7777;
        fs::write(run.join("secret"), "x").unwrap();
        let again = keep_in_memory(&run);
        umount2(&run, MntFlags::MNT_DETACH).unwrap();
        assert_eq!((mounted.into_inner(), held, mode), (1, true, 0o700));
        assert!(!again.unwrap(), "one that is in use");
        assert_eq!(
            fs::read_dir(&run).unwrap().count(),
            0,
            "nothing on the disk"
        );
    }
}
