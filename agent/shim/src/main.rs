//! foil-shim: one per pod, started by the agent, outlives it.
//!
//! Its containers' parent: makes them by libcontainer, keeps their logs and exit
//! statuses, answers on one socket (`proto/v1/shim.proto`). One thread, and no
//! async runtime: libcontainer forks and changes its caller. Reading order: `serve`,
//! `request`, `progress`, `container`, `session`, `create`, `worker`, `executor`.
#![expect(unsafe_code, reason = "fork, and system calls that no safe crate has")]

mod capability;
mod clock;
mod connection;
mod console;
mod container;
mod create;
mod device;
mod ends;
mod executor;
mod exit;
mod legacy;
mod log;
mod profile;
mod progress;
mod report;
mod request;
mod seccomp;
mod serve;
mod session;
mod spec;
mod worker;

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{Backlog, listen};
use nix::unistd::{ForkResult, dup2_stdin, fork, setsid};

use agent_cgroup::{GroupError, Hierarchies};

use crate::create::Folders;
use crate::serve::Shim;

const USAGE: &str = "\
usage: foil-shim --pod UID --state FOLDER --seccomp FOLDER <LISTENING-SOCKET

Started by foil-agent, one per pod; not meant to be run by hand.
The socket to serve is standard input.";

/// The shim could not begin.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("{USAGE}")]
    Usage,
    #[error("{step}: {source}")]
    Step {
        step: &'static str,
        source: io::Error,
    },
    #[error(transparent)]
    Groups(#[from] GroupError),
}

fn main() -> ExitCode {
    let shim = arguments(env::args().skip(1)).and_then(begin);
    match shim {
        // Detached: the parent is done.
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(mut shim)) => match shim.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("foil-shim: {e}");
                ExitCode::FAILURE
            }
        },
        Err(e) => {
            eprintln!("foil-shim: {e}");
            ExitCode::FAILURE
        }
    }
}

fn arguments(mut from: impl Iterator<Item = String>) -> Result<Folders, StartError> {
    let (mut pod, mut state, mut seccomp) = (None, None, None);
    while let Some(name) = from.next() {
        let value = from.next().ok_or(StartError::Usage)?;
        match name.as_str() {
            // Only to be seen in a list of processes.
            "--pod" => pod = Some(value),
            "--state" => state = Some(PathBuf::from(value)),
            "--seccomp" => seccomp = Some(PathBuf::from(value)),
            _ => return Err(StartError::Usage),
        }
    }
    match (pod, state, seccomp) {
        (Some(_), Some(state), Some(seccomp)) => Ok(Folders { state, seccomp }),
        _ => Err(StartError::Usage),
    }
}

/// Detaches from the agent; `None` in the parent, which is to end.
fn begin(folders: Folders) -> Result<Option<Shim>, StartError> {
    let step = |step| move |source: io::Error| StartError::Step { step, source };
    let errno = |step| {
        move |e: nix::errno::Errno| StartError::Step {
            step,
            source: e.into(),
        }
    };

    let hierarchies = Hierarchies::mounted()?;
    let listener = listener().map_err(step("socket on standard input"))?;
    fs::create_dir_all(&folders.seccomp).map_err(step("folder for filters"))?;
    // Reparented from the start: it makes no difference when the agent dies,
    // and no agent has to reap it.
    // SAFETY: this process has one thread.
    if let ForkResult::Parent { .. } = unsafe { fork() }.map_err(errno("fork"))? {
        return Ok(None);
    }
    setsid().map_err(errno("setsid"))?;
    // Orphans of the pod come to us.
    nix::sys::prctl::set_child_subreaper(true).map_err(errno("subreaper"))?;
    // Where it is refused, the shim is as likely to be killed as its pod.
    fs::write("/proc/self/oom_score_adj", "-999").ok();

    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGCHLD);
    // Who wants to end us says so on the socket, or means SIGKILL.
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        blocked.add(signal);
    }
    blocked.thread_block().map_err(errno("block signals"))?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    let signals = SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(errno("signalfd"))?;
    Ok(Some(Shim::new(folders, hierarchies, listener, signals)))
}

/// The socket that we were given as standard input, which becomes /dev/null.
fn listener() -> io::Result<UnixListener> {
    use std::os::fd::AsFd;
    let listener: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    dup2_stdin(File::open("/dev/null")?)?;
    let listener = UnixListener::from(listener);
    // Again, so that peers see our credentials and not the agent's.
    listen(&listener, Backlog::new(128)?)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
