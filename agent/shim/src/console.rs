//! A process' terminal: where the process sends it once it has made it, and its size.
//!
//! Called by `create.rs` and `session.rs`.

use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use proto::socket::short_path;
use proto::v1::ShimResize;

use crate::ends::non_blocking;

/// Where the process sends its terminal; gone with this value.
#[derive(Debug)]
pub(crate) struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Console {
    fn drop(&mut self) {
        // A stale one does no harm: names are unique in this shim.
        fs::remove_file(&self.path).ok();
    }
}

impl Console {
    /// Listens at a path, in a folder that may be deep.
    pub(crate) fn listen(path: &Path) -> io::Result<Self> {
        let folder = File::open(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self {
            listener: UnixListener::bind(short_path(&folder, name))?,
            path: path.into(),
        })
    }

    /// The terminal, non-blocking. Not before the process has sent it.
    pub(crate) fn terminal(&self) -> io::Result<File> {
        let (stream, _) = self.listener.accept()?;
        let terminal = File::from(receive(&stream)?);
        non_blocking(&terminal)?;
        Ok(terminal)
    }
}

fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut text = [0; 64];
    let mut pieces = [IoSliceMut::new(&mut text)];
    let mut space = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut pieces, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel made it for this message, nothing else owns it.
            return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    Err(io::Error::other("no terminal came"))
}

/// A size as the kernel has it; `None` for a size of nothing.
pub(crate) fn winsize(window: ShimResize) -> Option<libc::winsize> {
    let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    let (ws_col, ws_row) = (clamp(window.columns), clamp(window.rows));
    let is_size = ws_col > 0 && ws_row > 0;
    is_size.then_some(libc::winsize {
        ws_row,
        ws_col,
        ws_xpixel: 0,
        ws_ypixel: 0,
    })
}
