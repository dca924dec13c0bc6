//! fsGroup: the group that may use a volume, whatever user a container runs as.
//!
//! Kubernetes' rules: everything in the volume gets the group; owners' rights
//! are given to the group as far as the volume is readable or writable; new
//! files in folders inherit the group (set-group-id).

use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

use super::VolumeError;

/// What the group may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    ReadWrite,
}

/// Gives `path` and all below to `group`; without a group nothing is changed.
pub(super) fn share(path: &Path, group: Option<u32>, access: Access) -> Result<(), VolumeError> {
    if group.is_none() {
        return Ok(());
    }
    share_dir(path, group, access)?;
    let metadata = fs::symlink_metadata(path).map_err(VolumeError::io("read", path))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)
            .map_err(VolumeError::io("list", path))?
            .flatten()
        {
            share(&entry.path(), group, access)?;
        }
    }
    Ok(())
}

/// The same for one file or folder. Links keep their mode, which nobody reads.
pub(super) fn share_dir(
    path: &Path,
    group: Option<u32>,
    access: Access,
) -> Result<(), VolumeError> {
    let Some(group) = group else { return Ok(()) };
    lchown(path, None, Some(group)).map_err(VolumeError::io("give to the group", path))?;
    let metadata = fs::symlink_metadata(path).map_err(VolumeError::io("read", path))?;
    if metadata.is_symlink() {
        return Ok(());
    }
    let mut more = match access {
        Access::Read => 0o440,
        Access::ReadWrite => 0o660,
    };
    if metadata.is_dir() {
        more |= 0o2110;
    }
    let mode = metadata.permissions().mode() | more;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(VolumeError::io("set mode of", path))
}
