//! Calls into file systems of the host that may never return: a hostPath can be on a
//! network file system whose server is gone, and a system call there cannot be given up.
//!
//! Each call has a thread of its own and a deadline; the thread of a call that is given up
//! stays until the kernel lets it go. One thread at a time calls for a path, and a few for
//! a file system: however many pods name how many paths of a dead server, and however often
//! they try again, other file systems go on. Called by the daemon's `sandbox.rs` and
//! `workload.rs`.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::mounts;

/// Threads at the same time, most of them of file systems that do not answer.
const MOST_THREADS: usize = 512;
/// Those of them that call for the same file system; one that answers needs few.
const MOST_OF_MOUNT: usize = 16;
/// Such a thread calls the kernel and nothing else, bytes.
const STACK: usize = 256 << 10;

/// A call that did not end well.
#[derive(Debug, thiserror::Error)]
pub enum HostCallError {
    /// The call, or an earlier one for the same path, has not returned.
    #[error("timed out: {path:?} has not answered for {seconds} s")]
    TimedOut { path: PathBuf, seconds: u64 },
    /// Too many other paths of its file system do not answer.
    #[error(
        "timed out: {path:?} was not asked, as {threads} calls to the file system at {mount:?} \
         have not returned"
    )]
    MountSilent {
        path: PathBuf,
        mount: PathBuf,
        threads: usize,
    },
    /// Too many other file systems do not answer.
    #[error(
        "timed out: {path:?} was not asked, as {threads} calls to other paths have not returned"
    )]
    TooMany { path: PathBuf, threads: usize },
    /// The kernel makes no more threads.
    #[error("a thread to ask {path:?}: {source}")]
    Thread { path: PathBuf, source: io::Error },
    /// The call was cut off.
    #[error("the call for {path:?} ended without an answer")]
    NoAnswer { path: PathBuf },
}

/// Permits by path, kept for as long as one is held or waited for.
#[derive(Debug)]
struct Permits {
    each: usize,
    paths: Mutex<HashMap<PathBuf, Weak<Semaphore>>>,
}

impl Permits {
    fn new(each: usize) -> Self {
        Self {
            each,
            paths: Mutex::default(),
        }
    }

    fn of(&self, path: &Path) -> Arc<Semaphore> {
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(permits) = paths.get(path).and_then(Weak::upgrade) {
            return permits;
        }
        paths.retain(|_, permits| permits.strong_count() > 0);
        let permits = Arc::new(Semaphore::new(self.each));
        paths.insert(path.to_owned(), Arc::downgrade(&permits));
        permits
    }
}

/// The calls under way.
#[derive(Debug)]
pub struct HostCalls {
    /// Who has the one permit of a path is calling.
    paths: Permits,
    /// By where the file system is mounted.
    mounts: Permits,
    threads: Arc<Semaphore>,
}

impl Default for HostCalls {
    fn default() -> Self {
        Self {
            paths: Permits::new(1),
            mounts: Permits::new(MOST_OF_MOUNT),
            threads: Arc::new(Semaphore::new(MOST_THREADS)),
        }
    }
}

impl HostCalls {
    /// Runs `work`, which may block in calls for `path`, on a thread of its own. Calls for
    /// the same path follow each other. What `work` makes after the deadline is dropped,
    /// so it should have no effect that must be undone.
    ///
    /// # Errors
    /// [`HostCallError`], by the deadline at the latest.
    pub async fn run<T: Send + 'static>(
        &self,
        path: &Path,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, HostCallError> {
        let deadline = Instant::now() + limit;
        let late = || HostCallError::TimedOut {
            path: path.to_owned(),
            seconds: limit.as_secs(),
        };
        let turn = self.paths.of(path).acquire_owned();
        let turn = match timeout_at(deadline, turn).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) | Err(_) => return Err(late()),
        };
        let mount = mount_of(path).await;
        let place = self.mounts.of(&mount).acquire_owned();
        let place = match timeout_at(deadline, place).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) | Err(_) => {
                return Err(HostCallError::MountSilent {
                    path: path.to_owned(),
                    mount,
                    threads: MOST_OF_MOUNT,
                });
            }
        };
        let Ok(thread) = self.threads.clone().try_acquire_owned() else {
            return Err(HostCallError::TooMany {
                path: path.to_owned(),
                threads: MOST_THREADS,
            });
        };
        let (sender, answer) = oneshot::channel();
        let spawned = thread::Builder::new()
            .name("host-path".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let done = work();
                // Who gets the path's turn next finds the other two free already.
                drop(thread);
                drop(place);
                drop(turn);
                // The caller may have given up.
                drop(sender.send(done));
            });
        if let Err(source) = spawned {
            return Err(HostCallError::Thread {
                path: path.to_owned(),
                source,
            });
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) => Err(HostCallError::NoAnswer {
                path: path.to_owned(),
            }),
            Err(_) => Err(late()),
        }
    }
}

