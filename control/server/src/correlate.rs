//! Which events are stored: many about one object that differ in their message only
//! are combined into one, and one source may tell so much about one object and no
//! more. Kubernetes' event correlator, with its numbers.
//!
//! Pure: the time is an argument. Bounded by what is told about at one time. Called
//! by `record.rs`.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::said::Said;

/// Events of one group with different messages before they are combined.
const SIMILAR: usize = 10;
/// How long an event counts as similar to the ones before.
const SIMILAR_FOR: Duration = Duration::from_secs(600);
/// Events of one source about one object at once.
const BURST: f64 = 25.0;
/// Another one may be told after this.
const REFILL: Duration = Duration::from_secs(300);
/// Objects and groups that are remembered.
const REMEMBERED: usize = 4096;
/// What a combined event's message begins with.
const COMBINED: &str = "(combined from similar events): ";

/// What was told lately.
#[derive(Debug, Default)]
pub struct Correlator {
    groups: HashMap<u64, Group>,
    sources: HashMap<u64, Source>,
}

#[derive(Debug)]
struct Group {
    messages: BTreeSet<u64>,
    last: Instant,
}

#[derive(Debug)]
struct Source {
    left: f64,
    last: Instant,
}

impl Correlator {
    /// True when the event is to be stored; it may be combined with others.
    pub fn admit(&mut self, said: &mut Said, now: Instant) -> bool {
        self.combine(said, now);
        let source = self.sources.entry(said.about()).or_insert(Source {
            left: BURST,
            last: now,
        });
        let passed = now.saturating_duration_since(source.last);
        let refilled = passed.as_secs_f64() / REFILL.as_secs_f64();
        source.left = (source.left + refilled).min(BURST);
        source.last = now;
        let admitted = source.left >= 1.0;
        if admitted {
            source.left -= 1.0;
        }
        self.forget(now);
        admitted
    }

    fn combine(&mut self, said: &mut Said, now: Instant) {
        let group = self.groups.entry(said.group()).or_insert(Group {
            messages: BTreeSet::new(),
            last: now,
        });
        if now.saturating_duration_since(group.last) > SIMILAR_FOR {
            group.messages.clear();
        }
        group.last = now;
        group.messages.insert(said.message_hash());
        if group.messages.len() > SIMILAR {
            group.messages.pop_first();
            said.combined = true;
            said.message.insert_str(0, COMBINED);
        }
    }

    /// Forgets those that are over; when all are of now, the older half.
    fn forget(&mut self, now: Instant) {
        let full = BURST * REFILL.as_secs_f64();
        if self.sources.len() > REMEMBERED {
            self.sources.retain(|_, source| {
                now.saturating_duration_since(source.last).as_secs_f64() < full
            });
            halve(&mut self.sources, |source| source.last);
        }
        if self.groups.len() > REMEMBERED {
            self.groups
                .retain(|_, group| now.saturating_duration_since(group.last) <= SIMILAR_FOR);
            halve(&mut self.groups, |group| group.last);
        }
    }
}

/// Removes the older half of what is more than is remembered.
fn halve<T>(entries: &mut HashMap<u64, T>, last: impl Fn(&T) -> Instant) {
    if entries.len() <= REMEMBERED {
        return;
    }
    let mut times: Vec<Instant> = entries.values().map(&last).collect();
    times.sort_unstable();
    let middle = times[times.len() / 2];
    entries.retain(|_, entry| last(entry) > middle);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(name: &str, reason: &str, message: &str) -> Said {
        Said {
            kind: "Pod".to_owned(),
            name: name.to_owned(),
            uid: name.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            component: "foil-agent".to_owned(),
            host: "n1".to_owned(),
            ..Said::default()
        }
    }

    #[test]
    fn similar_events_become_one() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let mut names = BTreeSet::new();
        for n in 0..20 {
            let mut event = said("p", "Unhealthy", &format!("probe failed: {n}"));
            assert!(correlator.admit(&mut event, now));
            assert_eq!(event.combined, n >= 10, "{n}");
            names.insert(event.event_name());
        }
        assert_eq!(names.len(), 11);
        // Others of the pod are not combined with them, nor those of later.
        let mut other = said("p", "Pulled", "image");
        assert!(correlator.admit(&mut other, now) && !other.combined);
        let mut later = said("p", "Unhealthy", "probe failed: 99");
        correlator.admit(&mut later, now + SIMILAR_FOR * 2);
        assert!(!later.combined);
    }

    #[test]
    fn a_source_tells_so_much_about_one_object() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let mut tell = |name: &str, n: u32, at: Instant| {
            correlator.admit(&mut said(name, &format!("Reason{n}"), "m"), at)
        };
        let told = (0..100).filter(|n| tell("p", *n, now)).count();
        assert_eq!(told, 25);
        assert!(tell("q", 0, now), "another object");
        assert!(!tell("p", 200, now + REFILL / 2));
        assert!(tell("p", 201, now + REFILL * 2));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        for n in 0..3 * REMEMBERED {
            let at = now + Duration::from_millis(u64::try_from(n).unwrap());
            correlator.admit(&mut said(&n.to_string(), "r", "m"), at);
            assert!(correlator.sources.len() <= REMEMBERED + 1);
            assert!(correlator.groups.len() <= REMEMBERED + 1);
        }
    }
}
