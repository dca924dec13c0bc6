//! Objects as the store has them, JSON without a resourceVersion, and as all others see
//! them, with it.
//!
//! No rules (control-api has them) and no writing (`objects.rs`).

use bytes::Bytes;
use control_api::kind::Kind;
use control_api::meta;
use control_plan::claim::{Claim, ClaimWrite};
use control_store::{Condition, Entry, StoreError, Txn};
use serde_json::Value;

use crate::refusal::Refusal;

/// An object's JSON is at most this long (etcd's limit, which Kubernetes has).
const MOST_BYTES: usize = 1536 << 10;

/// An object, and the revision of its last change.
#[derive(Clone, Debug)]
pub struct Stored {
    /// With its resourceVersion.
    pub value: Value,
    /// The same as a number.
    pub revision: u64,
}

impl Stored {
    /// An object that was just written at this revision.
    pub(crate) fn new(mut value: Value, revision: u64) -> Self {
        meta::set_resource_version(&mut value, revision);
        Self { value, revision }
    }

    /// What would be written over what is of this revision (0: nothing).
    pub(crate) fn dry_run(value: Value, revision: u64) -> Self {
        Self { value, revision }
    }
}

pub(crate) fn with_claims(mut txn: Txn, claims: &[ClaimWrite]) -> Txn {
    for claim in claims {
        let condition = match claim.revision {
            0 => Condition::Absent,
            revision => Condition::Revision(revision),
        };
        txn = if claim.forgets() {
            txn.delete(claim.key.to_string(), condition)
        } else {
            txn.put(
                claim.key.to_string(),
                claim.owner.clone().into_bytes(),
                condition,
            )
        };
    }
    txn
}

pub(crate) fn namespaces() -> Result<&'static Kind, Refusal> {
    known("", "v1", "Namespace")
}

/// The kind of this name.
pub fn known(group: &str, version: &str, kind: &str) -> Result<&'static Kind, Refusal> {
    control_api::find(group, version, kind).ok_or_else(|| Refusal::UnknownKind {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
    })
}

pub(crate) fn not_found(kind: &Kind, name: &str) -> Refusal {
    Refusal::NotFound {
        resource: kind.resource(),
        name: name.to_owned(),
    }
}

pub(crate) fn exists(kind: &Kind, value: &Value) -> Refusal {
    Refusal::AlreadyExists {
        resource: kind.resource(),
        name: meta::name(value).to_owned(),
    }
}

/// An entry of the store as an object with its resourceVersion.
pub fn read(entry: &Entry) -> Result<Stored, Refusal> {
    Ok(Stored {
        value: decode(&entry.key, &entry.value, entry.revision)?,
        revision: entry.revision,
    })
}

/// Bytes of the store as an object with its resourceVersion.
pub fn decode(key: &str, bytes: &[u8], revision: u64) -> Result<Value, Refusal> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(|error| {
        let reason = error.to_string();
        Refusal::Store(StoreError::Corrupt {
            path: key.to_owned(),
            reason,
        })
    })?;
    meta::set_resource_version(&mut value, revision);
    Ok(value)
}

/// A claim's record.
pub fn read_claim(entry: &Entry) -> Claim {
    Claim {
        owner: String::from_utf8_lossy(&entry.value).into_owned(),
        revision: entry.revision,
    }
}

/// As it is stored: without resourceVersion.
pub(crate) fn encode(value: &Value) -> Result<Bytes, Refusal> {
    let bytes = if meta::resource_version(value).is_empty() {
        serde_json::to_vec(value)
    } else {
        let mut copy = value.clone();
        meta::clear_resource_version(&mut copy);
        serde_json::to_vec(&copy)
    };
    bytes.map(Bytes::from).map_err(unencodable)
}

/// Refuses an object whose JSON has too many bytes.
pub(crate) fn check_size(bytes: usize) -> Result<(), Refusal> {
    if bytes <= MOST_BYTES {
        return Ok(());
    }
    Err(Refusal::BadRequest(format!(
        "the object has {bytes} bytes, at most {MOST_BYTES} are allowed"
    )))
}

/// [`encode`], for an object of at most [`MOST_BYTES`]. One that is larger already
/// (`old`) may stay so, but not grow: finalizers can still be taken off it.
pub(crate) fn encode_bounded(value: &Value, old: Option<&Value>) -> Result<Bytes, Refusal> {
    let bytes = encode(value)?;
    let Err(refusal) = check_size(bytes.len()) else {
        return Ok(bytes);
    };
    let before = old.map(encode).transpose()?;
    before
        .filter(|before| bytes.len() <= before.len())
        .map(|_| bytes)
        .ok_or(refusal)
}

/// A value as one of k8s-openapi's types.
pub fn typed<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, Refusal> {
    serde::Deserialize::deserialize(value)
        .map_err(|error: serde_json::Error| Refusal::BadRequest(error.to_string()))
}

pub(crate) fn unencodable(error: serde_json::Error) -> Refusal {
    Refusal::BadRequest(format!("the object cannot be encoded: {error}"))
}
