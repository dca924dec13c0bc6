//! Descriptors of a process: the ends that the shim keeps and those that it gives,
//! and reading from them.
//!
//! Terminals are made in `console.rs`. Called by `create.rs`, `container.rs` and
//! `session.rs`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

/// Our ends of a process' descriptors. All non-blocking.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub(crate) stdin: Option<File>,
    /// Standard output, or the terminal.
    pub(crate) stdout: Option<File>,
    pub(crate) stderr: Option<File>,
    /// Ends when the program was executed; else says why not.
    pub(crate) report: Option<File>,
}

/// Descriptors of a process that is to be made.
pub(crate) struct Stdio {
    pub(crate) ours: Ends,
    pub(crate) theirs: TheirEnds,
}

/// The process' own ends; none when it gets a terminal.
pub(crate) struct TheirEnds {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

impl TheirEnds {
    pub(crate) fn raw(&self) -> Vec<RawFd> {
        let ends = [&self.stdin, &self.stdout, &self.stderr];
        ends.into_iter().flatten().map(AsRawFd::as_raw_fd).collect()
    }
}

impl Stdio {
    /// A terminal has no descriptors yet; without input there is /dev/null.
    pub(crate) fn new(tty: bool, stdin: bool) -> io::Result<Self> {
        if tty {
            let theirs = TheirEnds {
                stdin: None,
                stdout: None,
                stderr: None,
            };
            return Ok(Self {
                ours: Ends::default(),
                theirs,
            });
        }
        let (input, input_end) = if stdin {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            let write = File::from(write);
            non_blocking(&write)?;
            (Some(write), read)
        } else {
            (
                None,
                OpenOptions::new().read(true).open("/dev/null")?.into(),
            )
        };
        let (output, output_end) = pipe()?;
        let (error, error_end) = pipe()?;
        Ok(Self {
            ours: Ends {
                stdin: input,
                stdout: Some(output),
                stderr: Some(error),
                report: None,
            },
            theirs: TheirEnds {
                stdin: Some(input_end),
                stdout: Some(output_end),
                stderr: Some(error_end),
            },
        })
    }
}

/// A pipe whose reading end, ours, does not block.
pub(crate) fn pipe() -> io::Result<(File, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    let read = File::from(read);
    non_blocking(&read)?;
    Ok((read, write))
}

pub(crate) fn non_blocking(file: &File) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// What is read at most of a stream whose process has ended, bytes: as much as its pipe can
/// hold (fs.pipe-max-size). Orphans may write to it without end.
pub(crate) const LEFT: usize = 1 << 20;

/// What one read brought.
pub(crate) enum Piece {
    Bytes(Vec<u8>),
    Nothing,
    End,
}

/// Reads once without blocking. A terminal whose last user is gone gives an error: its end.
pub(crate) fn read_piece(file: &mut File) -> Piece {
    let mut piece = [0; 16 << 10];
    match file.read(&mut piece) {
        Ok(0) => Piece::End,
        Ok(n) => Piece::Bytes(piece[..n].to_vec()),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Piece::Nothing
        }
        Err(_) => Piece::End,
    }
}

/// Whether a read would bring something now, be it the end.
pub(crate) fn has_input(file: &File) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
