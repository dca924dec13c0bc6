//! Digests of what nodes have, bucket by bucket (`proto::bucket`), and what a node gets
//! first that says them in its hello.
//!
//! A revision is known to one process alone: another one, after a restart or of another
//! release, may make other messages of the same objects. Digests tell which. A digest is the
//! sum of the hashes of a bucket's messages, and follows each change at the same cost for
//! any number of them. Called by `hub.rs`, `put.rs` and `items.rs`.

use std::collections::{BTreeMap, BTreeSet};

use proto::bucket;
use proto::v1;

use super::Inner;
use super::message::Content;
use crate::mailbox::{Item, Rest, Step};

/// One bucket.
#[derive(Clone, Copy, Default)]
struct Bucket {
    content: Content,
    /// Number of the last change of any of its messages.
    changed: u64,
}

/// Buckets that have or had messages.
#[derive(Default)]
pub(super) struct Buckets(BTreeMap<u32, Bucket>);

impl Buckets {
    /// A message was `old` and is `new` since the change with this number; the default
    /// stands for none.
    pub(super) fn change(&mut self, bucket: u32, old: Content, new: Content, number: u64) {
        let bucket = self.0.entry(bucket).or_default();
        bucket.content.add(new);
        bucket.content.remove(old);
        bucket.changed = number;
    }

    fn get(&self, bucket: u32) -> Bucket {
        self.0.get(&bucket).copied().unwrap_or_default()
    }
}

/// The bucket of an item; `None` for facts of the cluster.
fn bucket_of(item: &Item) -> Option<u32> {
    match item {
        Item::Config => None,
        Item::Route(node) => Some(bucket::of_route(node)),
        Item::Service(name) => Some(bucket::of_service(name)),
        Item::Pod(uid) => Some(bucket::of_pod(uid)),
    }
}

/// What a node gets first that is not sent everything.
pub(super) struct Resume {
    pub(super) items: BTreeSet<Item>,
    /// Buckets of which all is among the items.
    pub(super) replaced: Vec<u32>,
    /// The revision that the node has, if it is this process's.
    pub(super) named: Option<u64>,
}

impl Inner {
    /// What a node needs that says what it has; `None`: everything.
    pub(super) fn resume(&self, node: &str, hello: &v1::Hello) -> Option<Resume> {
        let known = self.has_named(node, hello)
            && hello.revision >= self.floor
            && hello.revision <= self.revision;
        let mut resume = if known {
            Resume {
                items: self.since(node, hello.revision),
                replaced: Vec::new(),
                named: Some(hello.revision),
            }
        } else {
            let replaced = self.differing(node, hello)?;
            Resume {
                items: self.of_buckets(node, &replaced),
                replaced,
                named: None,
            }
        };
        resume.items.extend(self.stopping(node));
        (!self.is_too_much(&resume.items)).then_some(resume)
    }

    /// True when this process named the revision that the node has.
    fn has_named(&self, node: &str, hello: &v1::Hello) -> bool {
        // An agent of an earlier release does not say whose revision it is.
        let acked = || self.views.get(node).map_or(0, |view| view.acked);
        let is_unsaid = hello.source == 0 && hello.buckets == 0;
        hello.source == self.source
            || is_unsaid && hello.revision > self.began && hello.revision <= acked()
    }

    /// Buckets that the node has otherwise than it would get them now. `None`: all of them,
    /// or it does not say.
    fn differing(&self, node: &str, hello: &v1::Hello) -> Option<Vec<u32>> {
        if hello.buckets != bucket::COUNT {
            return None;
        }
        let said = hello.digests.iter();
        let said: BTreeMap<u32, &[u8]> = said.map(|d| (d.bucket, d.digest.as_slice())).collect();
        let nothing = Content::default().to_bytes();
        let differs = |bucket: &u32| {
            let said = said.get(bucket).copied().unwrap_or(&nothing);
            said != self.bucket(node, *bucket).content.to_bytes()
        };
        let differing: Vec<u32> = (0..bucket::COUNT).filter(differs).collect();
        (differing.len() < usize::try_from(bucket::COUNT).ok()?).then_some(differing)
    }

    /// All things of these buckets; and the config.
    fn of_buckets(&self, node: &str, buckets: &[u32]) -> BTreeSet<Item> {
        let view = self.views.get(node);
        let config = view.and_then(|view| view.config.as_ref());
        let mut items = BTreeSet::from_iter(config.map(|_| Item::Config));
        if buckets.is_empty() {
            return items;
        }
        let is_in = |bucket: u32| buckets.binary_search(&bucket).is_ok();
        let routes = self.routes.iter().filter(|(_, r)| is_in(r.message.bucket));
        items.extend(routes.map(|(name, _)| Item::Route(name.clone())));
        let services = self.services.iter();
        let services = services.filter(|(_, s)| is_in(s.message.bucket));
        items.extend(services.map(|(name, _)| Item::Service(name.clone())));
        let pods = view.into_iter().flat_map(|view| &view.pods);
        let pods = pods.filter(|(_, p)| is_in(p.message.bucket));
        items.extend(pods.map(|(uid, _)| Item::Pod(uid.clone())));
        items
    }

    /// Pods that are to stop: digests do not say so, and the node's record of the pod may be
    /// older than the revision that it names.
    fn stopping(&self, node: &str) -> impl Iterator<Item = Item> {
        let pods = self.views.get(node).into_iter().flat_map(|view| &view.pods);
        let pods = pods.filter(|(_, pod)| pod.stop_grace_seconds.is_some());
        pods.map(|(uid, _)| Item::Pod(uid.clone()))
    }

    /// A bucket as the node is to have it; without its config and stopping (see
    /// [`Self::stopping`]), which each new session gets and which are not part of the store.
    fn bucket(&self, node: &str, number: u32) -> Bucket {
        if bucket::has_pods(number) {
            let view = self.views.get(node);
            return view.map_or_else(Bucket::default, |view| view.buckets.get(number));
        }
        let mut bucket = self.buckets.get(number);
        let own = self.routes.get(node).map(|route| &route.message);
        if let Some(own) = own.filter(|own| own.bucket == number) {
            bucket.content.remove(own.content);
        }
        bucket
    }

    /// Digests for the last part of a step. What changed after the step began may have been
    /// sent or not: of its bucket none is told, until the next step.
    pub(super) fn digests(&self, node: &str, step: &Step) -> Vec<v1::BucketDigest> {
        if !step.takes_digests {
            return Vec::new();
        }
        let told = |number: u32| {
            let bucket = self.bucket(node, number);
            (bucket.changed <= step.changes).then_some((number, bucket.content))
        };
        let digest = |(bucket, content): (u32, Content)| v1::BucketDigest {
            bucket,
            digest: content.to_bytes(),
        };
        if let Rest::All { .. } = step.rest {
            let all = (0..bucket::COUNT).filter_map(told);
            let all = all.filter(|(_, content)| *content != Content::default());
            return all.map(digest).collect();
        }
        let touched = step.touched.iter().copied();
        touched.filter_map(told).map(digest).collect()
    }
}

impl Step {
    /// A part of the step has this.
    pub(super) fn touch(&mut self, item: &Item) {
        if self.takes_digests && matches!(self.rest, Rest::Items(_)) {
            self.touched.extend(bucket_of(item));
        }
    }
}
