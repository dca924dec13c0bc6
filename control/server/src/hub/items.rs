//! From the keys that wait for a node to messages: which things changed after a
//! revision, what they are now, and how a step of them is cut into parts.

use std::collections::BTreeSet;
use std::sync::Arc;

use proto::limits::PART_BYTES;
use proto::v1::{self, change};

use super::Inner;
use crate::mailbox::{Item, Step};

impl Inner {
    pub(super) fn all(&self, node: &str) -> BTreeSet<Item> {
        self.after(node, None)
    }

    /// What changed after a revision, removals included; and the config.
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
            // Always: it is made also of the control plane's settings and release, and those
            // change without a revision.
            if view.config.is_some() {
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
    pub(super) fn part(&self, node: &str, step: &mut Step) -> Option<Part> {
        let (mut picked, mut bytes) = (Vec::new(), 0);
        while let Some(item) = step.items.pop_first() {
            let Some((length, change)) = self.pick(node, &item) else {
                continue;
            };
            if bytes > 0 && bytes + length > PART_BYTES {
                step.items.insert(item);
                break;
            }
            picked.push(change);
            bytes += length;
        }
        let last = step.items.is_empty();
        let first = !std::mem::replace(&mut step.begun, true);
        if first && last && picked.is_empty() && !step.snapshot {
            return None;
        }
        Some(Part {
            revision: if last { step.revision } else { 0 },
            snapshot_begin: step.snapshot && first,
            snapshot_end: step.snapshot && last,
            picked,
        })
    }

    /// An item as it is now, or its removal; and its length in bytes, about.
    fn pick(&self, node: &str, item: &Item) -> Option<(usize, Picked)> {
        let view = self.views.get(node);
        let picked = match item {
            Item::Config => {
                let at = view.and_then(|v| v.config.as_ref())?;
                (at.length, Picked::Config(at.value.clone()))
            }
            Item::Route(other) if other == node => return None,
            Item::Route(other) => match self.routes.get(other) {
                Some(at) => (at.length, Picked::Route(at.value.clone())),
                None => removed(other, change::Change::RouteRemoved),
            },
            Item::Service(name) => match self.services.get(name) {
                Some(at) => (at.length, Picked::Service(at.value.clone())),
                None => removed(name, change::Change::ServiceRemoved),
            },
            Item::Pod(uid) => match view.and_then(|v| v.pods.get(uid)) {
                Some(at) => (at.length, Picked::Pod(at.value.clone())),
                None => removed(uid, change::Change::PodRemoved),
            },
        };
        Some(picked)
    }
}

fn removed(name: &str, change: fn(String) -> change::Change) -> (usize, Picked) {
    (name.len(), Picked::Removed(change, name.to_owned()))
}

/// A change that was picked under the hub's lock: it is copied into a message after it.
enum Picked {
    Config(Arc<v1::ClusterConfig>),
    Route(Arc<v1::NodeRoute>),
    Service(Arc<v1::Service>),
    Pod(Arc<v1::PodSpec>),
    Removed(fn(String) -> change::Change, String),
}

impl Picked {
    fn into_change(self) -> change::Change {
        match self {
            Picked::Config(config) => change::Change::Config(Arc::unwrap_or_clone(config)),
            Picked::Route(route) => change::Change::Route(Arc::unwrap_or_clone(route)),
            Picked::Service(service) => change::Change::Service(Arc::unwrap_or_clone(service)),
            Picked::Pod(pod) => change::Change::Pod(Arc::unwrap_or_clone(pod)),
            Picked::Removed(change, name) => change(name),
        }
    }
}

/// A part of a step, before it is a message.
pub(super) struct Part {
    /// 0: more parts follow.
    pub(super) revision: u64,
    snapshot_begin: bool,
    snapshot_end: bool,
    picked: Vec<Picked>,
}

impl Part {
    /// The message; not to be made while the hub is locked.
    pub(super) fn into_update(self, cluster_id: &str) -> v1::Update {
        let changes = self.picked.into_iter().map(|picked| v1::Change {
            change: Some(picked.into_change()),
        });
        v1::Update {
            cluster_id: cluster_id.to_owned(),
            revision: self.revision,
            snapshot_begin: self.snapshot_begin,
            snapshot_end: self.snapshot_end,
            changes: changes.collect(),
        }
    }
}
