//! The contract of a store: revisions, entries, transactions, events, errors.
//! Not an implementation; see `embedded`. Called by `control-server`, and by
//! `suite`, which says the same as the comments here in tests.

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::watch::Watch;

/// One key with its value, as it was at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    /// Revision of the transaction that made the key (again, after a delete).
    pub created: u64,
    /// Revision of the transaction that wrote this value: the object's
    /// `metadata.resourceVersion`.
    pub revision: u64,
}

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

/// What must be true of a key for a transaction to take place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Whatever is there.
    Any,
    /// The key does not exist.
    Absent,
    /// The key exists, and was last written at this revision.
    Revision(u64),
}

/// One write of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Put {
        key: String,
        value: Bytes,
        condition: Condition,
    },
    /// Deleting a key that is absent is a conflict, unless the condition is `Any`.
    Delete { key: String, condition: Condition },
    /// Writes nothing; the transaction takes place only if this holds.
    Check { key: String, condition: Condition },
}

impl Change {
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } | Self::Check { key, .. } => key,
        }
    }
    pub fn condition(&self) -> Condition {
        match self {
            Self::Put { condition, .. }
            | Self::Delete { condition, .. }
            | Self::Check { condition, .. } => *condition,
        }
    }
}

/// Changes that take place together, under one new revision, or not at all.
/// A key may occur once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub changes: Vec<Change>,
}

impl Txn {
    pub fn put(
        mut self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        condition: Condition,
    ) -> Self {
        self.changes.push(Change::Put {
            key: key.into(),
            value: value.into(),
            condition,
        });
        self
    }
    pub fn delete(mut self, key: impl Into<String>, condition: Condition) -> Self {
        self.changes.push(Change::Delete {
            key: key.into(),
            condition,
        });
        self
    }
    pub fn check(mut self, key: impl Into<String>, condition: Condition) -> Self {
        self.changes.push(Change::Check {
            key: key.into(),
            condition,
        });
        self
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// One key changed. Events of one transaction bear the same revision and follow
/// each other in key order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    pub key: String,
    /// The new value; empty for a delete.
    pub value: Bytes,
    /// Revision of the transaction.
    pub revision: u64,
    /// The entry before; `None` if this made the key.
    pub previous: Option<Entry>,
}

/// Reasons of a refused or failed call. Nothing was written by a refused one;
/// after [`StoreError::Unknown`], `Io` and `DiskFull` the disk alone knows, and a
/// watcher sees it if it was.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A condition did not hold. `actual`: revision of what is there.
    #[error("{key}: the condition {expected:?} does not hold, the key {}", held(.actual))]
    Conflict {
        key: String,
        expected: Condition,
        actual: Option<u64>,
    },
    /// The revision asked for is older than the history that is kept.
    #[error("revision {asked} is compacted, the oldest one to be had is {oldest}")]
    Compacted { asked: u64, oldest: u64 },
    /// The revision asked for does not exist yet.
    #[error("revision {asked} is in the future, the store is at {current}")]
    Future { asked: u64, current: u64 },
    /// A transaction that names a key twice, or none.
    #[error("malformed transaction: {reason}")]
    Malformed { reason: String },
    #[error("the disk of {path} is full")]
    DiskFull { path: String },
    /// Another process has the store open.
    #[error("{path} is in use by another process")]
    Locked { path: String },
    /// The file is not a store of ours, or is damaged.
    #[error("{path} is damaged: {reason}")]
    Corrupt { path: String, reason: String },
    #[error("{path}: {reason}")]
    Io { path: String, reason: String },
    /// The connection was lost in the middle of a write: it may have taken place.
    #[error("the outcome of the write is not known: {reason}")]
    Unknown { reason: String },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

fn held(actual: &Option<u64>) -> String {
    match actual {
        Some(revision) => format!("was written at revision {revision}"),
        None => "does not exist".to_owned(),
    }
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
