//! How often callers without a certificate may call: from one source, and all
//! together. All that they can do is join.
//!
//! Asked before a request is read, so that a flood costs neither decoding nor
//! signatures nor files. Who may join is `join.rs`. Called by `start.rs`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;
use tonic::{Request, Status};

use crate::auth::{self, Caller};
use crate::budget::{Bucket, Rate};

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
/// Sources that are told apart at one time. For more of them only [`TOTAL`] holds.
const SOURCES: usize = 4096;

struct Source {
    bucket: Bucket,
    /// It was said already that it calls too often.
    told: bool,
}

struct State {
    sources: HashMap<IpAddr, Source>,
    total: Bucket,
}

/// Lets callers without a certificate pass, but not too often.
pub struct JoinRate {
    state: Mutex<State>,
}

impl Default for JoinRate {
    fn default() -> Self {
        let state = State {
            sources: HashMap::new(),
            total: Bucket::new(TOTAL, Instant::now()),
        };
        Self {
            state: Mutex::new(state),
        }
    }
}

/// What a source is told apart by: an IPv6 host has all of its /64.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
    }
}

impl State {
    fn allows(&mut self, from: Option<IpAddr>, now: Instant) -> bool {
        if let Some(from) = from.map(source) {
            if self.sources.len() >= SOURCES && !self.sources.contains_key(&from) {
                self.sources.retain(|_, s| !s.bucket.is_full(now));
            }
            if self.sources.len() < SOURCES || self.sources.contains_key(&from) {
                let new = || Source {
                    bucket: Bucket::new(SOURCE, now),
                    told: false,
                };
                let known = self.sources.entry(from).or_insert_with(new);
                if !known.bucket.try_take(now) {
                    if !std::mem::replace(&mut known.told, true) {
                        tracing::warn!(%from, "refused: it tries to join too often");
                    }
                    return false;
                }
            }
        }
        self.total.try_take(now)
    }
}

impl JoinRate {
    /// Lets a request pass: every one with a certificate.
    pub fn check(&self, request: Request<()>) -> Result<Request<()>, Status> {
        if auth::caller(&request) != Caller::Anonymous {
            return Ok(request);
        }
        let from = request.remote_addr().map(|a| a.ip());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.allows(from, Instant::now()) {
            Ok(request)
        } else {
            let message = "too many requests to join; please try again later";
            Err(Status::resource_exhausted(message))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn state(now: Instant) -> State {
        State {
            sources: HashMap::new(),
            total: Bucket::new(TOTAL, now),
        }
    }

    fn allowed(state: &mut State, from: &str, tries: usize, now: Instant) -> usize {
        let from: IpAddr = from.parse().unwrap();
        let tries = (0..tries).filter(|_| state.allows(Some(from), now));
        tries.count()
    }

    #[test]
    fn one_source_leaves_the_others_their_share() {
        let start = Instant::now();
        let mut state = state(start);
        let after = |seconds| start + Duration::from_secs(seconds);
        // (source, tries, seconds after the start, let through)
        let rows = [
            ("192.0.2.1", 1000, 0, 50),
            ("192.0.2.2", 10, 0, 10),
            ("192.0.2.1", 10, 1, 5),
            // One host by other addresses of its own.
            ("2001:db8::1", 50, 1, 50),
            ("2001:db8::2", 10, 1, 0),
            ("2001:db8:0:1::1", 10, 1, 10),
            ("::ffff:192.0.2.1", 10, 1, 0),
            ("192.0.2.1", 1000, 3600, 50),
        ];
        for (from, tries, at, expected) in rows {
            let got = allowed(&mut state, from, tries, after(at));
            assert_eq!(got, expected, "{from} after {at} s");
        }
    }

    #[test]
    fn all_sources_together_have_a_limit_and_a_bound_in_memory() {
        let start = Instant::now();
        let mut state = state(start);
        let address = |n: u32| IpAddr::V4((0x0a00_0000 + n).into());
        let many = 3 * u32::try_from(SOURCES).unwrap();
        let passed = (0..many).filter(|n| state.allows(Some(address(*n)), start));
        assert_eq!(passed.count(), 500);
        assert_eq!(state.sources.len(), SOURCES);
        // Those that are silent are forgotten.
        let later = start + Duration::from_secs(60);
        assert!(state.allows(Some(address(many)), later));
        assert_eq!(state.sources.len(), 1);
    }
}
