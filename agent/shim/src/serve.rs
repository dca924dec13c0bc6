//! The loop: sockets, ends of processes, output. One thread, poll(2), no waiting
//! anywhere else.
//!
//! Requests are done in `request.rs`, what comes of them in `progress.rs`. Called by
//! `main.rs`.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use agent_cgroup::Hierarchies;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use proto::v1::shim_response::Response;

use crate::connection::{Connection, Role};
use crate::container::{Container, Phase};
use crate::create::Folders;
use crate::ends::Ends;
use crate::exit::Exit;
use crate::log::Stream;
use crate::session::Session;

/// Connections beyond this are closed at once.
const MOST_CONNECTIONS: usize = 256;

/// Everything that the shim knows.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) folders: Folders,
    /// Where groups are.
    pub(crate) hierarchies: Arc<Hierarchies>,
    listener: UnixListener,
    /// SIGCHLD.
    pub(crate) signals: SignalFd,
    pub(crate) connections: BTreeMap<u64, Connection>,
    pub(crate) containers: Vec<Container>,
    pub(crate) sessions: BTreeMap<u64, Session>,
    /// Children that ended before their worker told whose they were.
    pub(crate) unclaimed: HashMap<Pid, Exit>,
    /// Numbers of connections and sessions, never used twice.
    last_number: u64,
    pub(crate) is_done: bool,
}

/// What became ready.
#[derive(Debug, Clone, Copy)]
enum Source {
    Listener,
    Signals,
    Connection(u64),
    /// A container's worker, by index.
    Making(usize),
    Report(usize),
    Output(usize, Stream),
    SessionMaking(u64),
    SessionOutput(u64, Stream),
    SessionInput(u64),
}

impl Shim {
    pub(crate) fn new(
        folders: Folders,
        hierarchies: Hierarchies,
        listener: UnixListener,
        signals: SignalFd,
    ) -> Self {
        Self {
            folders,
            hierarchies: Arc::new(hierarchies),
            listener,
            signals,
            connections: BTreeMap::new(),
            containers: Vec::new(),
            sessions: BTreeMap::new(),
            unclaimed: HashMap::new(),
            last_number: 0,
            is_done: false,
        }
    }

