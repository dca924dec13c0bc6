//! Work in a forked process: what libcontainer does to its caller (working
//! directory, oom_score_adj, dumpable, memory) is done to a process that ends.
//!
//! The container's init becomes our child nevertheless, by CLONE_PARENT.
//! Called by `create.rs` and `exec.rs`; `serve.rs` waits for the outcome.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid, pipe2};
use proto::v1::ShimError;
use proto::v1::shim_error::Kind;

/// What a worker achieved.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The process is there, as our child.
    Made {
        pid: Pid,
        warnings: Vec<String>,
    },
    Failed(ShimError),
}

impl Outcome {
    fn failed(message: impl Into<String>) -> Self {
        Self::Failed(ShimError {
            kind: Kind::Runtime as i32,
            message: message.into(),
        })
    }
}

/// A worker that has not yet said what it achieved.
#[derive(Debug)]
pub(crate) struct Worker {
    pid: Pid,
    result: File,
    buffer: Vec<u8>,
}

/// Ends what a worker says. The end of the pipe does not: the container's process
/// has a copy of it until it executes its program.
const END: u8 = 0;

impl Worker {
    /// Forks. Only single-threaded processes may (no lock is held by another thread).
    /// In the child all descriptors but `keep`, and stdio, are closed first: else a
    /// waiting container would hold other containers' logs and connections open.
    pub(crate) fn start(keep: &[RawFd], work: impl FnOnce() -> Outcome) -> nix::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        let shim = getpid();
        // SAFETY: this process has one thread.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => {
                drop(write);
                fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
                Ok(Self {
                    pid: child,
                    result: read.into(),
                    buffer: Vec::new(),
                })
            }
            ForkResult::Child => {
                // Of a shim that was killed nothing goes on: its successor would not know it.
                if prctl::set_pdeathsig(Signal::SIGKILL).is_err() || getppid() != shim {
                    // SAFETY: as below.
                    unsafe { libc::_exit(1) }
                }
                close_others(keep, &write);
                let outcome = catch_unwind(AssertUnwindSafe(work))
                    .unwrap_or_else(|_| Outcome::failed("worker panicked"));
                let told = File::from(write).write_all(&encode(&outcome));
                // SAFETY: ends the process without the parent's atexit handlers.
                unsafe { libc::_exit(i32::from(told.is_err())) }
            }
        }
    }

    /// Waits for its end, which is at hand once it said what it achieved.
    pub(crate) fn reap(&self) {
        // Reaped already when its death was the news.
        waitpid(self.pid, None).ok();
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// To be polled for input.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.result.as_fd()
    }

    /// Reads what is there; the outcome when that was all. `has_ended`: the process
    /// was reaped, nothing more will come.
    pub(crate) fn read(&mut self, has_ended: bool) -> Option<Outcome> {
        let mut piece = [0; 4096];
        loop {
            match self.result.read(&mut piece) {
                Ok(0) => return Some(decode(&self.buffer)),
                Ok(n) => self.buffer.extend_from_slice(&piece[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => {
                    return Some(Outcome::failed(format!("worker's pipe: {e}")));
                }
            }
        }
        (has_ended || self.buffer.ends_with(&[END])).then(|| decode(&self.buffer))
    }
}

/// Nothing is to be done about a descriptor that cannot be closed.
fn close_others(keep: &[RawFd], result: &OwnedFd) {
    use std::os::fd::AsRawFd;
    let mut kept: Vec<RawFd> = keep.to_vec();
    kept.push(result.as_raw_fd());
    kept.sort_unstable();
    let mut from = 3;
    for fd in kept.into_iter().chain([RawFd::MAX]) {
        if from < fd {
            // SAFETY: integers only; the memory that holds these numbers is a copy which
            // is never used to close or read them again.
            let closed =
                Errno::result(unsafe { libc::syscall(libc::SYS_close_range, from, fd - 1, 0) });
            debug_assert!(closed.is_ok());
        }
        from = from.max(fd.saturating_add(1));
    }
}

/// "+PID", then a line per warning; or "-KIND", then the message; then [`END`].
fn encode(outcome: &Outcome) -> Vec<u8> {
    let mut bytes = match outcome {
        Outcome::Made { pid, warnings } => format!("+{pid}\n{}", warnings.join("\n")),
        Outcome::Failed(error) => format!("-{}\n{}", error.kind, error.message),
    }
    .into_bytes();
    bytes.push(END);
    bytes
}

fn decode(bytes: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(bytes.strip_suffix(&[END]).unwrap_or_default());
    let (head, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let number = |from: &str| from.parse::<i32>().ok();
    if let Some(pid) = head.strip_prefix('+').and_then(number) {
        let warnings = rest.lines().map(str::to_owned).collect();
        return Outcome::Made {
            pid: Pid::from_raw(pid),
            warnings,
        };
    }
    if let Some(kind) = head.strip_prefix('-').and_then(number) {
        return Outcome::Failed(ShimError {
            kind,
            message: rest.to_owned(),
        });
    }
    Outcome::failed("runtime process died")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::signal::kill;

    use super::*;

    #[test]
    fn outcomes_survive_the_pipe() {
        for outcome in [
            Outcome::Made {
                pid: Pid::from_raw(7),
                warnings: vec![],
            },
            Outcome::Made {
                pid: Pid::from_raw(7),
                warnings: vec!["a".into(), "b".into()],
            },
            Outcome::failed("no\nsuch"),
        ] {
            assert_eq!(decode(&encode(&outcome)), outcome);
        }
    }

    #[test]
    fn a_worker_without_a_word_has_failed() {
        for bytes in [&b""[..], b"+", b"+x\n", b"-", b"garbage"] {
            assert_eq!(decode(bytes), Outcome::failed("runtime process died"));
        }
    }

    #[test]
    fn a_worker_ends_with_its_shim() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        // SAFETY: the child calls nothing that another thread may hold a lock of, but for
        // memory, which the C library unlocks in it.
        let shim = match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                let mut ready = File::from(write);
                let fd = ready.as_raw_fd();
                let worker = Worker::start(&[fd], || {
                    let told = ready.write_all(b"x");
                    std::thread::sleep(std::time::Duration::from_secs(30));
                    Outcome::failed(format!("not killed: {told:?}"))
                });
                worker.map(|worker| worker.reap()).ok();
                // SAFETY: as in `Worker::start`.
                unsafe { libc::_exit(0) }
            }
        };
        drop(write);
        let mut read = File::from(read);
        read.read_exact(&mut [0]).unwrap();
        kill(shim, Signal::SIGKILL).unwrap();
        waitpid(shim, None).unwrap();
        // Only the worker has the other end.
        let mut ended = [PollFd::new(read.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut ended, PollTimeout::from(10_000_u16)), Ok(1));
    }
}
