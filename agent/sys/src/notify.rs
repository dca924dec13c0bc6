//! What a service manager hears of the agent (sd_notify(3)); without one nothing is told.

use std::io;

use sd_notify::NotifyState;

/// The agent does its work: what waits for it may start.
///
/// # Errors
/// The manager cannot be reached.
pub fn ready() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Ready])
}

/// The agent was asked to end.
///
/// # Errors
/// The manager cannot be reached.
pub fn stopping() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Stopping])
}
