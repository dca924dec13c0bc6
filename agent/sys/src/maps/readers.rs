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
        let is_there = || {
            let mut found = [0; 4];
            let there = syscall::lookup(outer, &last.to_ne_bytes(), &mut found)?;
            Ok(there && u32::from_ne_bytes(found) == id)
        };
        until_visible(thread, is_there, &mut waiting)
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

/// Returns when programs find what the thread puts into the map, and lets it go on in `waiting`.
/// If that cannot be told, when it has ended.
fn until_visible(
    thread: Waiting,
    is_there: impl Fn() -> io::Result<bool>,
    waiting: &mut Vec<Waiting>,
) -> io::Result<()> {
    while !thread.is_finished() {
        match is_there() {
            Ok(true) => {
                waiting.push(thread);
                return Ok(());
            }
            Ok(false) => std::thread::yield_now(),
            Err(_) => break,
        }
    }
    result(thread)
}

/// Waits for all of them, also when one has failed: none may be unfinished, and forgotten, when
/// the next call finds the list empty.
fn join(waiting: &mut Vec<Waiting>) -> io::Result<()> {
    let ended: Vec<io::Result<()>> = waiting.drain(..).map(result).collect();
    ended.into_iter().collect()
}

fn result(thread: Waiting) -> io::Result<()> {
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread of an update panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A thread that ends when the sender is dropped, and what it has sent then.
    fn held() -> (mpsc::Sender<()>, mpsc::Receiver<()>, Waiting) {
        let (hold, held) = mpsc::channel::<()>();
        let (ended, at_end) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _dropped = held.recv();
            let _sent = ended.send(());
            Ok(())
        });
        (hold, at_end, thread)
    }

    /// Drops it when the other thread has had every chance to go on without waiting.
    fn later(hold: mpsc::Sender<()>) {
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            drop(hold);
        });
    }

    #[test]
    fn all_are_waited_for_when_one_has_failed() {
        let failed = std::thread::spawn(|| Err(io::Error::other("no memory")));
        let (hold, at_end, slow) = held();
        later(hold);
        let mut waiting = vec![failed, slow];
        join(&mut waiting).unwrap_err();
        assert!(at_end.try_recv().is_ok(), "the second one has ended");
        assert!(waiting.is_empty());
    }

    #[test]
    fn an_update_whose_effect_cannot_be_told_is_waited_for() {
        let (hold, at_end, slow) = held();
        later(hold);
        let mut waiting = Vec::new();
        let lost = || Err(io::Error::other("no such map"));
        until_visible(slow, lost, &mut waiting).unwrap();
        assert!(at_end.try_recv().is_ok(), "it has ended");
        assert!(waiting.is_empty());
    }

    #[test]
    fn an_update_that_is_seen_goes_on() {
        let (hold, at_end, slow) = held();
        let mut waiting = Vec::new();
        until_visible(slow, || Ok(true), &mut waiting).unwrap();
        assert!(at_end.try_recv().is_err(), "it has not ended");
        assert_eq!(waiting.len(), 1);
        drop(hold);
        join(&mut waiting).unwrap();
        assert!(at_end.try_recv().is_ok());
    }
}
