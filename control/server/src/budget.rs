//! Rates: how much one node may write, where who has used it up waits and nothing is
//! lost; and the token bucket that it is made of.
//!
//! A node's budget is kept with its view in `hub.rs`, used by `session.rs` and
//! `report.rs`. Strangers have buckets too: `join_rate.rs`.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Writes a second in the long run, and at once (kubelet's `kubeAPIQPS` and
/// `kubeAPIBurst`).
const WRITES: Rate = Rate {
    per_second: 50.0,
    burst: 100.0,
};

/// Events a second in the long run, and at once: as an event is kept for an hour, a node
/// has at most 5,100 in the store.
const EVENTS: Rate = Rate {
    per_second: 1.0,
    burst: 1500.0,
};

/// How often something may be done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// In the long run.
    pub(crate) per_second: f64,
    /// At once, after a long silence.
    pub(crate) burst: f64,
}

/// A token bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    /// What may be done at `at`; below zero: what waits already.
    left: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            left: rate.burst,
            at: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.rate.per_second).min(self.rate.burst);
        self.at = now;
    }

    /// Takes one; how long to wait before it is done.
    pub(crate) fn take(&mut self, now: Instant) -> Duration {
        self.fill(now);
        self.left -= 1.0;
        Duration::from_secs_f64((-self.left / self.rate.per_second).max(0.0))
    }

    /// Takes one if that is possible without waiting.
    pub(crate) fn try_take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let has = self.left >= 1.0;
        if has {
            self.left -= 1.0;
        }
        has
    }

    /// True when enough time has passed for it to be full again.
    pub(crate) fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.left >= self.rate.burst
    }
}

/// What one node may write and tell.
#[derive(Debug)]
pub struct Budget {
    bucket: Mutex<Bucket>,
    /// Events, and what is not in force: about all objects together.
    events: Mutex<Bucket>,
}

impl Budget {
    /// A full one.
    pub fn new(now: Instant) -> Self {
        Self {
            bucket: Mutex::new(Bucket::new(WRITES, now)),
            events: Mutex::new(Bucket::new(EVENTS, now)),
        }
    }

    /// True when one more event may be told; else it is lost, as it would be by a queue that
    /// is full.
    pub fn may_tell(&self) -> bool {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.try_take(Instant::now())
    }

    /// Events that may be told now.
    #[cfg(test)]
    pub(crate) fn events_left(&self) -> f64 {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.fill(Instant::now());
        events.left
    }

    /// Waits until one more write may be made.
    pub async fn take(&self) {
        let now = Instant::now();
        let wait = {
            let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.take(now)
        };
        if !wait.is_zero() {
            tokio::time::sleep_until(now + wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_then_each_waits_its_turn() {
        let start = Instant::now();
        let mut state = Bucket::new(WRITES, start);
        for _ in 0..100 {
            assert_eq!(state.take(start), Duration::ZERO);
        }
        assert_eq!(state.take(start), Duration::from_millis(20));
        assert_eq!(state.take(start), Duration::from_millis(40));
        // A second later 48 are free.
        let later = start + Duration::from_secs(1);
        for _ in 0..48 {
            assert_eq!(state.take(later), Duration::ZERO);
        }
        assert_eq!(state.take(later), Duration::from_millis(20));
        // After a long silence there is no more than one burst.
        let long = later + Duration::from_secs(3600);
        for _ in 0..100 {
            assert_eq!(state.take(long), Duration::ZERO);
        }
        assert!(state.take(long) > Duration::ZERO);
    }
}
