//! Paths of the node: Kubernetes' `hostPath.type`, what has to be there, or is made.
//!
//! The path is resolved as the node's own programs would resolve it, links included:
//! what pods may name as hostPath is the administrator's decision. What is made here is
//! made from the folder that it goes into, by descriptor, as another container may have
//! that folder mounted.

use std::fs::{self, FileType};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use nix::sys::stat::{Mode, fchmod};
use proto::v1;

use super::VolumeError;
use crate::beneath::{Beneath, Links};

/// Checks what is there; makes what may be made.
pub(super) fn check(volume: &str, host: &v1::volume::HostPath) -> Result<(), VolumeError> {
    let path = Path::new(&host.path);
    if !path.is_absolute() || path.components().any(|part| part.as_os_str() == "..") {
        return Err(VolumeError::InvalidFile {
            volume: volume.to_owned(),
            path: host.path.clone(),
        });
    }
    let kind = fs::metadata(path).ok().map(|metadata| metadata.file_type());
    let is = |test: fn(&FileType) -> bool| kind.as_ref().is_some_and(test);
    let fine = match host.r#type.as_str() {
        "" => {
            if kind.is_none() {
                make_folder(path)?;
            }
            true
        }
        "DirectoryOrCreate" => {
            if kind.is_none() {
                make_folder(path)?;
            }
            kind.is_none() || is(FileType::is_dir)
        }
        "Directory" => is(FileType::is_dir),
        "FileOrCreate" => {
            if kind.is_none() {
                make_file(path)?;
            }
            kind.is_none() || is(FileType::is_file)
        }
        "File" => is(FileType::is_file),
        "Socket" => is(FileTypeExt::is_socket),
        "CharDevice" => is(FileTypeExt::is_char_device),
        "BlockDevice" => is(FileTypeExt::is_block_device),
        other => {
            return Err(VolumeError::UnknownHostPathType {
                volume: volume.to_owned(),
                kind: other.to_owned(),
            });
        }
    };
    if fine {
        Ok(())
    } else {
        Err(VolumeError::HostPathType {
            volume: volume.to_owned(),
            path: path.to_owned(),
            kind: host.r#type.clone(),
        })
    }
}

fn make_folder(path: &Path) -> Result<(), VolumeError> {
    let readable = |fd: BorrowedFd<'_>, _: &Path| -> io::Result<()> {
        Ok(fchmod(fd, Mode::from_bits_truncate(0o755))?)
    };
    Beneath::open(Path::new("/"))
        .and_then(|root| root.make_dirs(path, Links::Inside, readable))
        .map(drop)
        .map_err(VolumeError::io("make", path))
}

/// Parents are not made, as in Kubernetes.
fn make_file(path: &Path) -> Result<(), VolumeError> {
    let made = || -> io::Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let file = Beneath::open(parent)?.create(name)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))
    };
    made().map_err(VolumeError::io("make", path))
}
