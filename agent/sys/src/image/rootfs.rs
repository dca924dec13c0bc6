//! A container's root: an overlay of its image's layers, and our mounts.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::unistd::{Gid, Uid, fchown};

use super::Image;
use crate::beneath::{Beneath, Links};
use crate::mounts;
use crate::removal::{self, Most};

/// mount(2) takes one page of options.
const MAX_OPTIONS: usize = 4000;

/// What went wrong with a mount.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    #[error("{verb} {path:?}: {source}")]
    Io {
        verb: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path:?} still holds mounts: {mounts:?}")]
    Busy { path: PathBuf, mounts: Vec<PathBuf> },
}

/// Mounts a container's root at `dir/rootfs`, with `dir/upper` and `dir/work`
/// beside it, `dir` being `pods/UID/NAME-ATTEMPT`. What an earlier, unmounted
/// attempt left in `dir` is removed: a container starts from its image.
/// Returns `dir/rootfs`.
///
/// # Errors
/// [`RootfsError`]; then nothing is left mounted.
pub fn mount(dir: &Path, image: &Image) -> Result<PathBuf, RootfsError> {
    unmount(dir)?;
    let (rootfs, upper, work) = (dir.join("rootfs"), dir.join("upper"), dir.join("work"));
    for path in [&rootfs, &upper, &work] {
        fs::create_dir_all(path).map_err(failed("make", path))?;
    }
    // The overlay's root takes owner and mode from the uppermost folder.
    if let Some(top) = image.layers.last() {
        let metadata = fs::metadata(top).map_err(failed("read", top))?;
        chown(&upper, Some(metadata.uid()), Some(metadata.gid()))
            .and_then(|()| fs::set_permissions(&upper, fs::Permissions::from_mode(metadata.mode())))
            .map_err(failed("set attributes of", &upper))?;
    }
    let note = dir.join("image");
    fs::write(&note, &image.digest).map_err(failed("write", &note))?;
    overlay(image, dir, &rootfs)?;
    Ok(rootfs)
}

fn overlay(image: &Image, dir: &Path, rootfs: &Path) -> Result<(), RootfsError> {
    // An image without layers still has a root.
    let empty = dir.join("empty");
    let mut lowers: Vec<PathBuf> = image.layers.iter().rev().cloned().collect();
    if lowers.is_empty() {
        fs::create_dir_all(&empty).map_err(failed("make", &empty))?;
        lowers.push(empty);
    }
    // `volatile`: no sync of the disk at each unmount. A root does not outlive
    // its container, and none outlives the machine.
    let options = |lowers: &[PathBuf]| {
        let mut options = b"volatile,index=off,metacopy=off,lowerdir=".to_vec();
        for (at, lower) in lowers.iter().enumerate() {
            if at > 0 {
                options.push(b':');
            }
            escape(&mut options, lower);
        }
        for (name, folder) in [("upperdir", "upper"), ("workdir", "work")] {
            options.extend_from_slice(format!(",{name}=").as_bytes());
            escape(&mut options, &dir.join(folder));
        }
        options
    };
    let mut data = options(&lowers);
    let mut open = Vec::new();
    if data.len() > MAX_OPTIONS {
        // Many layers: by descriptors of this process, which have short names.
        let mut short = Vec::new();
        for lower in &lowers {
            let file = File::open(lower).map_err(failed("open", lower))?;
            short.push(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())));
            open.push(file);
        }
        data = options(&short);
    }
    nix::mount::mount(
        Some("overlay"),
        rootfs,
        Some("overlay"),
        // Device files in the image or made by the container open nothing; those in
        // /dev are on a file system of their own.
        MsFlags::MS_NODEV,
        Some(data.as_slice()),
    )
    .map_err(|errno| failed("mount overlay at", rootfs)(errno.into()))
}

/// Overlayfs splits at colons and commas.
fn escape(options: &mut Vec<u8>, path: &Path) {
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            options.push(b'\\');
        }
        options.push(*byte);
    }
}

/// Unmounts what is at and below `dir` and removes `dir`; nothing there is success.
///
/// # Errors
/// [`RootfsError`]; while a mount is left nothing is removed.
pub fn unmount(dir: &Path) -> Result<(), RootfsError> {
    if !dir.exists() {
        return Ok(());
    }
    unmount_below(dir)?;
    removal::remove(dir, Most::All).map_err(failed("remove", dir))
}

/// Unmounts everything at and below `dir`, the latest mount first.
///
/// # Errors
/// [`RootfsError::Busy`] with what is still mounted.
pub fn unmount_below(dir: &Path) -> Result<(), RootfsError> {
    let list = || {
        let table = Path::new(mounts::TABLE);
        mounts::list(dir).map_err(failed("read", table))
    };
    for mount in list()?.iter().rev() {
        // Lazily: a process that still looks at it keeps its view, and no
        // other finds it. Failures show in the second look.
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        if let Err(error) = umount2(&mount.path, flags) {
            tracing::debug!(path = ?mount.path, %error, "unmount");
        }
    }
    let left: Vec<PathBuf> = list()?.into_iter().map(|mount| mount.path).collect();
    if left.is_empty() {
        Ok(())
    } else {
        Err(RootfsError::Busy {
            path: dir.to_owned(),
            mounts: left,
        })
    }
}

/// Digest of the image that `dir/rootfs` was mounted from.
pub fn image_of(dir: &Path) -> Option<String> {
    fs::read_to_string(dir.join("image")).ok()
}

/// Makes a working directory (absolute, inside the container) in `rootfs` if it
/// is missing, without following links out of it. New folders belong to `uid:gid`.
///
/// # Errors
/// [`RootfsError::Io`], also when something else is in its place.
pub fn make_working_dir(rootfs: &Path, dir: &str, uid: u32, gid: u32) -> Result<(), RootfsError> {
    let path = Path::new(dir);
    let own = |fd: std::os::fd::BorrowedFd<'_>, _: &Path| {
        Ok(fchown(
            fd,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
        )?)
    };
    Beneath::open(rootfs)
        .and_then(|root| root.make_dirs(path, Links::Inside, own))
        .map(drop)
        .map_err(failed("make working directory", path))
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RootfsError + use<> {
    let path = path.to_owned();
    move |source| RootfsError::Io { verb, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_characters_in_paths_are_escaped() {
        let mut options = Vec::new();
        escape(&mut options, Path::new("/a:b,c\\d"));
        assert_eq!(options, br"/a\:b\,c\\d");
    }
}
