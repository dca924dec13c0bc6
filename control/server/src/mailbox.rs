//! What one session has still to send: keys of what changed, not messages, so
//! that memory is bounded and a slow node gets each thing as it is then. What changed
//! for all nodes is in the hub once (`hub/shared.rs`).
//!
//! Filled and emptied by `hub.rs`; waited at by `session.rs`.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::v1;
use tokio::sync::Notify;

/// One thing on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Item {
    /// Facts of the cluster and the node.
    Config,
    /// Route to the node of this name.
    Route(Arc<str>),
    /// "namespace/name". Before pods: environments of containers name the services of their
    /// namespace.
    Service(Arc<str>),
    /// uid
    Pod(Arc<str>),
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
    /// What is for this node alone, and what it missed before it connected.
    pub(crate) items: BTreeSet<Item>,
    /// How far it has read what changed for all nodes.
    pub(crate) seen: u64,
    /// The node takes changes of services, not only whole ones.
    pub(crate) takes_changes: bool,
    /// The node keeps digests of buckets.
    pub(crate) takes_digests: bool,
    /// Buckets that it has otherwise, until the first step.
    pub(crate) replaced: Vec<u32>,
    /// All up to this revision was sent, or the node had it of this process when it
    /// connected.
    pub(crate) named: Option<u64>,
    /// The step that is being sent, part by part.
    pub(crate) step: Option<Step>,
    pub(crate) opens: VecDeque<v1::Open>,
    pub(crate) goodbye: Option<String>,
}

/// Everything from one revision to the next, or a snapshot.
pub(crate) struct Step {
    /// Named by the last part.
    pub(crate) revision: u64,
    /// The revision that the node has before it, if it takes changes of services.
    pub(crate) since: Option<u64>,
    /// Number of the last change of a message before the step began.
    pub(crate) changes: u64,
    /// The node keeps digests of buckets.
    pub(crate) takes_digests: bool,
    /// Buckets of which all is sent; until the first part.
    pub(crate) replaced: Vec<u32>,
    /// Buckets of what was sent, unless it is a snapshot.
    pub(crate) touched: BTreeSet<u32>,
    /// A part was made already.
    pub(crate) begun: bool,
    /// Its last part was made.
    pub(crate) over: bool,
    pub(crate) rest: Rest,
}

/// What of a step is not sent yet.
pub(crate) enum Rest {
    Items(BTreeSet<Item>),
    /// Of a snapshot, in the order of [`Item`]: all after this one. No set of keys, as
    /// thousands of sessions may send snapshots at once.
    All {
        sent: Option<Item>,
    },
}

impl Step {
    /// The revision from which on services may be sent as changes; `None`: they are sent
    /// whole.
    pub(crate) fn since(&self) -> Option<u64> {
        match self.rest {
            Rest::Items(_) => self.since,
            Rest::All { .. } => None,
        }
    }
}

impl Rest {
    /// The first item is sent.
    pub(crate) fn pass(&mut self, item: Item) {
        match self {
            Self::Items(items) => drop(items.remove(&item)),
            Self::All { sent } => *sent = Some(item),
        }
    }
}

impl Waiting {
    /// True when something of the hub's is to be sent. `end`: what changed for all
    /// nodes goes so far.
    pub(crate) fn is_due(&self, end: u64) -> bool {
        let own = self.snapshot || !self.items.is_empty() || !self.replaced.is_empty();
        own || self.seen < end
    }
}

impl Mailbox {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a change. The session is woken once the hub has all of a revision.
    pub(crate) fn post(&self, item: &Item) {
        self.lock().items.insert(item.clone());
    }

    /// Wakes the session if something of the hub's is to be sent.
    pub(crate) fn wake_if_due(&self, end: u64) {
        let due = self.lock().is_due(end);
        if due {
            self.wake();
        }
    }

    /// True when nothing of the hub's is to be sent.
    pub(crate) fn is_empty(&self, end: u64) -> bool {
        let waiting = self.lock();
        !waiting.is_due(end) && waiting.step.is_none()
    }

    /// Ends the stream, after this word.
    pub(crate) fn say_goodbye(&self, reason: String) {
        self.lock().goodbye = Some(reason);
        self.wake();
    }

    /// There may be something to send.
    pub(crate) fn wake(&self) {
        self.notify.notify_one();
    }

    /// Waits until there may be something to send.
    pub async fn wait(&self) {
        self.notify.notified().await;
    }
}
