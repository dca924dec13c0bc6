//! One connection to the socket: whole messages in and out, never blocking.
//!
//! What the messages mean is `request.rs`. Called by `serve.rs`.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::poll::PollFlags;
use proto::frame::{self, FrameError};
use proto::protocol::{self, Mismatch, SPOKEN};
use proto::v1::shim_request::Request;
use proto::v1::shim_response::Response;
use proto::v1::{ShimRequest, ShimResponse};

/// What a connection is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Requests are answered in order.
    Calls,
    /// As `Calls`, and the next request waits until the one before is answered.
    Waiting,
    /// Gets every change.
    Watch,
    /// Is the stdin and output of the session with this number.
    Session(u64),
}

/// Bytes that may wait to be written before output of a session is left in its pipe.
const FULL: usize = 256 << 10;

/// Bytes that may wait to be written before a watcher that does not read is dropped.
const TOO_FULL: usize = 4 << 20;

/// A peer of the shim.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    pub(crate) role: Role,
    input: Vec<u8>,
    output: Vec<u8>,
    /// No more will be read: closes when all is written.
    finishing: bool,
    /// Versions of the protocol that the peer speaks.
    peer: RangeInclusive<u32>,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            role: Role::Calls,
            input: Vec::new(),
            output: Vec::new(),
            finishing: false,
            peer: 0..=0,
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// What to wait for. `stdin_full`: a session does not take more input now.
    pub(crate) fn interest(&self, stdin_full: bool) -> PollFlags {
        let mut flags = PollFlags::empty();
        if !self.finishing && self.role != Role::Waiting && !stdin_full {
            flags |= PollFlags::POLLIN;
        }
        if !self.output.is_empty() {
            flags |= PollFlags::POLLOUT;
        }
        flags
    }

    /// Reads once; `false` when the peer has closed.
    pub(crate) fn read(&mut self) -> io::Result<bool> {
        let mut piece = [0; 16 << 10];
        match self.stream.read(&mut piece) {
            Ok(0) => Ok(false),
            Ok(n) => {
                self.input.extend_from_slice(&piece[..n]);
                Ok(true)
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(true)
            }
            Err(e) => Err(e),
        }
    }

    /// The next request that is whole, unless an earlier one is still unanswered.
    pub(crate) fn next(&mut self) -> Result<Option<Request>, FrameError> {
        if self.role == Role::Waiting || self.finishing {
            return Ok(None);
        }
        let message = frame::take::<ShimRequest>(&mut self.input)?;
        if self.input.is_empty() {
            self.input.shrink_to_fit();
        }
        match message {
            None => Ok(None),
            Some(ShimRequest {
                request,
                protocol,
                oldest_protocol,
            }) => {
                self.peer = oldest_protocol..=protocol;
                // None: of a newer agent, or no message of ours.
                let unknown = || io::Error::new(io::ErrorKind::InvalidData, "unknown request");
                request.map(Some).ok_or_else(|| unknown().into())
            }
        }
    }

    /// Whether the peer, by its last request, speaks a version of ours.
    pub(crate) fn speaks(&self) -> Result<(), Mismatch> {
        protocol::check(&SPOKEN, &self.peer)
    }

    /// Puts a message behind those that wait, and writes what can be written now.
    pub(crate) fn send(&mut self, response: Response) {
        self.output.extend(frame::encode(&ShimResponse {
            response: Some(response),
            protocol: *SPOKEN.end(),
            oldest_protocol: *SPOKEN.start(),
        }));
        self.write();
    }

    /// Writes what can be written now.
    pub(crate) fn write(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // The peer is gone; reading tells the loop.
                Err(_) => self.output.clear(),
            }
        }
        if self.output.is_empty() {
            self.output.shrink_to_fit();
        }
    }

    /// Session output is to wait in its pipe.
    pub(crate) fn is_full(&self) -> bool {
        self.output.len() > FULL
    }

    /// The peer does not read.
    pub(crate) fn is_stuck(&self) -> bool {
        self.output.len() > TOO_FULL
    }

    /// Closes once everything is written.
    pub(crate) fn finish(&mut self) {
        self.finishing = true;
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finishing && self.output.is_empty()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A copy of the descriptor in a worker must not keep the peer waiting.
        self.stream.shutdown(Shutdown::Both).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{ShimList, ShimOk};

    fn pair() -> (UnixStream, Connection) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours, Connection::new(theirs).unwrap())
    }

    fn list() -> Vec<u8> {
        frame::encode(&ShimRequest {
            request: Some(Request::List(ShimList {})),
            ..ShimRequest::default()
        })
    }

    #[test]
    fn a_waiting_connection_keeps_the_next_request() {
        let (mut peer, mut connection) = pair();
        peer.write_all(&[list(), list()].concat()).unwrap();
        assert!(connection.read().unwrap());
        assert!(matches!(connection.next(), Ok(Some(Request::List(_)))));
        connection.role = Role::Waiting;
        assert!(matches!(connection.next(), Ok(None)));
        connection.role = Role::Calls;
        assert!(matches!(connection.next(), Ok(Some(Request::List(_)))));
        assert!(matches!(connection.next(), Ok(None)));
    }

    #[test]
    fn the_versions_of_the_peer_are_those_of_its_last_request() {
        let (mut peer, mut connection) = pair();
        for (protocol, oldest_protocol, spoken) in [(0, 0, true), (1, 1, true), (9, 8, false)] {
            let request = frame::encode(&ShimRequest {
                request: Some(Request::List(ShimList {})),
                protocol,
                oldest_protocol,
            });
            peer.write_all(&request).unwrap();
            assert!(connection.read().unwrap());
            assert!(matches!(connection.next(), Ok(Some(Request::List(_)))));
            assert_eq!(connection.speaks().is_ok(), spoken, "{protocol}");
        }
    }

    #[test]
    fn garbage_is_an_error_and_not_a_panic() {
        for garbage in [
            &[0xff; 64][..],
            &[3, 0, 0, 0, 0xff, 0xff, 0xff],
            &[0, 0, 0, 0],
        ] {
            let (mut peer, mut connection) = pair();
            peer.write_all(garbage).unwrap();
            assert!(connection.read().unwrap());
            assert!(connection.next().is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn a_peer_that_is_gone_is_no_trouble() {
        let (peer, mut connection) = pair();
        drop(peer);
        connection.send(Response::Ok(ShimOk::default()));
        assert!(!connection.read().unwrap_or(false));
    }
}
