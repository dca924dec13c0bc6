//! fsGroup: the group that may use a volume, regardless of the user that a container runs as.
//!
//! Kubernetes' rules: what is in the volume gets the group; owners' rights are given to
//! the group as far as the volume is readable or writable; new files in folders inherit
//! the group (set-group-id).

use std::io;
use std::os::fd::BorrowedFd;

use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Gid, fchown};

/// What the group may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    ReadWrite,
}

/// What is given to the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
}

/// The mode of something that had `mode` before it was given to the group.
pub(super) fn mode(mode: u32, kind: Kind, group: Option<u32>, access: Access) -> u32 {
    if group.is_none() {
        return mode;
    }
    let rights = match access {
        Access::Read => 0o440,
        Access::ReadWrite => 0o660,
    };
    let inherited = match kind {
        Kind::File => 0,
        Kind::Folder => 0o2110,
    };
    mode | rights | inherited
}

/// Gives a file or folder to `group`; without a group nothing is changed.
pub(super) fn share(
    fd: BorrowedFd<'_>,
    kind: Kind,
    group: Option<u32>,
    access: Access,
) -> io::Result<()> {
    let Some(id) = group else { return Ok(()) };
    fchown(fd, None, Some(Gid::from_raw(id)))?;
    let mode = mode(fstat(fd)?.st_mode & 0o7777, kind, group, access);
    Ok(fchmod(fd, Mode::from_bits_truncate(mode))?)
}
