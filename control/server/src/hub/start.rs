//! What each node was to have when the control plane started.
//!
//! A node that comes back at that revision missed no change of the store. But another
//! release, or other settings, may make other messages of the same objects: its digest
//! tells.

use std::collections::HashMap;

use proto::v1;

use super::message::Content;
use super::{Inner, View};

/// The revision at which the hub was filled first, and digests of that revision.
pub(super) struct Start {
    revision: u64,
    /// `None`: not all of it is here yet.
    digests: Option<Digests>,
}

struct Digests {
    /// Of a node that is not named.
    others: Content,
    nodes: HashMap<String, Content>,
}

impl Start {
    /// Of a hub that has nothing at this revision.
    pub(super) fn empty(revision: u64) -> Self {
        let digests = Some(Digests {
            others: Content::default(),
            nodes: HashMap::new(),
        });
        Self { revision, digests }
    }

    /// Of one that is to be filled: see [`Inner::note_start`].
    pub(super) fn new(revision: u64) -> Self {
        let digests = None;
        Self { revision, digests }
    }

    /// False when the node has other messages of this revision than it would get now. At
    /// any later revision it has messages of this process.
    pub(super) fn agrees(&self, node: &str, hello: &v1::Hello) -> bool {
        if hello.revision != self.revision {
            return true;
        }
        let Some(Digests { others, nodes }) = &self.digests else {
            return false;
        };
        hello.digest == nodes.get(node).unwrap_or(others).to_bytes()
    }
}

impl Inner {
    /// Notes the digests once, when the hub is filled for the first time.
    pub(super) fn note_start(&mut self) {
        if self.start.digests.is_some() {
            return;
        }
        let digest = |node: &String| (node.clone(), self.digest(node));
        self.start.digests = Some(Digests {
            others: self.content,
            nodes: self.views.keys().map(digest).collect(),
        });
    }

    /// Of all that the node is to have, but for its config, which each new session gets,
    /// and for stopping, which is not part of the store.
    pub(super) fn digest(&self, node: &str) -> Content {
        let mut digest = self.content;
        let own = self.routes.get(node).map(|route| route.message.content);
        digest.remove(own.unwrap_or_default());
        let pods = |view: &View| view.content;
        digest.add(self.views.get(node).map(pods).unwrap_or_default());
        digest
    }
}
