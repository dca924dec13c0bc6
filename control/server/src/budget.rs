//! How much one node may write: a token bucket. Who has used it up waits; nothing is
//! lost. Kept with the node's view in `hub.rs`, used by `session.rs` and `report.rs`.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Writes a second in the long run (kubelet's `kubeAPIQPS`).
const RATE: f64 = 50.0;
/// Writes at once (kubelet's `kubeAPIBurst`).
const BURST: f64 = 100.0;

/// Writes of one node.
#[derive(Debug)]
pub struct Budget {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Writes that may be made at `at`; below zero: those that wait already.
    left: f64,
    at: Instant,
}

impl State {
    /// Takes one write; how long to wait before it is made.
    fn take(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * RATE).min(BURST) - 1.0;
        self.at = now;
        Duration::from_secs_f64((-self.left / RATE).max(0.0))
    }
}

impl Budget {
    /// A full one.
    pub fn new(now: Instant) -> Self {
        let state = State {
            left: BURST,
            at: now,
        };
        Self {
            state: Mutex::new(state),
        }
    }

    /// Waits until one more write may be made.
    pub async fn take(&self) {
        let now = Instant::now();
        let wait = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.take(now)
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
        let mut state = State {
            left: BURST,
            at: start,
        };
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
