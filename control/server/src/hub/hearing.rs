//! When a node was heard of last, what it said of itself, and its dismissal.
//!
//! Filled by `session.rs`; read by `run.rs`.

use proto::v1;
use tokio::time::Instant;

use super::Hub;

impl Hub {
    /// The node was heard of, and says this of itself.
    pub fn report(&self, node: &str, status: v1::NodeStatus, version: &str) {
        let mut inner = self.lock();
        let view = inner.views.entry(node.to_owned()).or_default();
        view.heard = Some(Instant::now());
        view.reported = Some((status, version.to_owned()));
    }

    /// What the node said of itself last, and the version of its agent.
    pub fn reported(&self, node: &str) -> Option<(v1::NodeStatus, String)> {
        self.lock().views.get(node)?.reported.clone()
    }

    /// The node is removed from the cluster: its session ends with this reason.
    /// The pods that it has are taken back one by one, as they are deleted.
    pub fn dismiss(&self, node: &str, reason: &str) {
        let mut inner = self.lock();
        let Some(view) = inner.views.get_mut(node) else {
            return;
        };
        view.config = None;
        view.heard = None;
        view.reported = None;
        if let Some(session) = view.session.take() {
            session.mailbox.lock().goodbye = Some(reason.to_owned());
            session.mailbox.wake();
        }
        if view.pods.is_empty() {
            inner.views.remove(node);
        }
        drop(inner);
        self.moved.notify_one();
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

    /// When something came from the node last; `None`: never since the start.
    pub fn last_heard(&self, node: &str) -> Option<Instant> {
        self.lock().views.get(node).and_then(|v| v.heard)
    }
}
