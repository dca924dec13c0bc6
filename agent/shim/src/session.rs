//! A process that runs in a container for a connection: its stdin, output and end.
//!
//! Called by `request.rs` and `serve.rs`. Making it is `create.rs`.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::v1::{ShimError, ShimResize};

use crate::console::winsize;
use crate::create::Making;
use crate::ends::{Ends, LEFT, Piece, has_input, read_piece};
use crate::exit::Exit;
use crate::log::Stream;
use crate::report;

/// Bytes of input that may wait before no more is read from the connection.
const FULL: usize = 64 << 10;

/// One such process.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) container: String,
    pub(crate) connection: u64,
    /// While a worker makes it.
    pub(crate) making: Option<Making>,
    pub(crate) pid: Option<Pid>,
    pub(crate) ends: Ends,
    pub(crate) exit: Option<Exit>,
    /// Bytes that were read after its end.
    read_after: usize,
    tty: bool,
    input: VecDeque<u8>,
    input_closed: bool,
}

impl Session {
    pub(crate) fn new(container: String, connection: u64, making: Making, tty: bool) -> Self {
        Self {
            container,
            connection,
            making: Some(making),
            pid: None,
            ends: Ends::default(),
            exit: None,
            read_after: 0,
            tty,
            input: VecDeque::new(),
            input_closed: false,
        }
    }

    /// The worker is done.
    pub(crate) fn made(&mut self, pid: Pid, ends: Ends) {
        self.pid = Some(pid);
        self.ends = ends;
        self.write();
    }

    /// Takes input; it is written as the process reads it.
    pub(crate) fn input(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
        self.write();
    }

    /// No more input will come. On a terminal that is an end-of-file character.
    pub(crate) fn close_input(&mut self) {
        /// VEOF of a new terminal: Control-D.
        const END_OF_FILE: u8 = 4;
        if self.tty && !self.input_closed {
            self.input.push_back(END_OF_FILE);
        }
        self.input_closed = true;
        self.write();
    }

    pub(crate) fn is_full(&self) -> bool {
        self.input.len() > FULL
    }

    /// Whether input waits for the process to read.
    pub(crate) fn has_input(&self) -> bool {
        !self.input.is_empty() && self.ends.stdin.is_some()
    }

    /// Writes what can be written now.
    pub(crate) fn write(&mut self) {
        while let Some(stdin) = &mut self.ends.stdin {
            let (next, _) = self.input.as_slices();
            if next.is_empty() {
                // A terminal stays open for its output.
                if self.input_closed && !self.tty {
                    self.ends.stdin = None;
                }
                return;
            }
            match stdin.write(next) {
                Ok(n) => drop(self.input.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // It reads no more.
                Err(_) => {
                    self.input.clear();
                    self.ends.stdin = None;
                }
            }
        }
    }

    /// Sets the terminal's size; nothing without one, or for a size of nothing.
    pub(crate) fn resize(&mut self, window: ShimResize) {
        let Some(terminal) = self.ends.stdout.as_ref().filter(|_| self.tty) else {
            return;
        };
        let Some(size) = winsize(window) else { return };
        // SAFETY: the descriptor is open, and the kernel reads one winsize.
        let set =
            Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) });
        if let Err(e) = set {
            eprintln!("resize of a terminal in {}: {e}", self.container);
        }
    }

    /// Reads once from a stream; `None` when nothing is there now.
    pub(crate) fn read(&mut self, stream: Stream) -> Option<Vec<u8>> {
        let end = match stream {
            Stream::Stdout => &mut self.ends.stdout,
            Stream::Stderr => &mut self.ends.stderr,
        };
        match read_piece(end.as_mut()?) {
            Piece::Bytes(bytes) => {
                if self.exit.is_some() {
                    self.read_after += bytes.len();
                }
                Some(bytes)
            }
            Piece::Nothing => None,
            Piece::End => {
                *end = None;
                None
            }
        }
    }

    /// Ended, and all it wrote is taken. What its orphans may still write is not waited for:
    /// they may write without end.
    pub(crate) fn is_over(&self) -> bool {
        let silent = |end: &Option<std::fs::File>| !end.as_ref().is_some_and(has_input);
        let all = || silent(&self.ends.stdout) && silent(&self.ends.stderr);
        // Both streams' pipes, or the terminal.
        self.exit.is_some() && (all() || self.read_after >= 2 * LEFT)
    }

    /// Why its program was not executed, once it is over; `None` when it was.
    pub(crate) fn failure(&mut self) -> Option<ShimError> {
        report::read(self.ends.report.as_mut()?)
    }

    /// Its connection is gone: no caller waits for it.
    pub(crate) fn kill(&self) {
        if let (Some(pid), None) = (self.pid, self.exit) {
            // Not reaped yet, so the pid is still its own.
            kill(pid, Signal::SIGKILL).ok();
        }
    }
}
