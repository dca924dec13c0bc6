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
    pub(crate) notify: Notify,
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

    pub(crate) fn post(&self, item: &Item) {
        self.lock().items.insert(item.clone());
        self.notify.notify_one();
    }

    /// Waits until there may be something to send.
    pub async fn wait(&self) {
        self.notify.notified().await;
    }
}
