//! How processes of containers end: waited for, and signalled.
//!
//! Containers use real-time signals too, which nix's `Signal` has no names for: its
//! `waitpid` fails for a process that ended by one, and forgets which it was.

use libc::c_int;
use nix::errno::Errno;
use nix::unistd::Pid;

/// The highest signal of Linux: SIGRTMAX.
const LAST_SIGNAL: c_int = 64;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// 128 + signal for one that a signal ended, as shells have it.
    pub(crate) code: i32,
    /// 0 unless a signal ended it.
    pub(crate) signal: i32,
}

impl Exit {
    /// From a status of wait(2); `None` for a process that has not ended.
    fn of(status: c_int) -> Option<Self> {
        if libc::WIFEXITED(status) {
            let code = libc::WEXITSTATUS(status);
            Some(Self { code, signal: 0 })
        } else if libc::WIFSIGNALED(status) {
            let signal = libc::WTERMSIG(status);
            let code = 128 + signal;
            Some(Self { code, signal })
        } else {
            None
        }
    }
}

/// A child that has ended, which is reaped with that. -1: any child. `None`: none has.
pub(crate) fn reap(pid: Pid) -> Result<Option<(Pid, Exit)>, Errno> {
    wait(pid, libc::WNOHANG)
}

/// Waits for the end of a child.
pub(crate) fn wait_for(pid: Pid) -> Result<Option<Exit>, Errno> {
    Ok(wait(pid, 0)?.map(|(_, exit)| exit))
}

fn wait(pid: Pid, flags: c_int) -> Result<Option<(Pid, Exit)>, Errno> {
    let mut status: c_int = 0;
    // SAFETY: the kernel writes one integer, which outlives the call.
    let found = Errno::result(unsafe { libc::waitpid(pid.as_raw(), &raw mut status, flags) })?;
    Ok(match found {
        0 => None,
        found => Exit::of(status).map(|exit| (Pid::from_raw(found), exit)),
    })
}

/// Sends a signal by its number.
pub(crate) fn send(pid: Pid, signal: c_int) -> Result<(), Errno> {
    // 0 would only ask whether the process is there.
    if !(1..=LAST_SIGNAL).contains(&signal) {
        return Err(Errno::EINVAL);
    }
    // SAFETY: two numbers; no memory of ours is touched.
    Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}
