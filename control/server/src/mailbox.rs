//! What one session has still to send: keys of what changed, not messages, so
//! that memory is bounded and a slow node gets each thing as it is then.
//!
//! Filled and emptied by `hub.rs`; waited at by `session.rs`.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto::v1;
use tokio::sync::Notify;

/// One thing on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// Facts of the cluster and the node.
    Config,
    /// Route to the node of this name.
    Route(String),
    /// "namespace/name"
    Service(String),
    /// uid
    Pod(String),
}

/// What a session has to send. Wakes the session's writer.
#[derive(Default)]
pub struct Mailbox {
    waiting: Mutex<Waiting>,
    notify: Notify,
}

#[derive(Default)]
pub(crate) struct Waiting {
    pub(crate) snapshot: bool,
    pub(crate) items: BTreeSet<Item>,
    pub(crate) opens: VecDeque<v1::Open>,
    pub(crate) goodbye: Option<String>,
}

impl Mailbox {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something changed. Nobody is woken before the hub has all of a revision.
    pub(crate) fn post(&self, item: &Item) {
        self.lock().items.insert(item.clone());
    }

    /// Wakes the session if something of the hub's is to be sent.
    pub(crate) fn wake_if_due(&self) {
        let waiting = self.lock();
        let due = waiting.snapshot || !waiting.items.is_empty();
        drop(waiting);
        if due {
            self.wake();
        }
    }

    /// There may be something to send.
    pub(crate) fn wake(&self) {
        self.notify.notify_one();
    }

    /// What is to be sent now; things stay while the hub has only a part of them.
    pub(crate) fn take(&self, filling: bool) -> Waiting {
        let mut waiting = self.lock();
        if filling {
            return Waiting {
                opens: std::mem::take(&mut waiting.opens),
                goodbye: waiting.goodbye.take(),
                ..Waiting::default()
            };
        }
        std::mem::take(&mut *waiting)
    }

    /// Waits until there may be something to send.
    pub async fn wait(&self) {
        self.notify.notified().await;
    }
}
