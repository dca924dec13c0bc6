//! What nodes have acknowledged, and who is told when all have a revision.
//!
//! An acknowledgement costs the same for any number of nodes: those that lack
//! the awaited revision are counted once. Filled by `session.rs`, asked by `drain.rs`.

use std::sync::MutexGuard;

use super::{Hub, Inner, Session};

impl Session {
    /// True when the node has this revision: it said so, or nothing of it was for it.
    fn has(&self, revision: u64, end: u64) -> bool {
        self.acked >= revision || (self.acked >= self.sent && self.mailbox.is_empty(end))
    }
}

impl Hub {
    /// All up to this revision is in force on the node.
    pub fn ack(&self, node: &str, id: u64, revision: u64) {
        let mut inner = self.lock();
        let had = inner.has_awaited(node);
        if let Some(view) = inner.views.get_mut(node)
            && let Some(session) = view.session.as_mut().filter(|s| s.id == id)
        {
            // It may be of another process, which was ahead of this one.
            let revision = revision.min(session.sent);
            session.acked = session.acked.max(revision);
            view.acked = view.acked.max(revision);
        }
        self.look_at(inner, node, had);
    }

    /// True when every connected node has this revision. Else [`Hub::moved`] is
    /// notified when that may have become true.
    pub fn all_have(&self, revision: u64) -> bool {
        let mut inner = self.lock();
        let sessions = inner.views.values().filter_map(|v| v.session.as_ref());
        let end = inner.shared.end();
        let behind = sessions.filter(|s| !s.has(revision, end)).count();
        inner.awaited = (behind > 0).then_some((revision, behind));
        behind == 0
    }

    /// A node may have the awaited revision now; `had`: it had it before.
    pub(super) fn look_at(&self, mut inner: MutexGuard<'_, Inner>, node: &str, had: bool) {
        let has = inner.has_awaited(node);
        let Some((_, behind)) = &mut inner.awaited else {
            return;
        };
        if !had && has {
            *behind -= 1;
            if *behind == 0 {
                inner.awaited = None;
                drop(inner);
                self.moved.notify_one();
            }
        }
    }
}

impl Inner {
    /// Whether a node has the revision that is waited for; also without a session.
    pub(super) fn has_awaited(&self, node: &str) -> bool {
        let session = self.views.get(node).and_then(|v| v.session.as_ref());
        let (Some((revision, _)), Some(session)) = (self.awaited, session) else {
            return true;
        };
        session.has(revision, self.shared.end())
    }
}
