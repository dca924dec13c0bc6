//! From the keys that wait for a node to messages: which things changed after a
//! revision, what they are now, and how a step of them is cut into parts.

use std::collections::BTreeSet;

use proto::Message as _;
use proto::limits::{PART_BYTES, UPDATE_BYTES};
use proto::v1::{self, change};

use super::Inner;
use crate::mailbox::{Item, Step};

impl Inner {
    pub(super) fn all(&self, node: &str) -> BTreeSet<Item> {
        self.after(node, None)
    }

    /// What changed after a revision, removals included.
    pub(super) fn since(&self, node: &str, revision: u64) -> BTreeSet<Item> {
        let mut items = self.after(node, Some(revision));
        for (at, whose, item) in self.removed.iter().rev() {
            if *at <= revision {
                break;
            }
            if whose.as_deref().is_none_or(|n| n == node) {
                items.insert(item.clone());
            }
        }
        items
    }

    fn after(&self, node: &str, revision: Option<u64>) -> BTreeSet<Item> {
        let newer = |at: u64| revision.is_none_or(|revision| at > revision);
        let mut items = BTreeSet::new();
        let services = self.services.iter().filter(|(_, at)| newer(at.revision));
        items.extend(services.map(|(name, _)| Item::Service(name.clone())));
        let routes = self.routes.iter().filter(|(_, at)| newer(at.revision));
        items.extend(routes.map(|(name, _)| Item::Route(name.clone())));
        if let Some(view) = self.views.get(node) {
            if view.config.as_ref().is_some_and(|at| newer(at.revision)) {
                items.insert(Item::Config);
            }
            let pods = view.pods.iter().filter(|(_, at)| newer(at.revision));
            items.extend(pods.map(|(uid, _)| Item::Pod(uid.clone())));
        }
        items
    }

    /// The next part of a step: changes up to [`PART_BYTES`], at least one. The last
    /// part alone names the revision, so that a node whose stream breaks before it
    /// gets the step again. `None`: the step has nothing for this node.
    pub(super) fn part(&self, node: &str, step: &mut Step, cluster_id: &str) -> Option<v1::Update> {
        let (mut changes, mut bytes) = (Vec::new(), 0);
        while let Some(item) = step.items.pop_first() {
            let Some(change) = self.change(node, &item) else {
                continue;
            };
            let length = change.encoded_len();
            if length > UPDATE_BYTES - PART_BYTES {
                tracing::error!(node, ?item, length, "too large for a node: not sent");
                continue;
            }
            if bytes > 0 && bytes + length > PART_BYTES {
                step.items.insert(item);
                break;
            }
            changes.push(change);
            bytes += length;
        }
        let last = step.items.is_empty();
        let first = !std::mem::replace(&mut step.begun, true);
        if first && last && changes.is_empty() && !step.snapshot {
            return None;
        }
        Some(v1::Update {
            cluster_id: cluster_id.to_owned(),
            revision: if last { step.revision } else { 0 },
            snapshot_begin: step.snapshot && first,
            snapshot_end: step.snapshot && last,
            changes,
        })
    }

    /// An item as it is now, or its removal.
    fn change(&self, node: &str, item: &Item) -> Option<v1::Change> {
        let view = self.views.get(node);
        let change = match item {
            Item::Config => {
                let config = view.and_then(|v| v.config.as_ref())?;
                change::Change::Config(v1::ClusterConfig::clone(&config.value))
            }
            Item::Route(other) if other == node => return None,
            Item::Route(other) => match self.routes.get(other) {
                Some(at) => change::Change::Route(v1::NodeRoute::clone(&at.value)),
                None => change::Change::RouteRemoved(other.clone()),
            },
            Item::Service(name) => match self.services.get(name) {
                Some(at) => change::Change::Service(v1::Service::clone(&at.value)),
                None => change::Change::ServiceRemoved(name.clone()),
            },
            Item::Pod(uid) => match view.and_then(|v| v.pods.get(uid)) {
                Some(at) => change::Change::Pod(v1::PodSpec::clone(&at.value)),
                None => change::Change::PodRemoved(uid.clone()),
            },
        };
        Some(v1::Change {
            change: Some(change),
        })
    }
}
