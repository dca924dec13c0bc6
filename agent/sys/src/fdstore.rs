//! Descriptors that the service manager keeps while the agent is restarted: systemd's file
//! descriptor store (`FileDescriptorStoreMax=`, sd_pid_notify_with_fds(3)).
//!
//! Without such a manager nothing is kept, and nothing is inherited.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use sd_notify::NotifyState;

/// Whether the inherited descriptors have an owner.
static OWNED: AtomicBool = AtomicBool::new(false);

/// What the manager passed to this process, with the names under which it was kept. Only the
/// first call returns any; to be called before the process opens descriptors of its own.
///
/// # Errors
/// The variables of sd_listen_fds(3) are malformed, or name descriptors that are not open.
pub fn inherited() -> io::Result<Vec<(String, OwnedFd)>> {
    if OWNED.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds_with_names()?;
    let owned = passed.map(|(fd, name)| {
        // SAFETY: the service manager opened it for this process, `listen_fds` has found it
        // open, and it is owned once: `OWNED` was false.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        (name, fd)
    });
    Ok(owned.collect())
}

/// Asks the manager to keep these. What it keeps already is kept once.
///
/// # Errors
/// The manager cannot be reached.
pub fn keep(name: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    // A socket that reports an error is no reason to close it.
    let state = [
        NotifyState::FdStore,
        NotifyState::FdName(name),
        NotifyState::Custom("FDPOLL=0"),
    ];
    sd_notify::notify_with_fds(&state, fds)
}

/// Asks the manager to close what it keeps under this name.
///
/// # Errors
/// The manager cannot be reached.
pub fn forget(name: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
}
