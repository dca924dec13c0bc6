//! From the keys that wait for a node to messages: which things changed after a
//! revision, what they are now, and how a step of them is cut into parts.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use proto::limits::PART_BYTES;
use proto::v1::{self, change};

use super::Inner;
use super::message::encoded;
use crate::mailbox::{Item, Rest, Step};

/// Keys of one step that a session keeps. A step of more things, if they are most of what
/// there is, is a snapshot, which keeps none.
const KEYS: usize = 4096;

impl Inner {
    /// True when so many things are better sent as a snapshot.
    pub(super) fn is_too_much(&self, items: &BTreeSet<Item>) -> bool {
        items.len() > KEYS.max((self.services.len() + self.routes.len()) / 2)
    }

    /// What changed after a revision, removals included; and the config.
    pub(super) fn since(&self, node: &str, revision: u64) -> BTreeSet<Item> {
        let mut items = BTreeSet::new();
        let services = self.services.iter();
        let services = services.filter(|(_, s)| s.message.revision > revision);
        items.extend(services.map(|(name, _)| Item::Service(name.clone())));
        let routes = self.routes.iter();
        let routes = routes.filter(|(_, r)| r.message.revision > revision);
        items.extend(routes.map(|(name, _)| Item::Route(name.clone())));
        if let Some(view) = self.views.get(node) {
            // Always: it is made also of the control plane's settings and release, and those
            // change without a revision.
            if view.config.is_some() {
                items.insert(Item::Config);
            }
            let pods = view.pods.iter();
            let pods = pods.filter(|(_, p)| p.message.revision > revision);
            items.extend(pods.map(|(uid, _)| Item::Pod(uid.clone())));
        }
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

    /// The next part of a step: changes up to [`PART_BYTES`], at least one. The last
    /// part alone names the revision, so that a node whose stream breaks before it
    /// gets the step again. `None`: the step has nothing for this node.
    pub(super) fn part(&self, node: &str, step: &mut Step) -> Option<v1::Update> {
        let (mut changes, mut length) = (Vec::new(), 0);
        step.over = loop {
            let Some(item) = self.next(node, &step.rest) else {
                break true;
            };
            let picked = self.pick(node, &item, step.since());
            let longer: usize = picked.iter().map(Bytes::len).sum();
            if length > 0 && length + longer > PART_BYTES {
                break false;
            }
            length += longer;
            changes.extend(picked);
            step.touch(&item);
            step.rest.pass(item);
        };
        let first = !std::mem::replace(&mut step.begun, true);
        let snapshot = matches!(step.rest, Rest::All { .. });
        let replaced = std::mem::take(&mut step.replaced);
        if first && step.over && changes.is_empty() && replaced.is_empty() && !snapshot {
            return None;
        }
        step.touched.extend(&replaced);
        let (revision, digests, source) = if step.over {
            (step.revision, self.digests(node, step), self.source)
        } else {
            (0, Vec::new(), 0)
        };
        Some(v1::Update {
            cluster_id: String::new(),
            revision,
            snapshot_begin: snapshot && first,
            snapshot_end: snapshot && step.over,
            changes,
            replaced,
            digests,
            source,
        })
    }

    /// What is to be sent next. A snapshot has the things that are there when it comes to
    /// them: the next step removes those that are removed later, and has those that come.
    fn next(&self, node: &str, rest: &Rest) -> Option<Item> {
        let sent = match rest {
            Rest::Items(items) => return items.first().cloned(),
            Rest::All { sent } => sent.as_ref(),
        };
        let view = self.views.get(node);
        let config = || view?.config.as_ref().map(|_| Item::Config);
        let route = |sent| after(&self.routes, sent).map(Item::Route);
        let service = |sent| after(&self.services, sent).map(Item::Service);
        let pod = |sent| after(&view?.pods, sent).map(Item::Pod);
        match sent {
            None => config()
                .or_else(|| route(None))
                .or_else(|| service(None))
                .or_else(|| pod(None)),
            Some(Item::Config) => route(None).or_else(|| service(None)).or_else(|| pod(None)),
            Some(Item::Route(sent)) => route(Some(sent))
                .or_else(|| service(None))
                .or_else(|| pod(None)),
            Some(Item::Service(sent)) => service(Some(sent)).or_else(|| pod(None)),
            Some(Item::Pod(sent)) => pod(Some(sent)),
        }
    }

    /// An item as it is now, or its removal; of a service what changed after the revision
    /// `since`. Nothing: it is not for this node, or the node has it.
    fn pick(&self, node: &str, item: &Item, since: Option<u64>) -> Vec<Bytes> {
        let view = self.views.get(node);
        let (found, removed) = match item {
            Item::Config => {
                let config = view.and_then(|view| view.config.as_ref());
                return config
                    .map(|config| config.bytes.clone())
                    .into_iter()
                    .collect();
            }
            Item::Route(other) if **other == *node => return Vec::new(),
            Item::Route(other) => (
                self.routes.get(other).map(|route| &route.message),
                change::Change::RouteRemoved(other.to_string()),
            ),
            Item::Service(name) => match self.services.get(name) {
                Some(served) => return served.after(since),
                None => (None, change::Change::ServiceRemoved(name.to_string())),
            },
            Item::Pod(uid) => (
                view.and_then(|v| v.pods.get(uid)).map(|pod| &pod.message),
                change::Change::PodRemoved(uid.to_string()),
            ),
        };
        vec![found.map_or_else(|| encoded(removed).into(), |message| message.bytes.clone())]
    }
}

/// The key that follows one of a map, or the first.
fn after<T>(map: &BTreeMap<Arc<str>, T>, sent: Option<&Arc<str>>) -> Option<Arc<str>> {
    let from = sent.map_or(Bound::Unbounded, |sent| Bound::Excluded(&**sent));
    let (key, _) = map.range::<str, _>((from, Bound::Unbounded)).next()?;
    Some(key.clone())
}
