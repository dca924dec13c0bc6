//! What each request does. Answers at once, or leaves the connection waiting for
//! something that `serve.rs` will see.

use std::io;
use std::path::Path;

use agent_cgroup::Group;
use proto::protocol::is_stable;
use proto::v1::shim_error::Kind;
use proto::v1::shim_request::Request;
use proto::v1::shim_response::Response;
use proto::v1::{ShimContainers, ShimCreate, ShimError, ShimExec, ShimOk, ShimResize};

use crate::connection::{Connection, Role};
use crate::container::{Container, Phase, kill_rest};
use crate::create;
use crate::exit::{self, Exit};
use crate::log::Log;
use crate::serve::Shim;
use crate::session::Session;
use crate::spec;

/// An error as the agent gets it.
pub(crate) fn error(kind: Kind, message: impl Into<String>) -> Response {
    Response::Error(ShimError {
        kind: kind as i32,
        message: message.into(),
    })
}

pub(crate) fn ok() -> Response {
    Response::Ok(ShimOk::default())
}

fn invalid(message: impl Into<String>) -> Response {
    error(Kind::Invalid, message)
}

fn not_found(id: &str) -> Response {
    error(Kind::NotFound, format!("no container {id}"))
}

impl Shim {
    /// Does one request of a connection.
    pub(crate) fn request(&mut self, connection: u64, request: Request) {
        let peer = self.connections.get(&connection);
        if let Some(Err(mismatch)) = peer.map(Connection::speaks)
            && !is_stable(&request)
        {
            self.send(connection, error(Kind::Version, mismatch.to_string()));
            return;
        }
        let answer = match request {
            Request::List(_) => Some(self.list()),
            Request::Create(create) => self.create(connection, create),
            Request::Start(start) => self.start(connection, &start.id),
            Request::Kill(asked) => Some(match self.find(&asked.id) {
                None => not_found(&asked.id),
                Some(container) => match container.kill(asked.signal, asked.all) {
                    Ok(()) => ok(),
                    Err(message) => error(Kind::Runtime, message),
                },
            }),
            Request::Delete(delete) => Some(self.delete(&delete.id)),
            Request::Exec(exec) => self.exec(connection, exec),
            Request::Watch(_) => self.watch(connection),
            Request::Shutdown(_) => Some(self.shutdown()),
            Request::Stdin(bytes) => self.session_input(connection, Some(&bytes)),
            Request::StdinClosed(_) => self.session_input(connection, None),
            Request::Resize(window) => self.resize(connection, window),
        };
        if let Some(answer) = answer {
            self.send(connection, answer);
        }
    }

    fn find(&mut self, id: &str) -> Option<&mut Container> {
        self.containers.iter_mut().find(|c| c.create.id == id)
    }

    fn list(&self) -> Response {
        Response::Containers(ShimContainers {
            containers: self
                .containers
                .iter()
                .filter_map(Container::status)
                .collect(),
            shim_pid: std::process::id(),
        })
    }

    fn create(&mut self, connection: u64, create: ShimCreate) -> Option<Response> {
        if self.find(&create.id).is_some() {
            return Some(invalid(format!("container {} is there already", create.id)));
        }
        let group = match spec::check(&create) {
            Ok(path) => Group::new(&self.hierarchies, path),
            Err(e) => return Some(invalid(e.to_string())),
        };
        let log = match Log::open(Path::new(&create.log_path), create.log_max_bytes) {
            Ok(log) => log,
            Err(e) => {
                return Some(error(
                    Kind::Runtime,
                    format!("open log {}: {e}", create.log_path),
                ));
            }
        };
        match create::container(&self.folders, &create, &group) {
            Ok(making) => {
                self.wait(connection);
                self.containers
                    .push(Container::new(create, group, making, log, connection));
                None
            }
            Err(e) => Some(error(Kind::Runtime, format!("create {}: {e}", create.id))),
        }
    }

