//! Entries of the store, and the events that their changes make. Not how they are
//! delivered; see `watch`.

use bytes::Bytes;

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
