//! When a node was heard of last, what it said of itself, its dismissal; and what is
//! known of it, against which is judged what it says.
//!
//! Filled by `session.rs`; read by `run.rs`.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Hub, Inner, Rejected, Reported, View};
use crate::budget::Budget;

/// To a node whose pods were written as not ready.
const HEARD_AGAIN: &str = "the node counted as lost: it is to tell again how its pods are";

impl Hub {
    /// What the node may write, in all of its sessions and before the first. Of a node
    /// that is not known, or not any more, nothing is kept: its budget is a full one.
    pub fn budget(&self, node: &str) -> Arc<Budget> {
        let mut inner = self.lock();
        let known = inner.views.get_mut(node).map(View::budget);
        known.unwrap_or_else(|| Arc::new(Budget::new(Instant::now())))
    }

    /// The session ended. False: another one has taken over before.
    pub fn disconnect(&self, node: &str, id: u64) -> bool {
        let mut inner = self.lock();
        let session = inner.views.get(node).and_then(|v| v.session.as_ref());
        let taken_over = session.is_some_and(|s| s.id != id);
        if !taken_over {
            inner.end_session(node);
            inner.forget_unused(node);
        }
        drop(inner);
        self.moved.notify_one();
        !taken_over
    }

    /// A node says this of itself in its session. Nothing changes if it is rejected.
    pub fn report(&self, node: &str, id: u64, reported: Reported) -> Result<(), Rejected> {
        let mut inner = self.lock();
        let session = inner.views.get(node).and_then(|v| v.session.as_ref());
        let session = session.filter(|s| s.id == id);
        let key = session.ok_or(Rejected::Replaced)?.key.clone();
        inner.take_addresses(node, &reported.status.addresses)?;
        if let Some(view) = inner.views.get_mut(node) {
            view.heard = Some(Instant::now());
            view.reported = Some((reported, key));
        }
        Ok(())
    }

    /// What the node said of itself last, and the hash of the key of the machine that it
    /// was then.
    pub fn reported(&self, node: &str) -> Option<(Reported, String)> {
        self.lock().views.get(node)?.reported.clone()
    }

    /// Does something that is quick, unless a newer session of the node has begun:
    /// that one's words come after it.
    pub fn in_session(&self, node: &str, id: u64, act: impl FnOnce()) {
        let inner = self.lock();
        let session = inner.views.get(node).and_then(|v| v.session.as_ref());
        if session.is_some_and(|s| s.id == id) {
            act();
        }
    }

    /// The node is removed from the cluster: its session ends with this reason.
    /// The pods that it has are taken back one by one, as they are deleted.
    /// With a `key`, the session of a machine with another key goes on: that one took
    /// the name over.
    pub fn dismiss(&self, node: &str, key: Option<&str>, reason: &str) {
        let mut inner = self.lock();
        let Some(view) = inner.views.get_mut(node) else {
            return;
        };
        view.config = None;
        let session = view.session.as_ref();
        if session.is_some_and(|s| key.is_some_and(|key| s.key != key)) {
            return;
        }
        if let Some(session) = inner.end_session(node) {
            session.mailbox.say_goodbye(reason.to_owned());
        }
        if let Some(view) = inner.views.get_mut(node) {
            view.heard = None;
            view.reported = None;
        }
        inner.forget_unused(node);
        drop(inner);
        self.moved.notify_one();
    }

    /// Ends the node's session; its agent opens the next one, and tells of all its pods there.
    pub fn reopen(&self, node: &str) {
        let inner = self.lock();
        let session = inner.views.get(node).and_then(|v| v.session.as_ref());
        if let Some(session) = session {
            session.mailbox.say_goodbye(HEARD_AGAIN.to_owned());
        }
    }

    /// Something came from the node. False: the session is not the node's any more.
    pub fn heard(&self, node: &str, id: u64) -> bool {
        let mut inner = self.lock();
        let Some(view) = inner.views.get_mut(node) else {
            return false;
        };
        view.heard = Some(Instant::now());
        view.session.as_ref().is_some_and(|s| s.id == id)
    }

    /// When something came from each of these nodes last; `None`: never since the start.
    pub fn last_heard<'a>(&self, nodes: impl Iterator<Item = &'a String>) -> Vec<Option<Instant>> {
        let inner = self.lock();
        let heard = |node: &String| inner.views.get(node).and_then(|v| v.heard);
        nodes.map(heard).collect()
    }

    /// Namespace and name of a pod that the node is to have; `None` for another's.
    pub fn pod(&self, node: &str, uid: &str) -> Option<(String, String)> {
        let inner = self.lock();
        let pod = inner.views.get(node)?.pods.get(uid)?;
        Some((pod.namespace.clone(), pod.name.clone()))
    }

    /// The address by which others reach a node.
    pub fn address(&self, node: &str) -> Option<String> {
        let inner = self.lock();
        inner.routes.get(node)?.address.clone()
    }
}

impl Inner {
    /// Takes out the view of a node that has no Node, no session and no pods.
    pub(super) fn forget_unused(&mut self, node: &str) {
        let unused = |v: &View| v.config.is_none() && v.session.is_none() && v.pods.is_empty();
        if self.views.get(node).is_some_and(unused) {
            self.views.remove(node);
        }
    }
}