    fn start(&mut self, connection: u64, id: &str) -> Option<Response> {
        // Two fields at once, so not by `find`.
        let Some(container) = self.containers.iter_mut().find(|c| c.create.id == id) else {
            return Some(not_found(id));
        };
        if !matches!(container.phase, Phase::Created) {
            return Some(invalid(format!(
                "container {id} is not waiting to be started"
            )));
        }
        match container.start(&self.folders, connection) {
            Ok(()) => {
                self.wait(connection);
                None
            }
            Err(message) => Some(error(Kind::Runtime, message)),
        }
    }

    fn delete(&mut self, id: &str) -> Response {
        let Some(index) = self.containers.iter().position(|c| c.create.id == id) else {
            return not_found(id);
        };
        let container = &mut self.containers[index];
        match container.phase {
            Phase::Exited(_) => {}
            Phase::Created => {
                if let Err(message) = end(container) {
                    return error(Kind::Runtime, message);
                }
            }
            Phase::Making(_) | Phase::Starting | Phase::Running => {
                return invalid(format!("container {id} has not ended"));
            }
        }
        let reaped = kill_rest(&container.group);
        let answer = match container.remove(&self.folders) {
            Ok(()) => {
                self.containers.remove(index);
                ok()
            }
            Err(message) => error(Kind::Runtime, message),
        };
        for (pid, exit) in reaped {
            self.ended(pid, exit);
        }
        answer
    }

    fn exec(&mut self, connection: u64, exec: ShimExec) -> Option<Response> {
        let Some(container) = self.containers.iter().find(|c| c.create.id == exec.id) else {
            return Some(not_found(&exec.id));
        };
        if !matches!(container.phase, Phase::Running) {
            return Some(invalid(format!("container {} is not running", exec.id)));
        }
        let number = self.number();
        let container = self.containers.iter().find(|c| c.create.id == exec.id)?;
        match create::process(
            &self.folders,
            &container.create,
            &container.group,
            &exec,
            number,
        ) {
            Ok(making) => {
                self.wait(connection);
                let session = Session::new(exec.id, connection, making, exec.tty);
                self.sessions.insert(number, session);
                None
            }
            Err(e) => Some(error(Kind::Runtime, format!("exec in {}: {e}", exec.id))),
        }
    }

    fn watch(&mut self, connection: u64) -> Option<Response> {
        self.send(connection, ok());
        for status in self
            .containers
            .iter()
            .filter_map(Container::status)
            .collect::<Vec<_>>()
        {
            self.send(connection, Response::Event(status));
        }
        self.connections.get_mut(&connection)?.role = Role::Watch;
        None
    }

    fn shutdown(&mut self) -> Response {
        if !self.containers.is_empty() {
            return invalid(format!("{} containers are there", self.containers.len()));
        }
        self.is_done = true;
        ok()
    }

    /// `None`: there will be no more.
    fn session_input(&mut self, connection: u64, bytes: Option<&[u8]>) -> Option<Response> {
        match (self.session_of(connection), bytes) {
            (None, _) => Some(invalid("input without exec")),
            (Some(session), Some(bytes)) => {
                session.input(bytes);
                None
            }
            (Some(session), None) => {
                session.close_input();
                None
            }
        }
    }

    fn resize(&mut self, connection: u64, window: ShimResize) -> Option<Response> {
        match self.session_of(connection) {
            None => Some(invalid("resize without exec")),
            Some(session) => {
                session.resize(window);
                None
            }
        }
    }

    fn session_of(&mut self, connection: u64) -> Option<&mut Session> {
        match self.connections.get(&connection)?.role {
            Role::Session(number) => self.sessions.get_mut(&number),
            Role::Calls | Role::Waiting | Role::Watch => None,
        }
    }
}

/// Ends a container that was never started. Its process waits for the start and
/// does nothing else, so it is gone at once.
fn end(container: &mut Container) -> Result<(), String> {
    let Some(pid) = container.pid else {
        return Ok(());
    };
    let killed = || -> io::Result<Option<Exit>> {
        exit::send(pid, libc::SIGKILL)?;
        Ok(exit::wait_for(pid)?)
    };
    let exit = killed().map_err(|e| format!("end {}: {e}", container.create.id))?;
    container.ended(exit.unwrap_or(Exit {
        code: 137,
        signal: libc::SIGKILL,
    }));
    Ok(())
}
