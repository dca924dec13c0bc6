//! File systems in memory: for volumes, and for the folder of what must not reach a disk.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;

use crate::mounts;
use crate::state::{self, StateError, is_in_memory};

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

/// A folder whose contents stay in memory, as it was at the start.
#[derive(Debug)]
pub struct InMemory {
    path: PathBuf,
    /// Open, so that its file system's number is not given to another one.
    folder: File,
    made: Made,
    /// Its pages may be written to swap.
    pub may_swap: bool,
}

/// What was done to have a folder in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Nothing,
    Mount,
}

impl InMemory {
    fn open(path: &Path, made: Made, may_swap: bool) -> Result<Self, StateError> {
        let folder = File::open(path).map_err(|source| StateError::Read {
            path: path.to_owned(),
            source,
        })?;
        let path = path.to_owned();
        Ok(Self {
            path,
            folder,
            made,
            may_swap,
        })
    }

    /// A tmpfs was mounted for it.
    pub fn is_new(&self) -> bool {
        self.made == Made::Mount
    }

    /// Whether its path still leads to it: what is written there may reach a disk else.
    /// To be asked before something secret is written.
    ///
    /// # Errors
    /// [`StateError::Lost`].
    pub fn check(&self) -> Result<(), StateError> {
        let own = self.folder.metadata();
        let there = fs::metadata(&self.path);
        match (own, there) {
            (Ok(own), Ok(there)) if (own.dev(), own.ino()) == (there.dev(), there.ino()) => Ok(()),
            (Ok(_) | Err(_), _) => Err(StateError::Lost {
                path: self.path.clone(),
            }),
        }
    }

    /// Takes back what was done for it: for a start that has failed.
    ///
    /// # Errors
    /// [`StateError::Remove`].
    pub fn abandon(&self) -> Result<(), StateError> {
        if self.made == Made::Nothing || self.check().is_err() {
            return Ok(());
        }
        mounts::detach(&self.path).map_err(|source| StateError::Remove {
            path: self.path.clone(),
            source,
        })
    }
}

/// What has to be done to have a folder in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Nothing {
        /// Its pages may be written to swap, and nothing can be mounted over it.
        may_swap: bool,
    },
    /// A tmpfs of its own.
    Mount,
}

/// Makes sure that what is written to this folder is in memory and never on a disk, nor in
/// swap where Linux can promise that (6.4 and later): mounts a tmpfs of its own there. It
/// stays until the machine restarts, or until the folder is removed by the agent's `cleanup`.
/// A folder in memory that is in use is taken as it is.
///
/// # Errors
/// [`StateError::OnDisk`] for a folder on a disk that is in use: what is in it would be
/// hidden, and is on the disk already.
pub fn keep_in_memory(folder: &Path) -> Result<InMemory, StateError> {
    let failed = |source| StateError::Mount {
        path: folder.to_owned(),
        source,
    };
    if let Need::Nothing { may_swap } = need(folder)? {
        return InMemory::open(folder, Made::Nothing, may_swap);
    }
    let below = File::open(folder).map_err(failed)?;
    // Of two agents that begin at the same time the second one finds the first one's mount.
    below.lock().map_err(failed)?;
    if let Need::Nothing { may_swap } = need(folder)? {
        return InMemory::open(folder, Made::Nothing, may_swap);
    }
    clear(folder)?;
    let tmpfs = Tmpfs {
        size: 0,
        mode: 0o700,
        group: None,
        swap: false,
    };
    tmpfs.mount(below.as_fd()).map_err(failed)?;
    InMemory::open(folder, Made::Mount, may_swap(folder)?)
}

/// What [`keep_in_memory`] would do; changes nothing. The folder need not be there.
///
/// # Errors
/// As of [`keep_in_memory`].
pub fn need(folder: &Path) -> Result<Need, StateError> {
    let existing = folder.ancestors().find(|path| path.exists());
    let existing = existing.unwrap_or(folder);
    let bare = existing != folder || is_bare(folder)?;
    if is_in_memory(existing)? {
        let may_swap = may_swap(existing)?;
        let ours = existing == folder
            && mounts::at(folder)
                .map_err(table)?
                .is_some_and(|mount| mount.source == mounts::OURS);
        if may_swap && bare && !ours {
            return Ok(Need::Mount);
        }
        return Ok(Need::Nothing { may_swap });
    }
    if !bare {
        return Err(StateError::OnDisk {
            path: folder.to_owned(),
        });
    }
    Ok(Need::Mount)
}

fn table(source: io::Error) -> StateError {
    StateError::Read {
        path: mounts::TABLE.into(),
        source,
    }
}

/// Of a folder in memory: a tmpfs without the option, as systemd mounts /run.
fn may_swap(folder: &Path) -> Result<bool, StateError> {
    let mount = mounts::of(folder).map_err(table)?;
    Ok(mount.is_some_and(|mount| {
        mount.fs_type == "tmpfs" && !mount.options.split(',').any(|option| option == "noswap")
    }))
}

