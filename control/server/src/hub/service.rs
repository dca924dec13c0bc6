//! A service as nodes are to have it, and the last changes of its backends and endpoints: a
//! node that has an earlier revision of it is sent those instead.
//!
//! Kept by `put_service` of `hub.rs`; read by `items.rs` for each session.

use std::collections::VecDeque;

use bytes::Bytes;
use proto::Message as _;
use proto::service_change;
use proto::v1::{self, change};

use super::message::{Content, Message, encoded};

/// A service, and what led to it.
pub(super) struct Served {
    /// All of it.
    pub(super) message: Message,
    /// Encoded changes and their revisions, oldest first; together not longer than the
    /// message.
    changes: VecDeque<(u64, Bytes)>,
    /// Of the changes, in bytes.
    length: usize,
    /// A node that has this revision needs only the later ones of the changes.
    since: u64,
}

impl Served {
    /// A service that nodes do not have yet.
    pub(super) fn new(service: v1::Service, content: Content, bucket: u32, stamp: u64) -> Self {
        Self {
            message: Message::new(change::Change::Service(service), content, bucket, stamp),
            changes: VecDeque::new(),
            length: 0,
            since: stamp,
        }
    }

    /// Takes in what the service is now.
    pub(super) fn put(&mut self, service: v1::Service, content: Content, stamp: u64) {
        let bucket = self.message.bucket;
        let old = v1::Change::decode(self.message.bytes.clone()).ok();
        let changed = match old.and_then(|old| old.change) {
            Some(change::Change::Service(old)) => service_change::between(&old, &service),
            _ => None,
        };
        let Some(changed) = changed else {
            *self = Self::new(service, content, bucket, stamp);
            return;
        };
        self.message = Message::new(change::Change::Service(service), content, bucket, stamp);
        let changed = Bytes::from(encoded(change::Change::ServiceChange(changed)));
        self.length += changed.len();
        self.changes.push_back((stamp, changed));
        while self.length > self.message.bytes.len() {
            let Some((stamp, dropped)) = self.changes.pop_front() else {
                break;
            };
            self.length -= dropped.len();
            self.since = stamp;
        }
    }

    /// What a node needs that has all up to the revision `since`. Applied in this order it
    /// gives the service also where the node has some of it already. `None`: the node has
    /// nothing, or takes whole services only.
    pub(super) fn after(&self, since: Option<u64>) -> Vec<Bytes> {
        let Some(since) = since.filter(|since| *since >= self.since) else {
            return vec![self.message.bytes.clone()];
        };
        let later = self.changes.iter().filter(|(stamp, _)| *stamp > since);
        later.map(|(_, change)| change.clone()).collect()
    }
}
