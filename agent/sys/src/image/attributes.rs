//! Owner, mode, times and extended attributes of an unpacked entry.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::stat::{Mode, fchmod};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown};

use super::archive::Entry;

/// Owner first: changing it clears set-user-id bits and capabilities.
pub(super) fn set(entry: &Entry, fd: BorrowedFd<'_>) -> io::Result<()> {
    fchown(
        fd,
        Some(Uid::from_raw(entry.uid)),
        Some(Gid::from_raw(entry.gid)),
    )?;
    fchmod(fd, Mode::from_bits_truncate(entry.mode))?;
    for (name, value) in &entry.xattrs {
        // An archive must not speak to overlayfs itself.
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        match set_xattr(fd, name, value) {
            // The file system of the store has no such attributes.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            result => result?,
        }
    }
    Ok(())
}

pub(super) fn set_xattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: the name is a C string and the value a slice, both alive during
    // the call; the kernel copies them.
    let result = unsafe {
        libc::fsetxattr(
            fd.as_raw_fd(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

pub(super) fn time(entry: &Entry) -> TimeSpec {
    TimeSpec::new(entry.mtime, 0)
}
