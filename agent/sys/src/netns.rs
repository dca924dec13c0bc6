//! A pod's net, IPC and UTS namespaces: made, pinned by bind mounts, entered, removed.
//!
//! No process holds them open (there is no pause container): the pins under
//! `run/ns/UID` do. Links, addresses and routes inside are `link.rs`.
//! Called by the daemon's `apply.rs` and `observe.rs`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::sethostname;

use crate::state::{self, StateError};

/// The files of one pod's pins, as they are named under /proc/PID/ns.
pub const KINDS: [&str; 3] = ["net", "ipc", "uts"];

/// A namespace could not be made, entered or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The folder of the pins.
    #[error(transparent)]
    State(#[from] StateError),
    /// unshare(2) refused.
    #[error("make namespaces for {folder}: {source}")]
    Unshare { folder: PathBuf, source: Errno },
    /// The hostname was refused.
    #[error("set hostname {hostname:?}: {source}")]
    Hostname { hostname: String, source: Errno },
    /// `lo` could not be set up.
    #[error("set lo up: {0}")]
    Loopback(Errno),
    /// A pin could not be made.
    #[error("pin {path}: {source}")]
    Pin { path: PathBuf, source: io::Error },
    /// A pin could not be removed.
    #[error("unpin {path}: {source}")]
    Unpin { path: PathBuf, source: io::Error },
    /// The namespace of this file could not be entered.
    #[error("enter {path}: {source}")]
    Enter { path: PathBuf, source: io::Error },
    /// No thread for it.
    #[error("start a thread for {path}: {source}")]
    Thread { path: PathBuf, source: io::Error },
    /// The closure panicked.
    #[error("thread in {path} panicked")]
    Panic { path: PathBuf },
}

/// Makes net, IPC and UTS namespaces with this hostname, sets `lo` up and pins
/// them as `folder/{net,ipc,uts}`. What is pinned there already is kept: a crash
/// between two pins is mended by [`remove`] and a new call, see [`exists`].
pub fn create(folder: &Path, hostname: &str) -> Result<(), NetnsError> {
    state::create_folder(folder)?;
    let made = on_a_thread(folder, || -> Result<(), NetnsError> {
        let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        unshare(flags).map_err(|source| NetnsError::Unshare {
            folder: folder.into(),
            source,
        })?;
        sethostname(hostname).map_err(|source| NetnsError::Hostname {
            hostname: hostname.into(),
            source,
        })?;
        loopback_up().map_err(NetnsError::Loopback)?;
        for kind in KINDS {
            pin(kind, &folder.join(kind))?;
        }
        Ok(())
    })?;
    if made.is_err() {
        // The first error is the one that tells; removal is tried, and tried again by the planner.
        if let Err(e) = remove(folder) {
            tracing::warn!(folder = %folder.display(), error = %e, "half-made namespaces stay");
        }
    }
    made
}

/// Whether all three pins are there and are namespaces.
pub fn exists(folder: &Path) -> bool {
    KINDS.iter().all(|kind| is_pin(&folder.join(kind)))
}

/// Unpins and removes the folder; it need not be there. The namespaces go when
/// their last process does.
pub fn remove(folder: &Path) -> Result<(), NetnsError> {
    for kind in KINDS {
        let path = folder.join(kind);
        loop {
            match umount2(&path, MntFlags::MNT_DETACH) {
                // Mounted over more than once: down to the file below.
                Ok(()) => {}
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(e) => {
                    return Err(NetnsError::Unpin {
                        path,
                        source: e.into(),
                    });
                }
            }
        }
    }
    Ok(state::remove_folder(folder)?)
}

/// Pod uids that have a folder of pins, whole or not: what observation starts from.
pub fn list(namespaces: &Path) -> Result<Vec<String>, NetnsError> {
    Ok(state::uids(namespaces)?)
}

/// Inode of a pinned namespace: equal inodes are the same namespace.
pub fn inode(pin: &Path) -> Result<u64, NetnsError> {
    fs::metadata(pin)
        .map(|m| m.ino())
        .map_err(|source| NetnsError::Enter {
            path: pin.into(),
            source,
        })
}

/// Runs a closure inside a network namespace, on a thread of its own: the
/// caller's threads stay where they are. Blocks until it is done.
pub fn enter<T: Send>(net: &Path, run: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let file = File::open(net).map_err(|source| NetnsError::Enter {
        path: net.into(),
        source,
    })?;
    on_a_thread(net, || {
        setns(&file, CloneFlags::CLONE_NEWNET).map_err(|e| NetnsError::Enter {
            path: net.into(),
            source: e.into(),
        })?;
        Ok(run())
    })?
}

fn on_a_thread<T: Send>(path: &Path, run: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .spawn_scoped(scope, run)
            .map_err(|source| NetnsError::Thread {
                path: path.into(),
                source,
            })?;
        thread
            .join()
            .map_err(|_panic| NetnsError::Panic { path: path.into() })
    })
}

fn pin(kind: &str, path: &Path) -> Result<(), NetnsError> {
    let error = |source| NetnsError::Pin {
        path: path.into(),
        source,
    };
    File::create(path).map_err(error)?;
    let source = format!("/proc/thread-self/ns/{kind}");
    mount(
        Some(source.as_str()),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(|e| error(e.into()))
}

fn is_pin(path: &Path) -> bool {
    /// NSFS_MAGIC of linux/magic.h.
    const NSFS: i64 = 0x6e73_6673;
    nix::sys::statfs::statfs(path).is_ok_and(|s| s.filesystem_type().0 == NSFS)
}

fn loopback_up() -> nix::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain bytes, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the socket is open, and the kernel reads one ifreq, which outlives the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) })?;
    Ok(())
}
