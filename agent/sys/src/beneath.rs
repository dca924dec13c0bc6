//! A folder whose contents are not trusted, used as if it were the root.
//!
//! An image's layers, a container's root and a pod's volumes hold links that
//! somebody else made. Every path in them is resolved by the kernel with
//! `openat2(2)` and `RESOLVE_IN_ROOT`: ".." and absolute links stay inside.
//!
//! Where a container may change the folder while it is used, one name at a time is
//! resolved from a descriptor that is held, and links and mounts are refused
//! ([`Beneath::open_held`]): such a step cannot be led elsewhere.
//! Callers are `image/`, `volume/` and `removal.rs`.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use nix::NixPath;
use nix::dir::Dir;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, fchmod, mkdirat};

/// A folder that nothing leaves.
#[derive(Debug)]
pub(crate) struct Beneath {
    root: OwnedFd,
}

/// How links inside the folder are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Followed, as if the folder were the root.
    Inside,
    /// Refused with ELOOP.
    Refused,
    /// Followed while they stay inside; those that lead out are refused with EXDEV.
    Beneath,
}

impl Beneath {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self { root: file.into() })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens `path`, which is taken relative to the folder even if absolute.
    pub(crate) fn open_at(&self, path: &Path, flags: OFlag, links: Links) -> io::Result<OwnedFd> {
        let resolve = match links {
            Links::Inside => ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS,
            Links::Refused => ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS,
            Links::Beneath => ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(resolve);
        let path = relative(path);
        loop {
            // EAGAIN: a rename elsewhere raced with "..", and the kernel could not be sure.
            match openat2(self.fd(), path.as_path(), how) {
                Err(nix::errno::Errno::EAGAIN) => {}
                result => return result.map_err(io::Error::from),
            }
        }
    }

    /// Opens a regular file for reading. Never waits: for anything else (a FIFO, a
    /// device) the error is `InvalidInput`.
    pub(crate) fn read(&self, path: &Path, links: Links) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = File::from(self.open_at(path, flags, links)?);
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(file)
    }

    /// Opens what has this name in the folder itself: ELOOP for a link, EXDEV for a
    /// folder that something is mounted on.
    pub(crate) fn open_held<P: NixPath + ?Sized>(
        &self,
        name: &P,
        flags: OFlag,
    ) -> io::Result<OwnedFd> {
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_XDEV;
        let how = OpenHow::new()
            .flags(flags | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(resolve);
        loop {
            match openat2(self.fd(), name, how) {
                Err(nix::errno::Errno::EAGAIN) => {}
                result => return result.map_err(io::Error::from),
            }
        }
    }

    /// A folder in this one, held.
    pub(crate) fn child<P: NixPath + ?Sized>(&self, name: &P) -> io::Result<Self> {
        self.open_held(name, OFlag::O_DIRECTORY).map(Self::from)
    }

    /// Makes a folder in this one, of exactly this mode. One that is there is an error.
    pub(crate) fn make_child<P: NixPath + ?Sized>(&self, name: &P, mode: u32) -> io::Result<Self> {
        mkdirat(self.fd(), name, Mode::from_bits_truncate(0o700))?;
        let child = self.child(name)?;
        fchmod(child.fd(), Mode::from_bits_truncate(mode))?;
        Ok(child)
    }

    /// Makes a file in this folder, which only root may open. One that is there, a link
    /// too, is an error.
    pub(crate) fn create<P: NixPath + ?Sized>(&self, name: &P) -> io::Result<File> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW;
        let mode = Mode::from_bits_truncate(0o600);
        Ok(openat(self.fd(), name, flags | OFlag::O_CLOEXEC, mode)?.into())
    }

    /// Names in this folder, in no order. More than `most` are an error,
    /// `QuotaExceeded`: a container makes as many as it likes.
    pub(crate) fn names(&self, most: usize) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        let mut entries = Dir::from_fd(self.open_held(c".", OFlag::O_DIRECTORY)?)?;
        for entry in entries.iter() {
            let name = entry?.file_name().to_bytes().to_vec();
            if matches!(name.as_slice(), b"." | b"..") {
                continue;
            }
            if names.len() == most {
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
            names.push(OsString::from_vec(name));
        }
        Ok(names)
    }

    /// Opens a folder, which is made with its parents where missing, mode 0755;
    /// `made` is called with each new folder's descriptor and path.
    pub(crate) fn make_dirs(
        &self,
        path: &Path,
        links: Links,
        mut made: impl FnMut(BorrowedFd<'_>, &Path) -> io::Result<()>,
    ) -> io::Result<OwnedFd> {
        const DIR: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_RDONLY);
        let mut done = PathBuf::new();
        let mut fd = self.root.try_clone()?;
        for component in relative(path).components() {
            let parent = fd;
            done.push(component);
            fd = match self.open_at(&done, DIR, links) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match mkdirat(
                        &parent,
                        Path::new(component.as_os_str()),
                        Mode::from_bits_truncate(0o755),
                    ) {
                        // A dangling link is there, but leads to nothing.
                        Err(nix::errno::Errno::EEXIST) => {
                            return Err(io::ErrorKind::NotADirectory.into());
                        }
                        result => result?,
                    }
                    // From the folder that it was made in: the path may lead elsewhere
                    // by now.
                    let new = Self::from(parent.try_clone()?)
                        .open_held(component.as_os_str(), OFlag::O_DIRECTORY)?;
                    made(new.as_fd(), &done)?;
                    new
                }
                result => result?,
            };
        }
        Ok(fd)
    }
}

impl From<OwnedFd> for Beneath {
    fn from(root: OwnedFd) -> Self {
        Self { root }
    }
}

/// Without leading slashes; "." when nothing is left.
fn relative(path: &Path) -> PathBuf {
    let inside: PathBuf = path
        .components()
        .filter(|component| !matches!(component, Component::RootDir | Component::CurDir))
        .collect();
    if inside.as_os_str().as_bytes().is_empty() {
        PathBuf::from(".")
    } else {
        inside
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_do_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("secret"));
        std::fs::create_dir_all(inside.join("etc")).unwrap();
        std::fs::write(&outside, "outside").unwrap();
        std::fs::write(inside.join("etc/passwd"), "inside").unwrap();
        symlink("/etc/passwd", inside.join("absolute")).unwrap();
        symlink("../../../../../secret", inside.join("up")).unwrap();
        symlink("../secret", inside.join("etc/up")).unwrap();
        let root = Beneath::open(&inside).unwrap();
        let text = |path: &str, links| {
            root.read(Path::new(path), links).and_then(|mut file| {
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                Ok(text)
            })
        };
        assert_eq!(text("absolute", Links::Inside).unwrap(), "inside");
        assert_eq!(text("/../../etc/passwd", Links::Inside).unwrap(), "inside");
        assert!(text("up", Links::Inside).is_err());
        assert!(text("etc/up", Links::Inside).is_err());
        assert_eq!(
            text("absolute", Links::Refused).unwrap_err().raw_os_error(),
            Some(libc::ELOOP)
        );
        assert_eq!(
            text("up", Links::Beneath).unwrap_err().raw_os_error(),
            Some(libc::EXDEV)
        );
        let made = root.make_dirs(Path::new("up/x"), Links::Inside, |_, _| Ok(()));
        assert!(made.is_err());
        root.make_dirs(Path::new("/a/b/c"), Links::Inside, |_, _| Ok(()))
            .unwrap();
        assert!(inside.join("a/b/c").is_dir());
    }
}
