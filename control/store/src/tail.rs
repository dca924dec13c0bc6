//! The newest events, kept in memory for watchers that are up to date. Older ones
//! are on disk. Filled by `writer`, read by `history`.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};

use crate::event::Event;

/// Events kept in memory for watchers that are up to date, and their bytes.
const TAIL: usize = 8192;
const TAIL_BYTES: usize = 8 << 20;

/// The newest events, oldest first: complete above `floor`.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Arc<Event>>,
    /// Of all values that the events hold.
    bytes: usize,
    floor: u64,
    newest: u64,
}

fn weight(event: &Event) -> usize {
    event.value.len() + event.previous.as_ref().map_or(0, |entry| entry.value.len())
}

impl Tail {
    pub(crate) fn new(revision: u64) -> Self {
        let state = State {
            floor: revision,
            newest: revision,
            ..State::default()
        };
        Self {
            state: RwLock::new(state),
        }
    }

    /// Appends whole transactions, the first of which follows revision `before`;
    /// `newest` is the revision of the last. Where a commit failed and took place
    /// all the same, its events are on disk only: memory begins anew behind them.
    pub(crate) fn publish(&self, events: Vec<Event>, before: u64, newest: u64) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.newest != before {
            *state = State {
                floor: before,
                ..State::default()
            };
        }
        for event in events {
            state.bytes += weight(&event);
            state.events.push_back(Arc::new(event));
        }
        state.newest = newest;
        while state.events.len() > TAIL || state.bytes > TAIL_BYTES {
            let Some(oldest) = state.events.front().map(|event| event.revision) else {
                break;
            };
            state.floor = oldest;
            while state
                .events
                .front()
                .is_some_and(|event| event.revision == oldest)
            {
                let gone = state.events.pop_front();
                state.bytes -= gone.map_or(0, |event| weight(&event));
            }
        }
    }

    /// Events of the prefix above `after`, and the revision up to which that is
    /// all. `None`: older than what is in memory.
    pub(crate) fn after(&self, prefix: &str, after: u64) -> Option<(Vec<Event>, u64)> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if after < state.floor {
            return None;
        }
        let start = state
            .events
            .partition_point(|event| event.revision <= after);
        let events = state
            .events
            .range(start..)
            .filter(|event| event.key.starts_with(prefix))
            .map(|event| Event::clone(event))
            .collect();
        Some((events, state.newest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventKind;

    fn event(revision: u64) -> Event {
        Event {
            kind: EventKind::Put,
            key: "k".to_owned(),
            value: bytes::Bytes::new(),
            revision,
            previous: None,
        }
    }

    #[test]
    fn a_gap_is_left_to_the_disk() {
        let tail = Tail::new(4);
        tail.publish(vec![event(5)], 4, 5);
        assert_eq!(tail.after("k", 4), Some((vec![event(5)], 5)));
        // 6 was written by a commit that was said to have failed.
        tail.publish(vec![event(7)], 6, 7);
        assert_eq!(tail.after("k", 5), None);
        assert_eq!(tail.after("k", 6), Some((vec![event(7)], 7)));
    }
}
