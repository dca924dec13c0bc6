//! Locks on the store between processes, and a folder of one's own for unfinished work.
//!
//! By flock(2): the kernel lets go when a process dies, however it dies. The
//! caller is `store.rs`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::removal::{self, Most};

/// Held until it is dropped.
#[derive(Debug)]
pub(super) struct FileLock {
    _file: Flock<File>,
}

impl FileLock {
    /// Waits until no other process holds it.
    pub(super) fn exclusive(path: &Path) -> io::Result<Self> {
        Self::take(path, FlockArg::LockExclusive)
    }

    /// Waits until no process holds it exclusively.
    pub(super) fn shared(path: &Path) -> io::Result<Self> {
        Self::take(path, FlockArg::LockShared)
    }

    /// None if somebody else holds it.
    pub(super) fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        match Self::take(path, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn take(path: &Path, how: FlockArg) -> io::Result<Self> {
        let mut file = File::options().create(true).append(true).open(path)?;
        loop {
            match Flock::lock(file, how) {
                Ok(lock) => return Ok(Self { _file: lock }),
                Err((again, Errno::EINTR)) => file = again,
                Err((_, errno)) => return Err(errno.into()),
            }
        }
    }
}

/// A folder for unfinished work, removed when it is dropped, or by the next
/// process that opens the store after this one died.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: PathBuf,
    next: AtomicU64,
    _lock: FileLock,
}

impl Scratch {
    /// Makes a folder in `tmp` and removes those of the dead. The caller holds
    /// the store's lock: a folder that is just being made is not locked yet.
    pub(super) fn open(tmp: &Path) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        for entry in fs::read_dir(tmp)? {
            let path = entry?.path();
            let Some(_lock) = FileLock::try_exclusive(&path.join("lock"))? else {
                continue;
            };
            removal::remove(&path, Most::All)?;
        }
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let folder = tmp.join(format!("{}-{number}", std::process::id()));
            match fs::create_dir(&folder) {
                // The same number, in another PID namespace.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                result => {
                    result?;
                    let lock = FileLock::exclusive(&folder.join("lock"))?;
                    return Ok(Self {
                        folder,
                        next: AtomicU64::new(0),
                        _lock: lock,
                    });
                }
            }
        }
    }

    /// A path that is not in use.
    pub(super) fn path(&self) -> PathBuf {
        self.folder
            .join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The next one finds that what remains is not in use.
        drop(removal::remove(&self.folder, Most::All));
    }
}
