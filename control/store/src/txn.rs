//! Transactions: writes with conditions, all or nothing. Not how they are carried
//! out; see `writer`.

use bytes::Bytes;

/// What must be true of a key for a transaction to take place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Any revision, or none.
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
