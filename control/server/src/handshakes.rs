//! How many TLS handshakes are made: at one time and by rate, from one source and all
//! together. A handshake costs a signature and is made for strangers.
//!
//! A connection that is too many is closed at once: clients try again later. Called by
//! `tls.rs`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::budget::Rate;
use crate::rates::{Rates, TooOften, source};

/// Of one source: a machine, or all of them behind one address.
const SOURCE: Rate = Rate {
    per_second: 200.0,
    burst: 2000.0,
};
/// Of all sources: all nodes of a large cluster may come at once, after a restart.
const TOTAL: Rate = Rate {
    per_second: 2000.0,
    burst: 20_000.0,
};
/// Under way at one time from one source.
const UNFINISHED: usize = 64;
/// Under way at one time.
const ALL_UNFINISHED: usize = 4096;

/// Counts handshakes.
#[derive(Clone)]
pub(crate) struct Handshakes {
    state: Arc<Mutex<State>>,
}

struct State {
    rates: Rates<IpAddr>,
    /// By source; none is 0.
    unfinished: HashMap<IpAddr, usize>,
    all_unfinished: usize,
}

/// A handshake that may be made; it is under way for as long as this is there.
pub(crate) struct Turn {
    handshakes: Handshakes,
    source: IpAddr,
}

impl Handshakes {
    pub(crate) fn new(now: Instant) -> Self {
        let state = State {
            rates: Rates::new(SOURCE, TOTAL, now),
            unfinished: HashMap::new(),
            all_unfinished: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: it is one too many.
    pub(crate) fn begin(&self, peer: IpAddr, now: Instant) -> Option<Turn> {
        let source = source(peer);
        let mut state = self.lock();
        let under_way = state.unfinished.get(&source).copied().unwrap_or_default();
        if under_way >= UNFINISHED || state.all_unfinished >= ALL_UNFINISHED {
            tracing::debug!(%source, "refused: too many TLS handshakes are under way");
            return None;
        }
        match state.rates.take(Some(source), now) {
            Ok(()) => {}
            Err(TooOften::Caller) => {
                tracing::warn!(%source, "refused: it connects too often");
                return None;
            }
            Err(TooOften::CallerAgain | TooOften::All) => return None,
        }
        state.unfinished.insert(source, under_way + 1);
        state.all_unfinished += 1;
        Some(Turn {
            handshakes: self.clone(),
            source,
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.handshakes.lock();
        state.all_unfinished -= 1;
        if let Some(count) = state.unfinished.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                state.unfinished.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn address(n: usize) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + u32::try_from(n).unwrap()).into())
    }

    #[test]
    fn one_source_has_so_many_under_way() {
        let now = Instant::now();
        let handshakes = Handshakes::new(now);
        let begin = |n| handshakes.begin(address(n), now);
        let mut turns: Vec<_> = (0..100).filter_map(|_| begin(1)).collect();
        assert_eq!(turns.len(), UNFINISHED);
        assert!(begin(2).is_some());
        turns.pop();
        assert!(begin(1).is_some(), "one was finished");
        drop(turns);
        let turns: Vec<_> = (0..2 * ALL_UNFINISHED).filter_map(begin).collect();
        assert_eq!(turns.len(), ALL_UNFINISHED);
        drop(turns);
        let state = handshakes.lock();
        assert_eq!((state.all_unfinished, state.unfinished.len()), (0, 0));
    }

    #[test]
    fn one_source_makes_so_many_a_second() {
        let start = Instant::now();
        let handshakes = Handshakes::new(start);
        for (at, expected) in [(start, 2000), (start + Duration::from_secs(1), 200)] {
            let done = (0..5000).filter(|_| handshakes.begin(address(1), at).is_some());
            assert_eq!(done.count(), expected);
        }
        assert!(handshakes.begin(address(2), start).is_some());
    }
}
