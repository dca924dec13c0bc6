//! Pods' shims: started so that they outlive us, found again, spoken to.
//!
//! The messages are `proto/v1/shim.proto`, the other side is `agent/shim`. One
//! [`Client`] is one connection with one request at a time; open as many as are
//! useful. Each call has a deadline: a shim that is stopped holds up nothing but the
//! task that asked it. Called by the daemon's `shims.rs`, `workload.rs` and `exec.rs`.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use proto::frame::{self, FrameError};
use proto::protocol::{self, Mismatch, SPOKEN, is_stable};
use proto::socket::short_path;
use proto::v1;
use proto::v1::shim_request::Request;
use proto::v1::shim_response::Response;
use proto::v1::{
    ShimContainer, ShimCreate, ShimDelete, ShimExec, ShimKill, ShimList, ShimOk, ShimRequest,
    ShimResize, ShimResponse, ShimShutdown, ShimStart, ShimWatch, shim_error,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::state::{self, Layout, StateError};

/// Name of the socket in a shim's folder.
const SOCKET: &str = "socket";
mod spawn;
#[cfg(test)]
mod tests;

pub use spawn::{kill, spawn};

/// For an answer that a shim has at hand. It is one thread that never waits, so that
/// only a stopped one, or a machine at its limits, takes longer.
const QUICK: Duration = Duration::from_secs(5);
/// For an answer that comes when the runtime has done its work on a container.
const SLOW: Duration = Duration::from_secs(60);

/// A shim could not be started or spoken to, or it refused.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The shim's folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// The socket or the log file could not be made.
    #[error("prepare shim of pod {uid}: {source}")]
    Prepare { uid: String, source: io::Error },
    /// The program could not be run.
    #[error("start {program}: {source}")]
    Spawn { program: PathBuf, source: io::Error },
    /// The program ended before it served.
    #[error("{program} ended at once: {status}; see {log}")]
    Ended {
        program: PathBuf,
        status: ExitStatus,
        log: PathBuf,
    },
    /// The shim does not listen: it is dead, or was never started.
    #[error("connect to {socket}: {source}")]
    Connect { socket: PathBuf, source: io::Error },
    /// No answer in time. What was asked for may be done all the same, also later.
    #[error("the shim has not answered {call} within {seconds} s")]
    Timeout { call: &'static str, seconds: u64 },
    /// The connection broke.
    #[error("shim connection: {0}")]
    Frame(#[from] FrameError),
    /// The shim closed the connection, or died.
    #[error("shim closed the connection")]
    Closed,
    /// The shim answered with an error.
    #[error("{message}")]
    Refused {
        kind: shim_error::Kind,
        message: String,
    },
    /// The shim is of another release, and speaks no version of the protocol that this
    /// agent speaks. Its containers run on, and can be stopped.
    #[error("the pod's shim cannot do this: {0}; a new pod gets a new shim")]
    Version(Mismatch),
    /// The answer does not fit the request.
    #[error("shim answered out of order")]
    Unexpected,
}

impl ShimError {
    /// Nothing listens at the socket: the shim has ended, or never began.
    pub fn is_dead(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::Connect { source, .. }
            if matches!(source.kind(), ConnectionRefused | NotFound))
    }

    /// The shim has answered, and lives.
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Version(_))
    }
}

impl From<io::Error> for ShimError {
    fn from(e: io::Error) -> Self {
        Self::Frame(e.into())
    }
}

/// Pod uids that have a shim's folder, alive or not: what adoption starts from.
pub fn list(layout: &Layout) -> Result<Vec<String>, ShimError> {
    Ok(state::uids(&layout.shims())?)
}

/// Removes the folder of a shim that has ended.
pub fn remove(layout: &Layout, uid: &str) -> Result<(), ShimError> {
    Ok(state::remove_folder(&layout.shim(uid))?)
}

/// Reads whole messages; dropping a pending read loses nothing.
#[derive(Debug)]
struct Messages {
    stream: OwnedReadHalf,
    buffer: Vec<u8>,
    /// Versions of the protocol that the shim speaks, by its last message.
    peer: Option<RangeInclusive<u32>>,
}

impl Messages {
    async fn next(&mut self) -> Result<Option<Response>, ShimError> {
        loop {
            if let Some(message) = frame::take::<ShimResponse>(&mut self.buffer)? {
                self.peer = Some(message.oldest_protocol..=message.protocol);
                return message.response.map(Some).ok_or(ShimError::Unexpected);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(ShimError::Closed)
                };
            }
        }
    }
}

/// One connection to a shim.
#[derive(Debug)]
pub struct Client {
    output: OwnedWriteHalf,
    input: Messages,
    /// Versions of the protocol that this side speaks.
    ours: RangeInclusive<u32>,
}

impl Client {
    /// Connects to the shim of a pod: after [`spawn`], and when adopting.
    pub async fn connect(layout: &Layout, uid: &str) -> Result<Self, ShimError> {
        Self::connect_as(layout, uid, SPOKEN).await
    }

