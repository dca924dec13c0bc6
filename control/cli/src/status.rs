//! What a gRPC status of the control plane says besides its message. Called by
//! `client`.

use proto::Message as _;
use proto::v1;
use tonic::{Code, Status};

/// Trailer with a `StatusDetail`.
const TRAILER: &str = "hydrofoil-status-bin";

/// Reason and causes; the reason is that of the code where the server gives none.
pub(crate) fn detail(status: &Status) -> v1::StatusDetail {
    let trailer = status.metadata().get_bin(TRAILER);
    let mut detail = trailer
        .and_then(|value| value.to_bytes().ok())
        .and_then(|bytes| v1::StatusDetail::decode(bytes).ok())
        .unwrap_or_default();
    if detail.reason.is_empty() {
        detail.reason = reason_of(status.code()).to_string();
    }
    detail
}

/// Kubernetes' word for a code, where the server gives none.
fn reason_of(code: Code) -> &'static str {
    match code {
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::InvalidArgument => "Invalid",
        Code::FailedPrecondition | Code::Aborted => "Conflict",
        Code::PermissionDenied => "Forbidden",
        Code::Unauthenticated => "Unauthorized",
        Code::Unimplemented => "MethodNotAllowed",
        Code::ResourceExhausted => "TooManyRequests",
        Code::Unavailable => "ServiceUnavailable",
        Code::DeadlineExceeded | Code::Cancelled => "Timeout",
        Code::OutOfRange => "Expired",
        Code::Internal | Code::DataLoss | Code::Unknown | Code::Ok => "InternalError",
    }
}
