//! What happens to processes: made, executed, ended, and who is told.
//!
//! Called by `serve.rs` when a worker, a report or a signal is ready.

use std::io;
use std::mem;

use nix::errno::Errno;
use nix::unistd::Pid;
use proto::v1::shim_error::Kind;
use proto::v1::shim_response::Response;
use proto::v1::{ShimContainer, ShimError, ShimOk};

use crate::connection::Role;
use crate::container::{Container, Phase, kill_rest, remove};
use crate::create::Making;
use crate::ends::Ends;
use crate::exit::{self, Exit};
use crate::log::Stream;
use crate::report;
use crate::request::{error, ok};
use crate::serve::Shim;
use crate::session::Session;
use crate::worker::Outcome;

impl Shim {
    pub(crate) fn reap(&mut self) -> io::Result<()> {
        // Signals are merged; what counts is who has ended.
        while self.signals.read_signal()?.is_some() {}
        loop {
            match exit::reap(Pid::from_raw(-1)) {
                Ok(Some((pid, exit))) => self.ended(pid, exit),
                Ok(None) => return Ok(()),
                Err(Errno::ECHILD) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// A child has ended and is reaped.
    pub(crate) fn ended(&mut self, pid: Pid, exit: Exit) {
        if let Some(index) = self.running(pid) {
            // The report is complete by now: what was executed is seen running first.
            self.started(index);
            // An answer may have led to another request, and that to another order.
            if let Some(container) = self.running(pid).and_then(|i| self.containers.get_mut(i)) {
                container.ended(exit);
                container.drain_output();
                if let Some(status) = container.status() {
                    self.publish(&status);
                }
            }
        } else if let Some(session) = self
            .sessions
            .values_mut()
            .find(|s| s.pid == Some(pid) && s.exit.is_none())
        {
            session.exit = Some(exit);
        } else if let Some(index) = self.containers.iter().position(|c| is_maker(c, pid)) {
            self.made(index, true);
        } else if let Some(number) = self.session_made_by(pid) {
            self.session_made(number, true);
        } else if self.makes_something() {
            self.unclaimed.insert(pid, exit);
        }
    }

    /// Whether a child that is not known may yet turn out to be somebody's.
    fn makes_something(&self) -> bool {
        self.containers
            .iter()
            .any(|c| matches!(c.phase, Phase::Making(_)))
            || self.sessions.values().any(|s| s.making.is_some())
    }

    fn session_made_by(&self, pid: Pid) -> Option<u64> {
        let made_by = |s: &Session| s.making.as_ref().is_some_and(|m| m.worker.pid() == pid);
        self.sessions
            .iter()
            .find(|(_, s)| made_by(s))
            .map(|(number, _)| *number)
    }

    /// The container, by index, whose first process this is.
    fn running(&self, pid: Pid) -> Option<usize> {
        self.containers
            .iter()
            .position(|c| c.pid == Some(pid) && !c.has_ended())
    }

    /// Tells all watchers.
    fn publish(&mut self, status: &ShimContainer) {
        for connection in self
            .connections
            .values_mut()
            .filter(|c| c.role == Role::Watch)
        {
            connection.send(Response::Event(status.clone()));
        }
    }

    pub(crate) fn made(&mut self, index: usize, has_ended: bool) {
        let Some(container) = self.containers.get_mut(index) else {
            return;
        };
        let Phase::Making(making) = &mut container.phase else {
            return;
        };
        let Some(outcome) = making.worker.read(has_ended) else {
            return;
        };
        let phase = mem::replace(&mut container.phase, Phase::Created);
        let connection = container.waiting.take();
        let mut reaped = Vec::new();
        let answer = match (outcome, phase) {
            (Outcome::Made { pid, warnings }, Phase::Making(making)) => {
                container.pid = Some(pid);
                match making.finish() {
                    Ok(ends) => container.ends = ends,
                    Err(e) => eprintln!("terminal of {}: {e}", container.create.id),
                }
                if let Some(exit) = self.unclaimed.remove(&pid) {
                    container.ended(exit);
                }
                if let Some(status) = container.status() {
                    self.publish(&status);
                }
                Response::Ok(ShimOk { warnings })
            }
            (Outcome::Failed(failure), phase) => {
                let failed = self.containers.remove(index);
                let told = match phase {
                    Phase::Making(mut making) => told(&mut making),
                    Phase::Created | Phase::Starting | Phase::Running | Phase::Exited(_) => None,
                };
                let starved = failed.group.oom_kills() > 0;
                reaped = kill_rest(&failed.group);
                if let Err(e) = remove(&self.folders, &failed.create.id, &failed.group) {
                    eprintln!("{e}");
                }
                if starved {
                    error(
                        Kind::OutOfMemory,
                        "container init was OOM-killed (memory limit too low?)",
                    )
                } else {
                    Response::Error(told.unwrap_or(failure))
                }
            }
            (Outcome::Made { .. }, _) => return,
        };
        for (pid, exit) in reaped {
            self.ended(pid, exit);
        }
        self.forget_unclaimed();
        if let Some(connection) = connection {
            self.answer(connection, Role::Calls, answer);
        }
    }

    pub(crate) fn started(&mut self, index: usize) {
        let Some(container) = self.containers.get_mut(index) else {
            return;
        };
        if !container.read_report() {
            return;
        }
        let connection = container.waiting.take();
        let report = mem::take(&mut container.report);
        if matches!(container.phase, Phase::Starting) {
            container.phase = Phase::Running;
            if let Some(status) = container.status().filter(|_| report.is_empty()) {
                self.publish(&status);
            }
        }
        let answer = report::parse(&report).map_or_else(ok, Response::Error);
        if let Some(connection) = connection {
            self.answer(connection, Role::Calls, answer);
        }
    }

    pub(crate) fn session_made(&mut self, number: u64, has_ended: bool) {
        let Some(session) = self.sessions.get_mut(&number) else {
            return;
        };
        let Some(outcome) = session
            .making
            .as_mut()
            .and_then(|m| m.worker.read(has_ended))
        else {
            return;
        };
        let Some(mut making) = session.making.take() else {
            return;
        };
        let connection = session.connection;
        match outcome {
            Outcome::Made { pid, .. } => {
                let ends = making.finish().unwrap_or_else(|e| {
                    eprintln!("terminal in {}: {e}", session.container);
                    Ends::default()
                });
                session.made(pid, ends);
                session.exit = self.unclaimed.remove(&pid);
                if !self.connections.contains_key(&connection) {
                    session.kill();
                }
                self.answer(connection, Role::Session(number), ok());
            }
            Outcome::Failed(failure) => {
                let failure = told(&mut making).unwrap_or(failure);
                self.sessions.remove(&number);
                self.answer(connection, Role::Calls, Response::Error(failure));
            }
        }
        self.forget_unclaimed();
    }

    pub(crate) fn session_output(&mut self, number: u64, stream: Stream) {
        let Some(session) = self.sessions.get_mut(&number) else {
            return;
        };
        let connection = session.connection;
        if let Some(bytes) = session.read(stream) {
            self.send(
                connection,
                match stream {
                    Stream::Stdout => Response::Stdout(bytes),
                    Stream::Stderr => Response::Stderr(bytes),
                },
            );
        }
    }

    /// Tells the exit codes of processes whose output is all sent.
    pub(crate) fn end_sessions(&mut self) {
        let over: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.is_over())
            .map(|(number, _)| *number)
            .collect();
        for number in over {
            let Some(mut session) = self.sessions.remove(&number) else {
                continue;
            };
            let failure = session.failure();
            let connection = self.connections.get_mut(&session.connection);
            if let (Some(exit), Some(connection)) = (session.exit, connection) {
                // Only execve knew; it is too late to refuse the request.
                if let Some(failure) = failure {
                    let text = format!("{}\n", failure.message);
                    connection.send(Response::Stderr(text.into_bytes()));
                }
                connection.send(Response::ExecExitCode(exit.code));
                connection.finish();
            }
        }
    }

    fn forget_unclaimed(&mut self) {
        if !self.makes_something() {
            self.unclaimed.clear();
        }
    }
}

/// Why a process could not be made, in its own words; libcontainer's are about itself.
fn told(making: &mut Making) -> Option<ShimError> {
    making.worker.reap();
    report::read(making.ends.report.as_mut()?)
}

fn is_maker(container: &Container, pid: Pid) -> bool {
    matches!(&container.phase, Phase::Making(making) if making.worker.pid() == pid)
}