    async fn connect_as(
        layout: &Layout,
        uid: &str,
        ours: RangeInclusive<u32>,
    ) -> Result<Self, ShimError> {
        let error = |source| ShimError::Connect {
            socket: layout.shim_socket(uid),
            source,
        };
        let directory = File::open(layout.shim(uid)).map_err(error)?;
        let stream = UnixStream::connect(short_path(&directory, SOCKET))
            .await
            .map_err(error)?;
        let (input, output) = stream.into_split();
        Ok(Self {
            output,
            input: Messages {
                stream: input,
                buffer: Vec::new(),
                peer: None,
            },
            ours,
        })
    }

    /// All containers that were created and not deleted, and the shim's own pid.
    pub async fn list(&mut self) -> Result<(Vec<ShimContainer>, u32), ShimError> {
        match self.call(Request::List(ShimList {})).await? {
            Response::Containers(all) => Ok((all.containers, all.shim_pid)),
            Response::Error(_)
            | Response::Ok(_)
            | Response::Event(_)
            | Response::Stdout(_)
            | Response::Stderr(_)
            | Response::ExecExitCode(_) => Err(ShimError::Unexpected),
        }
    }

    /// Makes a container, ready to start. Returns what the machine refused and
    /// the container goes without, as sentences for an event.
    pub async fn create(&mut self, create: ShimCreate) -> Result<Vec<String>, ShimError> {
        Ok(self.ok(Request::Create(create)).await?.warnings)
    }

    /// Lets the container's program run; returns when it was executed.
    pub async fn start(&mut self, id: &str) -> Result<(), ShimError> {
        self.ok(Request::Start(ShimStart { id: id.into() }))
            .await
            .map(drop)
    }

    /// Sends a signal, to all processes of the container when `all`.
    pub async fn kill(&mut self, id: &str, signal: i32, all: bool) -> Result<(), ShimError> {
        self.ok(Request::Kill(ShimKill {
            id: id.into(),
            signal,
            all,
        }))
        .await
        .map(drop)
    }

    /// Removes an ended container's cgroup and state.
    pub async fn delete(&mut self, id: &str) -> Result<(), ShimError> {
        self.ok(Request::Delete(ShimDelete { id: id.into() }))
            .await
            .map(drop)
    }

    /// Ends the shim; refused while a container is there.
    pub async fn shutdown(&mut self) -> Result<(), ShimError> {
        self.ok(Request::Shutdown(ShimShutdown {})).await.map(drop)
    }

    /// Turns the connection into a stream of states: all now, then each change.
    pub async fn watch(mut self) -> Result<Watch, ShimError> {
        self.ok(Request::Watch(ShimWatch {})).await?;
        Ok(Watch(self))
    }

    /// Runs a process in a container; the connection becomes its stdin and output.
    pub async fn exec(mut self, exec: ShimExec) -> Result<Exec, ShimError> {
        self.ok(Request::Exec(exec)).await?;
        Ok(Exec {
            input: ExecInput(self.output),
            output: ExecOutput(self.input),
        })
    }

    async fn ok(&mut self, request: Request) -> Result<ShimOk, ShimError> {
        match self.call(request).await? {
            Response::Ok(ok) => Ok(ok),
            Response::Error(_)
            | Response::Containers(_)
            | Response::Event(_)
            | Response::Stdout(_)
            | Response::Stderr(_)
            | Response::ExecExitCode(_) => Err(ShimError::Unexpected),
        }
    }

    /// After a dropped call the next answer would be the wrong one: drop the client too.
    async fn call(&mut self, request: Request) -> Result<Response, ShimError> {
        if !is_stable(&request) && *self.ours.start() > 0 && self.input.peer.is_none() {
            // A shim of version 0 would not look at what we speak.
            self.exchange(Request::List(ShimList {})).await?;
        }
        if !is_stable(&request) {
            self.speaks()?;
        }
        match self.exchange(request).await? {
            Response::Error(e) if e.kind() == shim_error::Kind::Version => {
                self.speaks()?;
                Err(refused(e))
            }
            Response::Error(e) => Err(refused(e)),
            answer @ (Response::Containers(_)
            | Response::Ok(_)
            | Response::Event(_)
            | Response::Stdout(_)
            | Response::Stderr(_)
            | Response::ExecExitCode(_)) => Ok(answer),
        }
    }

    async fn exchange(&mut self, request: Request) -> Result<Response, ShimError> {
        let (call, limit) = deadline(&request);
        let (output, input, ours) = (&mut self.output, &mut self.input, &self.ours);
        let exchange = async {
            send_as(output, request, ours).await?;
            input.next().await?.ok_or(ShimError::Closed)
        };
        within(call, limit, exchange).await
    }

    /// Whether the shim speaks a version of ours, as far as it has said.
    fn speaks(&self) -> Result<(), ShimError> {
        let peer = self.input.peer.as_ref();
        let checked = peer.map_or(Ok(()), |theirs| protocol::check(&self.ours, theirs));
        checked.map_err(ShimError::Version)
    }
}