/// Where the file system of a path is mounted. Where that cannot be told it counts as one
/// of the root's.
async fn mount_of(path: &Path) -> PathBuf {
    let path = path.to_owned();
    let found = tokio::task::spawn_blocking(move || mounts::holding(&path)).await;
    match found {
        Ok(Ok(mount)) => mount,
        Ok(Err(error)) => {
            tracing::warn!(%error, "cannot read the mount table");
            PathBuf::from("/")
        }
        Err(_cut_off) => PathBuf::from("/"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    /// For a call that returns; long, as the machine may be busy.
    const PATIENT: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_path_that_does_not_answer_holds_one_thread_and_no_other_path() {
        let calls = HostCalls::default();
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let begun = Arc::new(AtomicUsize::new(0));
        let dead = Path::new("/dead");
        for _ in 0..20 {
            let (held, begun) = (held.clone(), begun.clone());
            let hang = move || {
                begun.fetch_add(1, Ordering::SeqCst);
                held.lock().unwrap().recv().unwrap_err();
            };
            let error = calls.run(dead, SHORT, hang).await.unwrap_err();
            assert!(matches!(error, HostCallError::TimedOut { .. }), "{error}");
        }
        assert!(begun.load(Ordering::SeqCst) <= 1);
        let other = calls.run(Path::new("/alive"), PATIENT, || 7).await;
        assert_eq!(other.unwrap(), 7);
        assert_eq!(calls.paths.paths.lock().unwrap().len(), 2);
        // The server is back.
        drop(release);
        assert_eq!(calls.run(dead, PATIENT, || 8).await.unwrap(), 8);
        assert_eq!(calls.threads.available_permits(), MOST_THREADS);
        nothing_is_kept(&calls);
    }

    /// Of paths that are not asked any more. A thread that has given its permits back may
    /// hold what they are of for a moment more.
    fn nothing_is_kept(calls: &HostCalls) {
        let until = std::time::Instant::now() + PATIENT;
        for permits in [&calls.paths, &calls.mounts] {
            loop {
                drop(permits.of(Path::new("/not/asked/before")));
                let mut paths = permits.paths.lock().unwrap();
                if paths.len() == 1 {
                    break;
                }
                assert!(std::time::Instant::now() < until, "{paths:?}");
                paths.remove(Path::new("/not/asked/before"));
                drop(paths);
                thread::yield_now();
            }
        }
    }

    #[tokio::test]
    async fn a_dead_file_system_holds_few_threads_however_many_its_paths() {
        let calls = HostCalls::default();
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        // Another file system than that of /.
        let paths: Vec<_> = (0..MOST_THREADS)
            .map(|n| PathBuf::from(format!("/proc/dead/{n}")))
            .collect();
        let dead = paths.iter().map(|path| {
            let held = held.clone();
            calls.run(path, SHORT, move || {
                held.lock().unwrap().recv().unwrap_err();
            })
        });
        for refused in futures::future::join_all(dead).await {
            let error = refused.unwrap_err();
            let silent = matches!(&error, HostCallError::MountSilent { mount, .. }
                if mount == Path::new("/proc"));
            let timed_out = matches!(error, HostCallError::TimedOut { .. });
            assert!(silent || timed_out, "{error}");
        }
        let free = calls.threads.available_permits();
        assert!(free >= MOST_THREADS - MOST_OF_MOUNT, "{free}");
        let other = calls.run(Path::new("/alive"), PATIENT, || 7).await;
        assert_eq!(other.unwrap(), 7);
        // The server is back.
        drop(release);
        let again = paths.iter().map(|path| calls.run(path, PATIENT, || 8));
        let again = futures::future::join_all(again).await;
        assert!(again.iter().all(Result::is_ok), "{again:?}");
        nothing_is_kept(&calls);
    }

    #[tokio::test]
    async fn pods_with_the_same_path_do_not_refuse_each_other() {
        let calls = HostCalls::default();
        let all = (0..50).map(|n| calls.run(Path::new("/var/log"), PATIENT, move || n));
        let all = futures::future::join_all(all).await;
        assert!(all.iter().all(Result::is_ok), "{all:?}");
    }

    #[tokio::test]
    async fn there_is_an_end_to_the_threads() {
        let calls = HostCalls::default();
        let taken = calls
            .threads
            .clone()
            .acquire_many_owned(MOST_THREADS as u32);
        let taken = taken.await.unwrap();
        let error = calls
            .run(Path::new("/a"), PATIENT, || ())
            .await
            .unwrap_err();
        assert!(matches!(error, HostCallError::TooMany { .. }), "{error}");
        drop(taken);
        calls.run(Path::new("/a"), PATIENT, || ()).await.unwrap();
        let cut_off = || panic!("as a call that is cut off");
        let error = calls.run::<()>(Path::new("/a"), PATIENT, cut_off).await;
        assert!(matches!(error, Err(HostCallError::NoAnswer { .. })));
    }
}
