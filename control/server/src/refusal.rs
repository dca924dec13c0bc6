//! Why a request is refused, and how that travels: a gRPC status with
//! Kubernetes' reason and the fields at fault in the trailer.
//!
//! [`status_of`] is the one place where errors become statuses.

use control_api::{Cause, Invalid};
use control_store::StoreError;
use proto::Message as _;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// Trailer with a `StatusDetail`.
pub const TRAILER: &str = "hydrofoil-status-bin";

/// A request that is not done.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no such kind.
    #[error("there is no kind {kind:?} in {group:?} {version:?}")]
    UnknownKind {
        /// As asked.
        group: String,
        /// As asked.
        version: String,
        /// As asked.
        kind: String,
    },
    /// There is no such object.
    #[error("{resource} {name:?} not found")]
    NotFound {
        /// "pods", "deployments.apps".
        resource: String,
        /// Name.
        name: String,
    },
    /// There is one already.
    #[error("{resource} {name:?} already exists")]
    AlreadyExists {
        /// "pods", "deployments.apps".
        resource: String,
        /// Name.
        name: String,
    },
    /// Another writer changed it, or owns the field.
    #[error("{message}")]
    Conflict {
        /// What happened.
        message: String,
        /// Fields that others own.
        causes: Vec<Cause>,
    },
    /// The object breaks a rule.
    #[error("{0}")]
    Invalid(#[from] Invalid),
    /// The request is not valid for any object.
    #[error("{0}")]
    BadRequest(String),
    /// Not allowed in the state that things are in.
    #[error("{0}")]
    Forbidden(String),
    /// The revision asked for is no longer kept.
    #[error("the revision asked for is too old: list again ({0})")]
    Expired(String),
    /// The revision asked for does not exist yet.
    #[error("Too large resource version: {asked}, current: {current}")]
    TooLarge {
        /// As asked.
        asked: u64,
        /// The store's newest.
        current: u64,
    },
    /// The node that would have to answer does not.
    #[error("{0}")]
    Unavailable(String),
    /// The store failed.
    #[error("the store failed: {0}")]
    Store(StoreError),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Conflict { .. } => Refusal::Conflict {
                message,
                causes: Vec::new(),
            },
            StoreError::Compacted { .. } => Refusal::Expired(message),
            StoreError::Future { asked, current } => Refusal::TooLarge { asked, current },
            StoreError::Malformed { .. }
            | StoreError::DiskFull { .. }
            | StoreError::Locked { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Io { .. }
            | StoreError::Unknown { .. }
            | StoreError::Closed => Refusal::Store(error),
        }
    }
}

impl Refusal {
    /// True when doing the same later may succeed.
    pub fn is_temporary(&self) -> bool {
        let is_of_disk = |error: &StoreError| {
            matches!(
                error,
                StoreError::DiskFull { .. } | StoreError::Io { .. } | StoreError::Unknown { .. }
            )
        };
        let is_of_store = matches!(self, Refusal::Store(error) if is_of_disk(error));
        self.is_conflict() || is_of_store || matches!(self, Refusal::Unavailable(_))
    }

    /// True when doing it again, on what is there now, may succeed.
    pub fn is_conflict(&self) -> bool {
        matches!(
            self,
            Refusal::Conflict { .. } | Refusal::AlreadyExists { .. }
        )
    }
}

/// The gRPC status of a refusal.
pub fn status_of(refusal: &Refusal) -> Status {
    let none: &[Cause] = &[];
    let (code, reason, causes) = match refusal {
        Refusal::UnknownKind { .. } => (Code::NotFound, "NotFound", none),
        Refusal::NotFound { .. } => (Code::NotFound, "NotFound", none),
        Refusal::AlreadyExists { .. } => (Code::AlreadyExists, "AlreadyExists", none),
        Refusal::Conflict { causes, .. } => (Code::Aborted, "Conflict", causes.as_slice()),
        Refusal::Invalid(invalid) => (Code::InvalidArgument, "Invalid", invalid.causes.as_slice()),
        Refusal::BadRequest(_) => (Code::InvalidArgument, "BadRequest", none),
        Refusal::Forbidden(_) => (Code::FailedPrecondition, "Forbidden", none),
        Refusal::Expired(_) => (Code::OutOfRange, "Expired", none),
        // To a client it is as a revision that is gone: list again.
        Refusal::TooLarge { .. } => (Code::OutOfRange, "Timeout", none),
        Refusal::Unavailable(_) => (Code::Unavailable, "ServiceUnavailable", none),
        Refusal::Store(_) => (Code::Internal, "InternalError", none),
    };
    if let Refusal::Store(error) = refusal {
        tracing::error!("the store failed: {error}");
    }
    let causes = causes.iter().map(|c| proto::v1::Cause {
        field: c.field.clone(),
        message: c.message.clone(),
    });
    let detail = proto::v1::StatusDetail {
        reason: reason.to_owned(),
        causes: causes.collect(),
    };
    let mut metadata = MetadataMap::new();
    metadata.insert_bin(TRAILER, MetadataValue::from_bytes(&detail.encode_to_vec()));
    Status::with_metadata(code, refusal.to_string(), metadata)
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        status_of(&refusal)
    }
}
