//! Choice tables are replaced without waiting for the programs that still read the old ones.
//!
//! The kernel's update of a map of maps returns after an RCU grace period, some 10 ms
//! (`maybe_wait_bpf_programs`), although programs find the new map at once. Whoever waits for a
//! new service needs only that. What must wait is the next use of a backend's number: a program
//! with the old table may be about to read the backend that the number stood for.

use crate::bpf::syscall;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Updates that wait for readers at once, at most; each has a thread and the descriptors of its
/// tables.
const AT_ONCE: usize = 8;

type Waiting = JoinHandle<io::Result<()>>;

/// Updates of a map of maps whose readers may not all be done.
#[derive(Debug, Default)]
pub(super) struct Readers(Mutex<Vec<Waiting>>);

impl Readers {
    /// Puts inner maps into `outer` by their keys, and returns when programs find all of them.
    pub(super) fn put(&self, outer: BorrowedFd<'_>, inner: Vec<(u32, OwnedFd)>) -> io::Result<()> {
        let Some((last, map)) = inner.last() else {
            return Ok(());
        };
        let (last, id) = (*last, syscall::map_id(syscall::fd(map))?);
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= AT_ONCE {
            join(&mut waiting)?;
        }
        let update = Arc::new(Update {
            outer: outer.try_clone_to_owned()?,
            inner,
        });
        let of_thread = update.clone();
        let thread = std::thread::Builder::new().name("map-readers".to_owned());
        let Ok(thread) = thread.spawn(move || of_thread.run()) else {
            return update.run();
        };
        // The kernel takes them in order: once the last one is there, all are.
        let mut found = [0; 4];
        while !thread.is_finished() {
            if syscall::lookup(outer, &last.to_ne_bytes(), &mut found)?
                && u32::from_ne_bytes(found) == id
            {
                waiting.push(thread);
                return Ok(());
            }
            std::thread::yield_now();
        }
        result(thread)
    }

    /// Returns when no program reads a table that was replaced before.
    pub(super) fn wait(&self) -> io::Result<()> {
        join(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a thread is given.
struct Update {
    outer: OwnedFd,
    inner: Vec<(u32, OwnedFd)>,
}

impl Update {
    /// Returns after the grace period.
    fn run(&self) -> io::Result<()> {
        let pairs: Vec<(u32, u32)> = self
            .inner
            .iter()
            .map(|(key, map)| (*key, map.as_raw_fd() as u32))
            .collect();
        syscall::update_batch(syscall::fd(&self.outer), &pairs)
    }
}

fn join(waiting: &mut Vec<Waiting>) -> io::Result<()> {
    waiting.drain(..).try_for_each(result)
}

fn result(thread: Waiting) -> io::Result<()> {
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread of an update panicked")))
}
