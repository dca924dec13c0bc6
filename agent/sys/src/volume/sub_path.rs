//! A part of a volume, bound so that no link in the volume leads out of it.
//!
//! A container writes its volumes, so a path in one may become a link to the
//! host between a check and a mount. The kernel resolves the path
//! (`RESOLVE_BENEATH`) to a descriptor, and that descriptor is bound to a
//! path that the container cannot reach.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{VolumeError, by_descriptor, is_mounted};
use crate::beneath::{Beneath, Links};

/// A part of a volume, held: what its path leads to later does not matter.
#[derive(Debug)]
pub struct Part {
    file: File,
    is_dir: bool,
}

/// Opens `volume_path/sub_path`. A missing folder is made. May block for as long as the
/// file system of a hostPath does.
///
/// # Errors
/// [`VolumeError::Escapes`] when `sub_path` or a link in it leads out of the
/// volume; [`VolumeError::Io`].
pub fn find(volume_path: &Path, sub_path: &str) -> Result<Part, VolumeError> {
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
    let metadata = found.metadata();
    let metadata = metadata.map_err(VolumeError::io("read", &volume_path.join(wanted)))?;
    Ok(Part {
        file: found,
        is_dir: metadata.is_dir(),
    })
}

/// Binds a part of a volume at `pod_dir/subpaths/VOLUME/CONTAINER/INDEX` and returns that
/// path, to be used as the source of the container's mount. `index`: place of the mount in
/// the container.
///
/// # Errors
/// [`VolumeError::Io`].
pub fn bind(
    pod_dir: &Path,
    volume: &str,
    part: &Part,
    container: &str,
    index: usize,
) -> Result<PathBuf, VolumeError> {
    let place = Path::new("subpaths").join(volume).join(container);
    let name = index.to_string();
    let target = pod_dir.join(&place).join(&name);
    let failed = |verb| VolumeError::io(verb, &target);
    let parent = std::fs::create_dir_all(pod_dir)
        .and_then(|()| Beneath::open(pod_dir))
        .and_then(|pod| pod.make_dirs(&place, Links::Refused, |_, _| Ok(())))
        .map(Beneath::from)
        .map_err(failed("make"))?;
    clear(&parent, &name).map_err(failed("clear"))?;
    let made = if part.is_dir {
        parent.make_child(name.as_str(), 0o755).map(drop)
    } else {
        parent.create(name.as_str()).map(drop)
    };
    made.map_err(failed("make"))?;
    let onto = parent
        .open_held(name.as_str(), OFlag::O_PATH)
        .map_err(failed("open"))?;
    let (source, onto) = (
        by_descriptor(part.file.as_fd()),
        by_descriptor(onto.as_fd()),
    );
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    nix::mount::mount(Some(&source), &onto, None::<&str>, flags, None::<&str>)
        .map_err(|errno| failed("bind")(errno.into()))?;
    Ok(target)
}

/// Removes what an earlier attempt of the container left: the volume may have changed
/// since.
fn clear(parent: &Beneath, name: &str) -> io::Result<()> {
    loop {
        match parent.open_held(name, OFlag::O_PATH) {
            Ok(_) => break,
            Err(error) if is_mounted(&error) => {
                let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
                umount2(&by_descriptor(parent.fd()).join(name), flags)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    match unlinkat(parent.fd(), name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => Ok(unlinkat(parent.fd(), name, UnlinkatFlags::RemoveDir)?),
        removed => Ok(removed?),
    }
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
