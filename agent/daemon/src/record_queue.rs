//! Records on their way to the disk, by the uid of their pod: one is written at a time,
//! and one that changes meanwhile takes the place of what waits.
//!
//! Filled and emptied by `record.rs`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedMutexGuard};

/// How often [`Queue::empty`] looks.
const LOOK: Duration = Duration::from_millis(10);

/// What waits.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: Mutex<BTreeMap<String, Vec<u8>>>,
    more: Notify,
    writing: Arc<tokio::sync::Mutex<()>>,
}

/// What is to be written next.
#[derive(Debug)]
pub(crate) struct Next {
    pub(crate) uid: String,
    pub(crate) bytes: Vec<u8>,
    /// To be held until it is written.
    pub(crate) writing: OwnedMutexGuard<()>,
}

impl Queue {
    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<String, Vec<u8>>) -> T) -> T {
        work(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The newest record of a pod.
    pub(crate) fn put(&self, uid: String, bytes: Vec<u8>) {
        self.with(|waiting| waiting.insert(uid, bytes));
        self.more.notify_one();
    }

    /// One that could not be written, unless there is a newer one.
    pub(crate) fn put_back(&self, uid: String, bytes: Vec<u8>) {
        self.with(|waiting| {
            waiting.entry(uid).or_insert(bytes);
        });
        self.more.notify_one();
    }

    /// Waits for something to write.
    pub(crate) async fn next(&self) -> Next {
        loop {
            let writing = self.writing.clone().lock_owned().await;
            if let Some((uid, bytes)) = self.with(BTreeMap::pop_first) {
                return Next {
                    uid,
                    bytes,
                    writing,
                };
            }
            drop(writing);
            self.more.notified().await;
        }
    }

    /// Nothing of this pod is written any more once this returns.
    pub(crate) async fn forget(&self, uid: &str) {
        self.with(|waiting| waiting.remove(uid));
        drop(self.writing.lock().await);
    }

    /// Waits until all is written.
    pub(crate) async fn empty(&self) {
        while !self.with(|waiting| waiting.is_empty()) {
            tokio::time::sleep(LOOK).await;
        }
        drop(self.writing.lock().await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_wins_and_one_is_written_at_a_time() {
        let queue = Queue::default();
        queue.put("a".into(), vec![1]);
        let first = queue.next().await;
        assert_eq!((first.uid.as_str(), &first.bytes[..]), ("a", &[1][..]));
        // While it is written.
        queue.put("a".into(), vec![2]);
        queue.put("a".into(), vec![3]);
        queue.put("b".into(), vec![9]);
        let second = tokio::time::timeout(LOOK, queue.next()).await;
        assert!(second.is_err(), "two at a time");
        // It failed, and is older than what waits.
        drop(first.writing);
        queue.put_back("a".into(), vec![1]);
        let next = queue.next().await;
        assert_eq!((next.uid.as_str(), &next.bytes[..]), ("a", &[3][..]));
        let forgotten = tokio::time::timeout(LOOK, queue.forget("b")).await;
        assert!(forgotten.is_err(), "waits for what is being written");
        drop(next);
        queue.forget("b").await;
        queue.empty().await;
    }
}
