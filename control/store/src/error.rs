//! Why a call of the store was refused or failed.

use crate::txn::Condition;

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
    /// The file is not a Hydrofoil store, or is damaged.
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
