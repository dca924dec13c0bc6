//! One container over its life: made, started, run, ended; its descriptors and log.
//!
//! Requests come through `request.rs`, ends of processes through `serve.rs`.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use agent_cgroup::Group;
use libcontainer::container::Container as Runtime;
use nix::errno::Errno;
use nix::unistd::Pid;
use proto::v1::shim_container::State;
use proto::v1::{ShimContainer, ShimCreate};

use crate::clock::{self, Moment};
use crate::create::{Folders, Making};
use crate::ends::{Ends, LEFT, Piece, has_input, read_piece};
use crate::exit::{self, Exit};
use crate::log::{Log, Stream};

/// Where a container is in its life.
#[derive(Debug)]
pub(crate) enum Phase {
    /// A worker makes it; a connection waits.
    Making(Making),
    Created,
    /// Told to execute its program; a connection waits until it has.
    Starting,
    Running,
    Exited(Exit),
}

/// A container and what belongs to it.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) create: ShimCreate,
    pub(crate) group: Group,
    pub(crate) phase: Phase,
    pub(crate) pid: Option<Pid>,
    pub(crate) ends: Ends,
    /// The connection that waits for `Making` or `Starting`.
    pub(crate) waiting: Option<u64>,
    /// Why the program could not be executed.
    pub(crate) report: Vec<u8>,
    log: Log,
    log_failed: bool,
    started: Moment,
    finished: Moment,
    oom_killed: bool,
}

impl Container {
    pub(crate) fn new(
        create: ShimCreate,
        group: Group,
        making: Making,
        log: Log,
        waiting: u64,
    ) -> Self {
        Self {
            create,
            group,
            phase: Phase::Making(making),
            pid: None,
            ends: Ends::default(),
            waiting: Some(waiting),
            report: Vec::new(),
            log,
            log_failed: false,
            started: Moment::default(),
            finished: Moment::default(),
            oom_killed: false,
        }
    }

