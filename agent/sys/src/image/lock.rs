//! Locks on the store between processes, and a folder of one's own for unfinished work.
//!
//! By flock(2): the kernel lets go when a process dies, however it dies. The
//! caller is `store.rs`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::removal::{self, Most};
use crate::state;

/// Held until it is dropped.
#[derive(Debug)]
pub(super) struct FileLock {
    file: Flock<File>,
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

    /// Whether the path still names the file that is locked.
    fn is_at(&self, path: &Path) -> bool {
        let there = fs::metadata(path).map(|file| (file.dev(), file.ino()));
        let own = self.file.metadata().map(|file| (file.dev(), file.ino()));
        matches!((there, own), (Ok(there), Ok(own)) if there == own)
    }

    fn take(path: &Path, how: FlockArg) -> io::Result<Self> {
        let mut file = File::options().create(true).append(true).open(path)?;
        loop {
            match Flock::lock(file, how) {
                Ok(lock) => return Ok(Self { file: lock }),
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
    tmp: PathBuf,
    /// `None`: the disk has been full so far.
    made: Mutex<Option<Made>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Made {
    folder: PathBuf,
    _lock: FileLock,
}

impl Scratch {
    /// Makes a folder in `tmp` and removes those of the dead. On a full disk it is made when
    /// it is needed: what is in the store can be used without it.
    pub(super) fn open(tmp: &Path) -> io::Result<Self> {
        for entry in fs::read_dir(tmp)? {
            let path = entry?.path();
            match FileLock::try_exclusive(&path.join("lock")) {
                Ok(None) => {}
                Ok(Some(_lock)) => removal::remove(&path, Most::All)?,
                // It has no lock yet, and cannot get one.
                Err(error) if state::is_full(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let made = match make(tmp) {
            Ok(made) => Some(made),
            Err(error) if state::is_full(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            tmp: tmp.to_owned(),
            made: Mutex::new(made),
            next: AtomicU64::new(0),
        })
    }

    /// A path that is not in use.
    pub(super) fn path(&self) -> io::Result<PathBuf> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let made = match &mut *made {
            Some(made) => made,
            none => none.insert(make(&self.tmp)?),
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Ok(made.folder.join(number.to_string()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let made = self.made.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made {
            // The next one finds that what remains is not in use.
            drop(removal::remove(&made.folder, Most::All));
        }
    }
}

/// Makes a folder of a name that is not in use, and locks it.
fn make(tmp: &Path) -> io::Result<Made> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = tmp.join(format!("{}-{number}", std::process::id()));
        match fs::create_dir(&folder) {
            // The same number, in another PID namespace.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            made => made?,
        }
        let path = folder.join("lock");
        match FileLock::exclusive(&path) {
            Ok(lock) if lock.is_at(&path) => {
                return Ok(Made {
                    folder,
                    _lock: lock,
                });
            }
            // Another process opened the store before the folder was locked, and took it for
            // one of the dead.
            Ok(_removed) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                drop(fs::remove_dir(&folder));
                return Err(error);
            }
        }
    }
}