    /// Serves until a shutdown was asked for and answered.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        while !self.is_done
            || self
                .connections
                .values()
                .any(|c| !c.interest(true).is_empty())
        {
            for (source, flags) in self.wait_for_input()? {
                self.handle(source, flags)?;
            }
            self.end_sessions();
            self.close_connections();
        }
        Ok(())
    }

    /// A number for a connection or session.
    pub(crate) fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    pub(crate) fn send(&mut self, connection: u64, response: Response) {
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.send(response);
        }
    }

    /// No further request of this connection until [`Self::answer`].
    pub(crate) fn wait(&mut self, connection: u64) {
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.role = Role::Waiting;
        }
    }

    /// Answers a waiting connection, and does what it asked for meanwhile.
    pub(crate) fn answer(&mut self, connection: u64, role: Role, response: Response) {
        if let Some(waiting) = self.connections.get_mut(&connection) {
            waiting.role = role;
            waiting.send(response);
            self.requests(connection);
        }
    }

    fn wait_for_input(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::new(fd, flags));
        };
        add(Source::Listener, self.listener.as_fd(), PollFlags::POLLIN);
        add(Source::Signals, self.signals.as_fd(), PollFlags::POLLIN);
        for (number, connection) in &self.connections {
            let full = match connection.role {
                Role::Session(session) => self.sessions.get(&session).is_some_and(Session::is_full),
                Role::Calls | Role::Waiting | Role::Watch => false,
            };
            add(
                Source::Connection(*number),
                connection.fd(),
                connection.interest(full),
            );
        }
        for (index, container) in self.containers.iter().enumerate() {
            if let Phase::Making(making) = &container.phase {
                add(Source::Making(index), making.worker.fd(), PollFlags::POLLIN);
            }
            // Before the start it can only mean that the process was killed.
            if let Some(report) = &container.ends.report {
                add(Source::Report(index), report.as_fd(), PollFlags::POLLIN);
            }
            for (stream, fd) in outputs(&container.ends) {
                add(Source::Output(index, stream), fd, PollFlags::POLLIN);
            }
        }
        for (number, session) in &self.sessions {
            if let Some(making) = &session.making {
                add(
                    Source::SessionMaking(*number),
                    making.worker.fd(),
                    PollFlags::POLLIN,
                );
            }
            if !self
                .connections
                .get(&session.connection)
                .is_some_and(Connection::is_full)
            {
                for (stream, fd) in outputs(&session.ends) {
                    add(
                        Source::SessionOutput(*number, stream),
                        fd,
                        PollFlags::POLLIN,
                    );
                }
            }
            if let Some(stdin) = session.ends.stdin.as_ref().filter(|_| session.has_input()) {
                add(
                    Source::SessionInput(*number),
                    stdin.as_fd(),
                    PollFlags::POLLOUT,
                );
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready = sources.into_iter().zip(fds);
        Ok(ready
            .filter_map(|(source, fd)| Some((source, fd.revents().filter(|r| !r.is_empty())?)))
            .collect())
    }

    fn handle(&mut self, source: Source, flags: PollFlags) -> io::Result<()> {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.reap()?,
            Source::Connection(number) => self.serve(number, flags),
            Source::Making(index) => self.made(index, false),
            Source::Report(index) => self.started(index),
            Source::Output(index, stream) => {
                if let Some(container) = self.containers.get_mut(index) {
                    container.read_output(stream);
                }
            }
            Source::SessionMaking(number) => self.session_made(number, false),
            Source::SessionOutput(number, stream) => self.session_output(number, stream),
            Source::SessionInput(number) => {
                if let Some(session) = self.sessions.get_mut(&number) {
                    session.write();
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, _)) if self.connections.len() < MOST_CONNECTIONS => {
                match Connection::new(stream) {
                    Ok(connection) => {
                        let number = self.number();
                        self.connections.insert(number, connection);
                    }
                    Err(e) => eprintln!("connection: {e}"),
                }
            }
            Ok(_) => eprintln!("more than {MOST_CONNECTIONS} connections"),
            // The peer gave up already, or descriptors are short; it will try again.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => eprintln!("accept: {e}"),
        }
    }

    fn serve(&mut self, number: u64, flags: PollFlags) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if flags.contains(PollFlags::POLLOUT) {
            connection.write();
        }
        if flags.contains(PollFlags::POLLIN) {
            match connection.read() {
                Ok(true) => self.requests(number),
                Ok(false) | Err(_) => self.close(number),
            }
        } else if flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
            self.close(number);
        }
    }

    /// Does all requests that are whole.
    fn requests(&mut self, number: u64) {
        loop {
            match self.connections.get_mut(&number).map(Connection::next) {
                Some(Ok(Some(request))) => self.request(number, request),
                Some(Ok(None)) | None => return,
                Some(Err(e)) => {
                    eprintln!("connection closed: {e}");
                    self.close(number);
                    return;
                }
            }
        }
    }

    fn close(&mut self, number: u64) {
        self.connections.remove(&number);
        for session in self.sessions.values().filter(|s| s.connection == number) {
            session.kill();
        }
    }

    fn close_connections(&mut self) {
        let over: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| c.is_finished() || c.is_stuck())
            .map(|(number, _)| *number)
            .collect();
        for number in over {
            self.close(number);
        }
    }
}

fn outputs(ends: &Ends) -> impl Iterator<Item = (Stream, BorrowedFd<'_>)> {
    let stdout = ends.stdout.as_ref().map(|f| (Stream::Stdout, f.as_fd()));
    let stderr = ends.stderr.as_ref().map(|f| (Stream::Stderr, f.as_fd()));
    stdout.into_iter().chain(stderr)
}
