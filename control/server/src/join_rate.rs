//! How often callers without a certificate may call: from one source, and all
//! together. All that they can do is join.
//!
//! Asked before a request is read, so that a flood costs neither decoding nor
//! signatures nor files. Who may join is `join.rs`. Called by `start.rs`.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;
use tonic::{Request, Status};

use crate::auth::{self, Caller};
use crate::budget::Rate;
use crate::rates::{Rates, TooOften, source};

/// Of one source: a machine, or all of them behind one address.
const SOURCE: Rate = Rate {
    per_second: 5.0,
    burst: 50.0,
};
/// Of all sources.
const TOTAL: Rate = Rate {
    per_second: 50.0,
    burst: 500.0,
};

/// Lets callers without a certificate pass, but not too often.
pub struct JoinRate {
    rates: Mutex<Rates<IpAddr>>,
}

impl Default for JoinRate {
    fn default() -> Self {
        Self {
            rates: Mutex::new(Rates::new(SOURCE, TOTAL, Instant::now())),
        }
    }
}

impl JoinRate {
    /// Lets a request pass: every one with a certificate.
    pub fn check(&self, request: Request<()>) -> Result<Request<()>, Status> {
        if auth::caller(&request) != Caller::Anonymous {
            return Ok(request);
        }
        let from = request.remote_addr().map(|a| source(a.ip()));
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        match rates.take(from, Instant::now()) {
            Ok(()) => return Ok(request),
            Err(TooOften::Caller) => {
                tracing::warn!(?from, "refused: it tries to join too often");
            }
            Err(TooOften::CallerAgain | TooOften::All) => {}
        }
        let message = "too many requests to join; please try again later";
        Err(Status::resource_exhausted(message))
    }
}
