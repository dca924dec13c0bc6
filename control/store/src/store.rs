//! The contract of a store: what can be asked of it, and what it answers.
//! Not an implementation; see `embedded`. Called by `control-server`, and by
//! `suite`, which says the same as the comments here in tests.

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::error::StoreError;
use crate::event::Entry;
use crate::txn::{Condition, Txn};
use crate::watch::Watch;

/// What a key held when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub entry: Option<Entry>,
    /// The store's revision at the moment of reading.
    pub revision: u64,
}

/// A consistent list of the keys that begin with `prefix`, in key order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListRequest {
    pub prefix: String,
    /// Entries in a page; 0: all.
    pub limit: usize,
    /// Begin behind this key: the `next` of the page before.
    pub after: Option<String>,
    /// As of this revision (the `revision` of the first page); `None`: now.
    pub revision: Option<u64>,
}

impl ListRequest {
    /// Everything under `prefix`, now.
    pub fn all(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            ..Self::default()
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    pub entries: Vec<Entry>,
    /// The revision that the list is of; watch from here.
    pub revision: u64,
    /// Present when there is more: the `after` of the next page.
    pub next: Option<String>,
}

/// A store of versioned keys. There is one global revision, which goes up by one
/// with each transaction that wrote something; what was acknowledged survives
/// any crash. All calls may be made at once from many tasks.
pub trait Store: Send + Sync + 'static {
    /// Identity of the contents: made with an empty store, the same ever after.
    fn id(&self) -> String;

    /// The newest revision.
    fn revision(&self) -> BoxFuture<'_, Result<u64, StoreError>>;

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Found, StoreError>>;

    /// Errors: `Compacted` or `Future` for a revision that is not to be had.
    fn list(&self, request: ListRequest) -> BoxFuture<'_, Result<Listing, StoreError>>;

    /// All or nothing; the revision of the write (the current one, if there were
    /// only checks). Durable when it returns. Errors: `Conflict` names the first
    /// key whose condition did not hold.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// Events of the keys that begin with `prefix`, with revisions above `after`,
    /// in order and without a gap. A watcher that is slow never slows writers; one
    /// that falls behind the history gets `Compacted` and lists again.
    fn watch(&self, prefix: String, after: u64) -> BoxFuture<'_, Result<Watch, StoreError>>;

    /// Forgets the history up to and including `revision`. Entries stay.
    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<(), StoreError>>;

    /// One write; the new revision.
    fn put(
        &self,
        key: String,
        value: Bytes,
        condition: Condition,
    ) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.txn(Txn::default().put(key, value, condition))
    }

    /// One delete; the revision of the deletion.
    fn delete(&self, key: String, condition: Condition) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.txn(Txn::default().delete(key, condition))
    }
}
