//! How processes of containers end.

use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// 128 + signal for one that a signal ended, as shells have it.
    pub(crate) code: i32,
    /// 0 unless a signal ended it.
    pub(crate) signal: i32,
}

impl Exit {
    /// `None` for a process that has not ended.
    pub(crate) fn of(status: WaitStatus) -> Option<(Pid, Self)> {
        if let WaitStatus::Exited(pid, code) = status {
            return Some((pid, Self { code, signal: 0 }));
        }
        if let WaitStatus::Signaled(pid, signal, _) = status {
            let signal = signal as i32;
            return Some((
                pid,
                Self {
                    code: 128 + signal,
                    signal,
                },
            ));
        }
        None
    }
}
