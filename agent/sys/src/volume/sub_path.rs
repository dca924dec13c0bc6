//! A part of a volume, bound so that no link in the volume leads out of it.
//!
//! A container writes its volumes, so a path in one may become a link to the
//! host between a check and a mount. The kernel resolves the path
//! (`RESOLVE_BENEATH`) to a descriptor, and that descriptor is bound to a place
//! of ours, which the container cannot reach.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, umount2};

use super::{VolumeError, is_mounted};
use crate::beneath::{Beneath, Links};

/// Binds `volume_path/sub_path` at `pod_dir/subpaths/VOLUME/CONTAINER/INDEX` and
/// returns that path, to be used as the source of the container's mount.
/// `index`: place of the mount in the container. A missing folder is made.
///
/// # Errors
/// [`VolumeError::Escapes`] when `sub_path` or a link in it leads out of the
/// volume; [`VolumeError::Io`].
pub fn bind(
    pod_dir: &Path,
    volume: &str,
    volume_path: &Path,
    sub_path: &str,
    container: &str,
    index: usize,
) -> Result<PathBuf, VolumeError> {
    let escapes = || VolumeError::Escapes {
        sub_path: sub_path.to_owned(),
    };
    let wanted = Path::new(sub_path);
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !wanted.components().all(plain) {
        return Err(escapes());
    }
    let found = open(volume_path, wanted).map_err(|error| {
        if matches!(error.raw_os_error(), Some(libc::EXDEV | libc::ELOOP)) {
            escapes()
        } else {
            VolumeError::io("open", &volume_path.join(wanted))(error)
        }
    })?;

    let target = pod_dir
        .join("subpaths")
        .join(volume)
        .join(container)
        .join(index.to_string());
    let failed = |verb| VolumeError::io(verb, &target);
    let is_dir = found.metadata().map_err(failed("read"))?.is_dir();
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(VolumeError::io("make", parent))?;
    }
    // What an earlier attempt of the container left: the volume may have changed since.
    if target.exists() && is_mounted(&target)? {
        umount2(&target, MntFlags::MNT_DETACH).map_err(|errno| failed("unmount")(errno.into()))?;
    }
    match fs::symlink_metadata(&target) {
        Ok(old) if old.is_dir() => fs::remove_dir(&target).map_err(failed("clear"))?,
        Ok(_) => fs::remove_file(&target).map_err(failed("clear"))?,
        Err(_) => {}
    }
    if is_dir {
        fs::create_dir(&target).map_err(failed("make"))?;
    } else {
        File::create_new(&target).map_err(failed("make"))?;
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    nix::mount::mount(Some(&source), &target, None::<&str>, flags, None::<&str>)
        .map_err(|errno| failed("bind")(errno.into()))?;
    Ok(target)
}

fn open(volume: &Path, path: &Path) -> io::Result<File> {
    let root = Beneath::open(volume)?;
    match root.open_at(path, OFlag::O_PATH, Links::Beneath) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => root
            .make_dirs(path, Links::Beneath, |_, _| Ok(()))
            .map(File::from),
        result => result.map(File::from),
    }
}
