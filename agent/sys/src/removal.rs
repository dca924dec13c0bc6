//! Removing folders whose contents are not trusted.
//!
//! A container may have made links in them, mounts (a privileged one), or folders in
//! folders without end. Nothing is removed by path: no link is followed, no mount is
//! entered, and a fixed number of descriptors is open, however deep it goes.
//! Callers are `volume/` and `image/`.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, renameat2};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::beneath::Beneath;

/// Folders that are open at the same time. What is deeper is moved up first.
const DEPTH: usize = 32;

/// How many entries may be removed in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Most {
    /// For what no process can write to any more.
    All,
    /// For what a container may add to meanwhile.
    Entries(usize),
}

/// Removes a file or a folder with all in it; nothing there is success.
///
/// # Errors
/// EXDEV for a folder that something is mounted on; `QuotaExceeded` when there is more
/// than `most`.
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &CStr, most: Most) -> io::Result<()> {
    let mut work = Removal {
        left: match most {
            Most::All => usize::MAX,
            Most::Entries(count) => count,
        },
        moved: 0,
    };
    if work.unlink(parent, name)? {
        return Ok(());
    }
    let top = match open(parent, name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        top => top?,
    };
    loop {
        let before = work.left;
        work.empty(top.as_fd(), top.as_fd(), 0)?;
        match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            // What was moved up, or added meanwhile.
            Err(Errno::ENOTEMPTY) if work.left < before => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The same by path, of which all but the last part is trusted.
pub(crate) fn remove(path: &Path, most: Most) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let name = CString::new(name.as_encoded_bytes())?;
    match Beneath::open(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        parent => remove_at(parent?.fd(), &name, most),
    }
}

struct Removal {
    /// Entries that may still be looked at.
    left: usize,
    /// Folders that were moved up, for names.
    moved: u64,
}

impl Removal {
    /// Removes what is no folder, or an empty one. False: it is a folder with entries.
    fn unlink(&self, parent: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
        match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(true),
            Err(Errno::EISDIR) => {}
            Err(errno) => return Err(errno.into()),
        }
        match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(true),
            // ENOTDIR: replaced in between. EBUSY: something is mounted there, which
            // opening tells.
            Err(Errno::ENOTEMPTY | Errno::ENOTDIR | Errno::EBUSY) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Goes over a folder's entries once. Some may be left: another pass finds them.
    fn empty(
        &mut self,
        top: BorrowedFd<'_>,
        folder: BorrowedFd<'_>,
        depth: usize,
    ) -> io::Result<()> {
        // A descriptor of its own, as reading moves its position.
        let mut entries = Dir::from_fd(open(folder, c".")?)?;
        for entry in entries.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.left = self
                .left
                .checked_sub(1)
                .ok_or(io::ErrorKind::QuotaExceeded)?;
            if self.unlink(folder, name)? {
                continue;
            }
            if depth == DEPTH {
                self.move_up(top, folder, name)?;
                continue;
            }
            let below = match open(folder, name) {
                // Replaced or removed in between.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)
                    ) =>
                {
                    continue;
                }
                below => below?,
            };
            self.empty(top, below.as_fd(), depth + 1)?;
            self.unlink(folder, name)?;
        }
        Ok(())
    }

    fn move_up(
        &mut self,
        top: BorrowedFd<'_>,
        folder: BorrowedFd<'_>,
        name: &CStr,
    ) -> io::Result<()> {
        loop {
            self.moved += 1;
            let new = CString::new(format!(".removed-{}", self.moved))?;
            let flags = RenameFlags::RENAME_NOREPLACE;
            match renameat2(folder, name, top, new.as_c_str(), flags) {
                Ok(()) | Err(Errno::ENOENT) => return Ok(()),
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn open(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    Beneath::from(parent.try_clone_to_owned()?).open_held(name, OFlag::O_DIRECTORY)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    use super::*;

    #[test]
    fn files_folders_and_links_go_and_what_links_lead_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("a/b/c")).unwrap();
        fs::write(top.join("a/b/file"), "x").unwrap();
        symlink(&outside, top.join("a/link")).unwrap();
        symlink(&outside, dir.path().join("link")).unwrap();
        for name in ["top", "link", "missing"] {
            remove(&dir.path().join(name), Most::All).unwrap();
            assert!(
                fs::symlink_metadata(dir.path().join(name)).is_err(),
                "{name}"
            );
        }
        remove(&dir.path().join("missing/below"), Most::All).unwrap();
        assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "x");
    }

    #[test]
    fn depth_costs_no_descriptors() {
        // Deeper than descriptors or stack would reach, if each level took some.
        const LEVELS: usize = 5_000;
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("top")).unwrap();
        let mut at = Beneath::open(&dir.path().join("top")).unwrap();
        for level in 0..LEVELS {
            if level % 100 == 0 {
                // A name that the removal itself would take.
                at.make_child(c".removed-1", 0o700).unwrap();
            }
            at = at.make_child(c"d", 0o700).unwrap();
            drop(at.create(c"file").unwrap());
        }
        drop(at);
        let before = fs::read_dir("/proc/self/fd").unwrap().count();
        remove(&dir.path().join("top"), Most::All).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let after = fs::read_dir("/proc/self/fd").unwrap().count();
        assert!(after <= before + DEPTH, "{before} {after}");
    }

    #[test]
    fn there_is_an_end_to_what_is_removed_while_it_grows() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        for number in 0..20 {
            fs::write(top.join(number.to_string()), "").unwrap();
        }
        let error = remove(&top, Most::Entries(10)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
        remove(&top, Most::Entries(10)).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn mounts_are_not_entered() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("top/a/mounted");
        fs::create_dir_all(&below).unwrap();
        let (none, flags) = (None::<&str>, MsFlags::empty());
        mount(Some("foil"), &below, Some("tmpfs"), flags, none).unwrap();
        fs::write(below.join("kept"), "x").unwrap();
        let refused = remove(&dir.path().join("top"), Most::All);
        let kept = fs::read_to_string(below.join("kept"));
        umount2(&below, MntFlags::MNT_DETACH).unwrap();
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EXDEV));
        assert_eq!(kept.unwrap(), "x");
        remove(&dir.path().join("top"), Most::All).unwrap();
    }
}