/// Whether nothing is in the folder but what an agent leaves that finds its tmpfs gone: our
/// own folders and a lock, which hold no data.
fn is_bare(folder: &Path) -> Result<bool, StateError> {
    let parts = state::run_parts(folder);
    let list = |source| StateError::List {
        path: folder.to_owned(),
        source,
    };
    for entry in fs::read_dir(folder).map_err(list)? {
        let entry = entry.map_err(list)?;
        let ours = parts.contains(&entry.path()) || !entry.file_type().map_err(list)?.is_dir();
        if !ours || holds_data(&entry.path()).map_err(list)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn holds_data(path: &Path) -> io::Result<bool> {
    let metadata = fs::symlink_metadata(path)?;
    let kind = metadata.file_type();
    if !kind.is_dir() {
        return Ok(!kind.is_socket() && (!kind.is_file() || metadata.len() > 0));
    }
    for entry in fs::read_dir(path)? {
        if holds_data(&entry?.path())? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes what [`is_bare`] allows, so that it is not hidden for good.
fn clear(folder: &Path) -> Result<(), StateError> {
    let below = mounts::list(folder).map_err(table)?;
    for pin in below.iter().rev().filter(|mount| mount.fs_type == "nsfs") {
        mounts::detach(&pin.path).map_err(|source| StateError::Remove {
            path: pin.path.clone(),
            source,
        })?;
    }
    for part in state::run_parts(folder) {
        state::remove_folder(&part)?;
    }
    Ok(())
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
        fs::write(used.join("pods/u"), "secret").unwrap();
        assert_eq!(need(&run).unwrap(), Need::Mount, "not there yet");
        fs::create_dir(&run).unwrap();
        let refused = keep_in_memory(&used).unwrap_err();
        assert!(matches!(refused, StateError::OnDisk { .. }), "{refused}");
        assert!(!is_in_memory(&used).unwrap());

        let mounted = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let made = keep_in_memory(&run).unwrap();
                    mounted.fetch_add(usize::from(made.is_new()), Ordering::SeqCst);
                });
            }
        });
        let held = is_in_memory(&run).unwrap();
        let mode = fs::metadata(&run).unwrap().permissions().mode() & 0o7777;
        fs::write(run.join("secret"), "x").unwrap();
        let again = keep_in_memory(&run);
        umount2(&run, MntFlags::MNT_DETACH).unwrap();
        assert_eq!((mounted.into_inner(), held, mode), (1, true, 0o700));
        assert!(!again.unwrap().is_new(), "one that is in use");
        assert_eq!(
            fs::read_dir(&run).unwrap().count(),
            0,
            "nothing on the disk"
        );
    }

    #[test]
    fn a_folder_that_was_unmounted_is_found_out_and_can_be_had_again() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let run = folder.path().join("run");
        fs::create_dir(&run).unwrap();
        let first = keep_in_memory(&run).unwrap();
        first.check().unwrap();
        fs::write(run.join("secret"), "x").unwrap();
        umount2(&run, MntFlags::MNT_DETACH).unwrap();
        let lost = first.check().unwrap_err();
        assert!(matches!(lost, StateError::Lost { .. }), "{lost}");
        // What a start and a shim leave on the disk by then holds nothing.
        fs::create_dir_all(run.join("shim/u/state")).unwrap();
        fs::write(run.join("lock"), "").unwrap();
        let socket = run.join("shim/u/socket");
        drop(std::os::unix::net::UnixListener::bind(socket).unwrap());
        let second = keep_in_memory(&run);
        let found = (second.is_ok(), is_in_memory(&run).unwrap());
        let of_the_first = first.check().is_err();
        second.unwrap().abandon().unwrap();
        assert_eq!((found, of_the_first), ((true, true), true));
        assert!(!is_in_memory(&run).unwrap(), "taken back");
        assert!(!run.join("shim").exists());
        // Folders of others, and what may be secret, are neither hidden nor removed.
        for path in ["theirs/x", "pods/u"] {
            let path = run.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "kept").unwrap();
            let refused = keep_in_memory(&run).unwrap_err();
            assert!(matches!(refused, StateError::OnDisk { .. }), "{refused}");
            assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
            fs::remove_dir_all(path.parent().unwrap()).unwrap();
        }
    }

    #[test]
    fn a_tmpfs_whose_pages_may_be_swapped_out_gets_one_without_swap() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let shared = folder.path().join("shared");
        fs::create_dir(&shared).unwrap();
        let tmpfs = Tmpfs {
            size: 0,
            mode: 0o755,
            group: None,
            swap: true,
        };
        tmpfs.mount(File::open(&shared).unwrap().as_fd()).unwrap();
        let (run, used) = (shared.join("run"), shared.join("used"));
        fs::create_dir(&run).unwrap();
        fs::create_dir_all(used.join("pods")).unwrap();
        fs::write(used.join("pods/u"), "secret").unwrap();
        let needs = (need(&run).unwrap(), need(&used).unwrap());
        let own = keep_in_memory(&run).unwrap();
        let options = mounts::at(&run).unwrap().unwrap().options;
        let found = (own.is_new(), own.may_swap, options.contains("noswap"));
        let again = need(&run).unwrap();
        own.abandon().unwrap();
        umount2(&shared, MntFlags::MNT_DETACH).unwrap();
        assert_eq!(found, (true, false, true), "{options}");
        assert_eq!(again, Need::Nothing { may_swap: false });
        // One that is in use cannot be mounted over.
        assert_eq!(needs, (Need::Mount, Need::Nothing { may_swap: true }));
    }
}