    /// As the agent sees it; `None` while it is being made.
    pub(crate) fn status(&self) -> Option<ShimContainer> {
        let (state, exit) = match self.phase {
            Phase::Making(_) => return None,
            Phase::Created => (State::Created, None),
            Phase::Starting => (State::Starting, None),
            Phase::Running => (State::Running, None),
            Phase::Exited(exit) => (State::Exited, Some(exit)),
        };
        Some(ShimContainer {
            id: self.create.id.clone(),
            state: state as i32,
            pid: self
                .pid
                .and_then(|p| u32::try_from(p.as_raw()).ok())
                .unwrap_or(0),
            started_ms: self.started.unix_ms,
            finished_ms: self.finished.unix_ms,
            started_monotonic_ms: self.started.monotonic_ms,
            finished_monotonic_ms: self.finished.monotonic_ms,
            exit_code: exit.map_or(0, |e| e.code),
            signal: exit.map_or(0, |e| e.signal),
            oom_killed: self.oom_killed,
        })
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Exited(_))
    }

    /// Lets the program run. It is executed a moment later: `Starting` until then.
    pub(crate) fn start(&mut self, folders: &Folders, waiting: u64) -> Result<(), String> {
        let mut runtime = Runtime::load(folders.container(&self.create.id))
            .map_err(|e| format!("load container: {e}"))?;
        runtime
            .start()
            .map_err(|e| format!("start container: {e}"))?;
        self.phase = Phase::Starting;
        self.started = clock::moment();
        self.waiting = Some(waiting);
        Ok(())
    }

    /// Reads why the program was not executed; `true` once when the report is complete.
    pub(crate) fn read_report(&mut self) -> bool {
        let Some(report) = &mut self.ends.report else {
            return false;
        };
        loop {
            match read_piece(report) {
                Piece::Bytes(bytes) => self.report.extend(bytes),
                Piece::Nothing => return false,
                Piece::End => {
                    self.ends.report = None;
                    return true;
                }
            }
        }
    }

    /// The container's first process has ended.
    pub(crate) fn ended(&mut self, exit: Exit) {
        self.finished = clock::moment();
        if self.started == Moment::default() {
            self.started = self.finished;
        }
        // A child that was killed and a container that went on regardless is no failure.
        self.oom_killed = exit.code != 0 && self.group.oom_kills() > 0;
        self.phase = Phase::Exited(exit);
        self.ends.stdin = None;
    }

    /// Sends a signal. A container that has ended takes any.
    pub(crate) fn kill(&self, signal: i32, all: bool) -> Result<(), String> {
        let mut targets = if all {
            processes(&self.group)
        } else {
            Vec::new()
        };
        if let Some(pid) = self.pid
            && !self.has_ended()
            && !targets.contains(&pid)
        {
            targets.push(pid);
        }
        for pid in targets {
            match exit::send(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => return Err(format!("signal {signal} to {pid}: {e}")),
            }
        }
        Ok(())
    }

    /// Moves output to the log, and says how many bytes. Leaves `ends` without a stream that
    /// has ended.
    pub(crate) fn read_output(&mut self, stream: Stream) -> usize {
        let end = match stream {
            Stream::Stdout => &mut self.ends.stdout,
            Stream::Stderr => &mut self.ends.stderr,
        };
        let Some(file) = end else { return 0 };
        let mut moved = 0;
        let logged = match read_piece(file) {
            Piece::Bytes(bytes) => {
                moved = bytes.len();
                self.log.write(stream, &bytes)
            }
            Piece::Nothing => Ok(()),
            Piece::End => {
                *end = None;
                self.log.end(stream)
            }
        };
        match logged {
            Ok(()) => self.log_failed = false,
            // The program goes on when the disk is full. Said once, not for each line.
            Err(e) if !self.log_failed => {
                self.log_failed = true;
                eprintln!("log of {}: {e}", self.create.id);
            }
            Err(_) => {}
        }
        moved
    }

    /// Takes what an ended container has left in its pipes, and no more than they can hold.
    pub(crate) fn drain_output(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut moved = 0;
            while moved < LEFT {
                let end = match stream {
                    Stream::Stdout => &self.ends.stdout,
                    Stream::Stderr => &self.ends.stderr,
                };
                if !end.as_ref().is_some_and(has_input) {
                    break;
                }
                moved += self.read_output(stream);
            }
        }
    }

    /// Removes cgroup and state of a container whose processes are gone.
    pub(crate) fn remove(&mut self, folders: &Folders) -> Result<(), String> {
        self.drain_output();
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Err(e) = self.log.end(stream) {
                eprintln!("log of {}: {e}", self.create.id);
            }
        }
        remove(folders, &self.create.id, &self.group)
    }
}

/// Removes a container's cgroup and libcontainer's state, as far as they are there.
/// libcontainer would wait a tenth of a second for a busy group, and knows only its own.
pub(crate) fn remove(folders: &Folders, id: &str, group: &Group) -> Result<(), String> {
    group
        .remove()
        .map_err(|e| format!("remove group of {id}: {e}"))?;
    let remove = |folder: PathBuf| match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(format!("remove state of {id}: {e}")),
        Ok(()) | Err(_) => Ok(()),
    };
    remove(folders.container(id))?;
    remove(folders.bundle(id))
}

fn processes(group: &Group) -> Vec<Pid> {
    let pids = group.processes().into_iter();
    pids.filter_map(|pid| i32::try_from(pid).ok().map(Pid::from_raw))
        .collect()
}

/// Ends what a container without a process namespace of its own leaves behind, and
/// reaps it: these, among which may be a session's process.
#[must_use]
pub(crate) fn kill_rest(group: &Group) -> Vec<(Pid, Exit)> {
    let mut reaped = Vec::new();
    for _ in 0..200 {
        let rest = processes(group);
        if rest.is_empty() {
            break;
        }
        for pid in rest {
            // Orphans come to us, so the pid is of our group until we reap it.
            exit::send(pid, libc::SIGKILL).ok();
            reaped.extend(exit::reap(pid).ok().flatten());
        }
        thread::sleep(Duration::from_millis(2));
    }
    reaped
}
