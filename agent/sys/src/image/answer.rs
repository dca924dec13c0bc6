//! A registry's answers, and its token server's: how much of one is read, and what a refusal
//! means.
//!
//! They may be hostile: of what they send nothing is read without a bound on its size, and
//! no transfer goes on without progress. Callers are `distribution.rs` and `token.rs`.

use std::time::Duration;

use proto::error::chain;
use reqwest::{Response, StatusCode};
use serde::Deserialize;

use super::json::JsonProblem;

/// A request for a document or a token, from the connect to the last byte.
pub(super) const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long the text of a refusal is waited for.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(10);
/// So much of the text of a refusal is read.
const REFUSAL_BYTES: usize = 16 << 10;
/// So many characters of it are shown.
const REFUSAL_CHARS: usize = 512;

/// The slowest transfer of a blob that is not given up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// So many bytes arrive ...
    pub(super) bytes: u64,
    /// ... in each such time, if so many are left.
    pub(super) within: Duration,
}

/// Far below the share that one of many pulls has of a slow line. A byte a minute is no
/// transfer.
pub(super) const PACE: Pace = Pace {
    bytes: 16 << 10,
    within: Duration::from_secs(60),
};

/// Why a registry's answer is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegistryError {
    #[error("not found")]
    NotFound,
    #[error("{}", refusal(status, message))]
    Unauthorized { status: StatusCode, message: String },
    #[error("{}", refusal(status, message))]
    Status { status: StatusCode, message: String },
    #[error("{what} of more than {most} bytes")]
    TooLarge { what: &'static str, most: usize },
    #[error("fewer than {} bytes arrived in {} seconds", pace.bytes, pace.within.as_secs_f32())]
    TooSlow { pace: Pace },
    #[error("token server {realm:?}: {source}")]
    Token { realm: String, source: JsonProblem },
    #[error("token server {realm:?}: its answer has no token")]
    NoToken { realm: String },
    #[error("token server {realm:?} is not an https address, as the registry is")]
    InsecureRealm { realm: String },
    #[error("{}", chain(.0))]
    Request(#[from] reqwest::Error),
}

fn refusal(status: &StatusCode, message: &str) -> String {
    if message.is_empty() {
        status.to_string()
    } else {
        format!("{status}: {message}")
    }
}

/// The errors of a refusal (distribution-spec, "Error Codes").
#[derive(Debug, Default, Deserialize)]
struct Refusal {
    #[serde(default)]
    errors: Vec<Reason>,
}

#[derive(Debug, Deserialize)]
struct Reason {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// A blob on its way.
pub(super) struct Blob {
    response: Response,
    pace: Pace,
}

impl Blob {
    /// Of an answer whose body is a blob.
    pub(super) fn new(response: Response, pace: Pace) -> Self {
        Self { response, pace }
    }

    /// Bytes in the order in which they arrive, at least `least` unless it ends before; empty
    /// at its end. The time between two calls is not the registry's.
    ///
    /// # Errors
    /// [`RegistryError::TooSlow`], [`RegistryError::Request`].
    pub(super) async fn next(&mut self, least: usize) -> Result<Vec<u8>, RegistryError> {
        let mut piece = Vec::new();
        while piece.len() < least {
            let enough = (piece.len() as u64).saturating_add(self.pace.bytes);
            let enough = usize::try_from(enough).unwrap_or(usize::MAX).min(least);
            let part = read(&mut self.response, &mut piece, enough);
            let part = tokio::time::timeout(self.pace.within, part).await;
            let ended = part.map_err(|_elapsed| RegistryError::TooSlow { pace: self.pace })??;
            if ended {
                break;
            }
        }
        Ok(piece)
    }
}

/// Reads until `into` has `enough` bytes; true at the end.
async fn read(
    response: &mut Response,
    into: &mut Vec<u8>,
    enough: usize,
) -> Result<bool, RegistryError> {
    while into.len() < enough {
        let Some(chunk) = response.chunk().await? else {
            return Ok(true);
        };
        into.extend_from_slice(&chunk);
    }
    Ok(false)
}

/// The body, which must not have more than `most` bytes. The request has a time limit.
///
/// # Errors
/// [`RegistryError::TooLarge`], [`RegistryError::Request`].
pub(super) async fn whole(
    mut response: Response,
    what: &'static str,
    most: usize,
) -> Result<Vec<u8>, RegistryError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > most {
            return Err(RegistryError::TooLarge { what, most });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The answer, unless it is a refusal.
///
/// # Errors
/// [`RegistryError::NotFound`], [`RegistryError::Unauthorized`], [`RegistryError::Status`].
pub(super) async fn success(response: Response) -> Result<Response, RegistryError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = beginning(response).await;
    // Other text is not shown: it may come from any server that the registry leads to.
    let refusal: Refusal = serde_json::from_slice(&text).unwrap_or_default();
    let has = |codes: &[&str]| {
        let mut reasons = refusal.errors.iter();
        reasons.any(|reason| codes.contains(&reason.code.as_str()))
    };
    let absent = [
        "MANIFEST_UNKNOWN",
        "NAME_UNKNOWN",
        "NOT_FOUND",
        "BLOB_UNKNOWN",
        "MANIFEST_BLOB_UNKNOWN",
    ];
    if status == StatusCode::NOT_FOUND || has(&absent) {
        return Err(RegistryError::NotFound);
    }
    let message = shown(&refusal);
    let refused = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status);
    if refused || has(&["UNAUTHORIZED", "DENIED"]) {
        Err(RegistryError::Unauthorized { status, message })
    } else {
        Err(RegistryError::Status { status, message })
    }
}

/// What came of a refusal's text in time.
async fn beginning(mut response: Response) -> Vec<u8> {
    let mut text = Vec::new();
    let read = async {
        while text.len() < REFUSAL_BYTES {
            let Ok(Some(chunk)) = response.chunk().await else {
                break;
            };
            text.extend_from_slice(&chunk);
        }
    };
    let in_time = tokio::time::timeout(REFUSAL_TIMEOUT, read).await;
    if in_time.is_err() {
        tracing::debug!("the text of a registry's refusal does not end");
    }
    text
}

fn shown(refusal: &Refusal) -> String {
    let reasons = refusal.errors.iter().map(|reason| {
        let parts = [reason.code.as_str(), reason.message.as_str()];
        let parts = parts.iter().filter(|part| !part.is_empty());
        parts.copied().collect::<Vec<_>>().join(": ")
    });
    let text = reasons.collect::<Vec<_>>().join("; ");
    let plain = text.chars().filter(|c| !c.is_control());
    plain.take(REFUSAL_CHARS).collect()
}