fn refused(error: v1::ShimError) -> ShimError {
    ShimError::Refused {
        kind: error.kind(),
        message: error.message,
    }
}

/// What a request is called, and how long its answer may take.
fn deadline(request: &Request) -> (&'static str, Duration) {
    match request {
        Request::List(_) => ("a list", QUICK),
        Request::Watch(_) => ("a watch", QUICK),
        Request::Kill(_) => ("a signal", QUICK),
        Request::Shutdown(_) => ("its shutdown", QUICK),
        Request::Create(_) => ("the making of a container", SLOW),
        Request::Start(_) => ("the start of a container", SLOW),
        Request::Delete(_) => ("the removal of a container", SLOW),
        Request::Exec(_) => ("a command", SLOW),
        Request::Stdin(_) | Request::StdinClosed(_) | Request::Resize(_) => ("input", SLOW),
    }
}

async fn within<T>(
    call: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, ShimError>>,
) -> Result<T, ShimError> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_elapsed) => Err(ShimError::Timeout {
            call,
            seconds: limit.as_secs(),
        }),
    }
}

async fn send(to: &mut OwnedWriteHalf, request: Request) -> Result<(), ShimError> {
    send_as(to, request, &SPOKEN).await
}

async fn send_as(
    to: &mut OwnedWriteHalf,
    request: Request,
    ours: &RangeInclusive<u32>,
) -> Result<(), ShimError> {
    Ok(to
        .write_all(&frame::encode(&ShimRequest {
            request: Some(request),
            protocol: *ours.end(),
            oldest_protocol: *ours.start(),
        }))
        .await?)
}

/// States of a shim's containers as they change.
#[derive(Debug)]
pub struct Watch(Client);

impl Watch {
    /// The next state; `None` when the shim is gone. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Option<ShimContainer>, ShimError> {
        match self.0.input.next().await {
            Ok(Some(Response::Event(container))) => Ok(Some(container)),
            Ok(None) => Ok(None),
            Ok(Some(
                Response::Error(_)
                | Response::Containers(_)
                | Response::Ok(_)
                | Response::Stdout(_)
                | Response::Stderr(_)
                | Response::ExecExitCode(_),
            )) => Err(ShimError::Unexpected),
            Err(e) => Err(e),
        }
    }
}

/// A process that runs in a container. Dropping both halves kills it.
#[derive(Debug)]
pub struct Exec {
    /// Its stdin and window.
    pub input: ExecInput,
    /// What it writes, and how it ended.
    pub output: ExecOutput,
}

impl Exec {
    /// Its exit code and all it wrote, at most so many bytes of it.
    pub async fn collect(mut self, limit: usize) -> Result<(i32, Vec<u8>), ShimError> {
        let mut written = Vec::new();
        loop {
            match self.output.next().await? {
                ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => {
                    let room = limit.saturating_sub(written.len()).min(bytes.len());
                    written.extend_from_slice(&bytes[..room]);
                }
                ExecEvent::Exit(code) => return Ok((code, written)),
            }
        }
    }
}

/// The process' stdin and window.
#[derive(Debug)]
pub struct ExecInput(OwnedWriteHalf);

impl ExecInput {
    /// Bytes for its stdin. Waits while the process does not read: for as long as the
    /// caller has patience.
    pub async fn write(&mut self, bytes: Vec<u8>) -> Result<(), ShimError> {
        send(&mut self.0, Request::Stdin(bytes)).await
    }

    /// No more input will come.
    pub async fn close(&mut self) -> Result<(), ShimError> {
        self.message(Request::StdinClosed(true)).await
    }

    /// The terminal's new size, characters.
    pub async fn resize(&mut self, columns: u32, rows: u32) -> Result<(), ShimError> {
        let request = Request::Resize(ShimResize { columns, rows });
        self.message(request).await
    }

    async fn message(&mut self, request: Request) -> Result<(), ShimError> {
        let (call, limit) = deadline(&request);
        within(call, limit, send(&mut self.0, request)).await
    }
}

/// What comes from a process, in order; the last is its exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// Exit code, 128 + signal for one that a signal ended.
    Exit(i32),
}

/// Output of the process.
#[derive(Debug)]
pub struct ExecOutput(Messages);

impl ExecOutput {
    /// The next piece. May be dropped and called again.
    pub async fn next(&mut self) -> Result<ExecEvent, ShimError> {
        match self.0.next().await?.ok_or(ShimError::Closed)? {
            Response::Stdout(bytes) => Ok(ExecEvent::Stdout(bytes)),
            Response::Stderr(bytes) => Ok(ExecEvent::Stderr(bytes)),
            Response::ExecExitCode(code) => Ok(ExecEvent::Exit(code)),
            Response::Error(_) | Response::Containers(_) | Response::Ok(_) | Response::Event(_) => {
                Err(ShimError::Unexpected)
            }
        }
    }
}
