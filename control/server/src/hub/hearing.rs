//! When a node was heard of last, what it said of itself, its dismissal; and what is
//! known of it, against which is judged what it says.
//!
//! Filled by `session.rs`; read by `run.rs`.

use std::sync::Arc;

use proto::v1;
use tokio::time::Instant;

use super::{At, Hub};
use crate::budget::Budget;

impl Hub {
    /// What the node may write, in all of its sessions and before the first.
    pub fn budget(&self, node: &str) -> Arc<Budget> {
        self.lock()
            .views
            .entry(node.to_owned())
            .or_default()
            .budget()
    }

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
            session.mailbox.say_goodbye(reason.to_owned());
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

    /// Namespace and name of a pod that the node is to have; `None` for another's.
    pub fn pod(&self, node: &str, uid: &str) -> Option<(String, String)> {
        let inner = self.lock();
        let pod = &inner.views.get(node)?.pods.get(uid)?.value;
        Some((pod.namespace.clone(), pod.name.clone()))
    }

    /// The address by which others reach a node.
    pub fn address(&self, node: &str) -> Option<String> {
        let inner = self.lock();
        inner.routes.get(node)?.value.node_ips.first().cloned()
    }

    /// Another node that has one of these addresses and is connected.
    pub fn node_at(&self, addresses: &[String], but: &str) -> Option<String> {
        let inner = self.lock();
        let known = inner.routes.get(but).map(|at| at.value.node_ips.as_slice());
        if known == Some(addresses) {
            return None;
        }
        let has =
            |at: &At<v1::NodeRoute>| at.value.node_ips.iter().any(|ip| addresses.contains(ip));
        let connected = |node: &str| inner.views.get(node).is_some_and(|v| v.session.is_some());
        let found = inner
            .routes
            .iter()
            .find(|(node, at)| *node != but && has(at) && connected(node));
        found.map(|(node, _)| node.clone())
    }
}
