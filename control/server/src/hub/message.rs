//! What is sent of one thing: encoded once, and shared by all sessions that send it.
//! Also its hash, of which digests are made (`digest.rs`).

use bytes::Bytes;
use proto::Message as _;
use proto::v1::{self, change};
use sha2::{Digest as _, Sha256};

/// A change, and the revision at which it became what it is.
pub(super) struct Message {
    /// An encoded `Change`.
    pub(super) bytes: Bytes,
    /// Hash of the change without its generation.
    pub(super) content: Content,
    /// See `proto::bucket`; of facts of the cluster, which are in none, it is not used.
    pub(super) bucket: u32,
    pub(super) revision: u64,
}

/// Hash of a message, or the sum of such hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Content(u128);

impl Content {
    /// Of a change whose generation is 0: generations differ between two starts of the
    /// control plane.
    pub(super) fn of(change: change::Change) -> Self {
        let hash = Sha256::digest(encoded(change));
        let (first, _) = hash.split_at(16);
        let first = first
            .iter()
            .fold(0, |sum, byte| sum << 8 | u128::from(*byte));
        Self(first)
    }

    pub(super) fn add(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }

    pub(super) fn remove(&mut self, other: Self) {
        self.0 = self.0.wrapping_sub(other.0);
    }

    /// As a node is told it.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        self.0.to_be_bytes().to_vec()
    }
}

/// An encoded `Change`.
pub(super) fn encoded(change: change::Change) -> Vec<u8> {
    let change = Some(change);
    v1::Change { change }.encode_to_vec()
}

impl Message {
    pub(super) fn new(
        change: change::Change,
        content: Content,
        bucket: u32,
        revision: u64,
    ) -> Self {
        Self {
            bytes: encoded(change).into(),
            content,
            bucket,
            revision,
        }
    }
}

/// A pod for one node, and what the control plane asks of it.
pub(super) struct Pod {
    pub(super) message: Message,
    pub(super) namespace: String,
    pub(super) name: String,
    /// Not part of the content: it is decided again after each start.
    pub(super) stop_grace_seconds: Option<i64>,
}

/// The route to a node's pods.
pub(super) struct Route {
    pub(super) message: Message,
    /// The node's first address.
    pub(super) address: Option<String>,
}

/// A pod that is to be sent, before it is known whether it is news.
pub(super) struct Described {
    spec: v1::PodSpec,
    pub(super) content: Content,
    stop_grace_seconds: Option<i64>,
}

fn content(pod: v1::PodSpec) -> Content {
    Content::of(change::Change::Pod(v1::PodSpec {
        generation: 0,
        stop_grace_seconds: None,
        ..pod
    }))
}

impl Described {
    pub(super) fn new(spec: v1::PodSpec) -> Self {
        Self {
            content: content(spec.clone()),
            stop_grace_seconds: spec.stop_grace_seconds,
            spec,
        }
    }

    /// True when this is what the node has or is being sent already.
    pub(super) fn is(&self, old: &Pod) -> bool {
        self.content == old.message.content && self.stop_grace_seconds == old.stop_grace_seconds
    }

    /// With the generation that it has from now on.
    pub(super) fn into_pod(self, generation: u64, bucket: u32, revision: u64) -> Pod {
        let Self {
            mut spec,
            content,
            stop_grace_seconds,
        } = self;
        spec.generation = generation;
        Pod {
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            stop_grace_seconds,
            message: Message::new(change::Change::Pod(spec), content, bucket, revision),
        }
    }
}
