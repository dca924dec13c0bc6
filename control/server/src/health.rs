//! Which nodes are lost and which are back, by when they were last heard of.
//!
//! A control plane that could not hear (it has just started, was stopped for a
//! while, or its clock was set) has nothing to say about nodes for a while. What
//! becomes of a lost node's pods is control-plan's. Used by `run.rs`.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// How often silent nodes are looked for.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// Looks that are further apart than this, or a wall clock that went so much
/// further than the time that passed: the process or its clock was tampered with.
const TOLERANCE: Duration = Duration::from_secs(5);

/// Between two looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    /// More time than a look takes: nothing was heard meanwhile.
    pub(crate) stalled: bool,
    /// The wall clock went elsewhere than the time that passed.
    pub(crate) clock_set: bool,
}

/// What is to be said of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing new.
    Unchanged,
    /// Nothing was heard of it for too long.
    Lost,
    /// It counts as lost, and is heard of.
    Back,
}

/// Since when this control plane hears.
pub(crate) struct Hearing {
    lost_after: Duration,
    /// Since when it runs without a break.
    since: Instant,
    last_look: Instant,
    last_wall: Timestamp,
}

impl Hearing {
    pub(crate) fn new(lost_after: Duration, now: Instant, wall: Timestamp) -> Self {
        Self {
            lost_after,
            since: now,
            last_look: now,
            last_wall: wall,
        }
    }

    /// True when the node was heard of a short time ago.
    pub(crate) fn is_heard(&self, heard: Option<Instant>, now: Instant) -> bool {
        heard.is_some_and(|heard| now.duration_since(heard) < self.lost_after)
    }

    /// To be called at each look: what became of the time since the one before.
    pub(crate) fn look(&mut self, now: Instant, wall: Timestamp) -> Passed {
        let passed = now.duration_since(self.last_look);
        let by_wall = wall.duration_since(self.last_wall);
        let expected = jiff::SignedDuration::try_from(passed).unwrap_or_default();
        let step = (by_wall - expected).unsigned_abs();
        self.last_look = now;
        self.last_wall = wall;
        let stalled = passed > LOOK + TOLERANCE;
        if stalled {
            self.since = now;
        }
        Passed {
            stalled,
            clock_set: step > TOLERANCE,
        }
    }

    /// What is to be said of a node that now counts as lost or does not.
    pub(crate) fn judge(&self, is_lost: bool, heard: Option<Instant>, now: Instant) -> Verdict {
        if self.is_heard(heard, now) {
            return if is_lost {
                Verdict::Back
            } else {
                Verdict::Unchanged
            };
        }
        let from = heard.map_or(self.since, |heard| heard.max(self.since));
        if !is_lost && now.duration_since(from) >= self.lost_after {
            Verdict::Lost
        } else {
            Verdict::Unchanged
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn wall(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn ready_follows_what_is_heard_in_both_directions() {
        let start = Instant::now();
        let hearing = Hearing::new(40 * SECOND, start, wall(0));
        // (counts as lost, heard at, now, verdict)
        let rows = [
            // After a start each node has the whole time to come back.
            (false, None, 39, Verdict::Unchanged),
            (false, None, 40, Verdict::Lost),
            (true, None, 400, Verdict::Unchanged),
            (false, Some(10), 49, Verdict::Unchanged),
            (false, Some(10), 50, Verdict::Lost),
            (true, Some(10), 49, Verdict::Back),
            (true, Some(10), 50, Verdict::Unchanged),
        ];
        for (lost, heard, now, expected) in rows {
            let heard = heard.map(|s| start + s * SECOND);
            let verdict = hearing.judge(lost, heard, start + now * SECOND);
            assert_eq!(verdict, expected, "{lost} {heard:?} {now}");
        }
    }

    #[test]
    fn after_a_break_no_node_is_lost_at_once() {
        let start = Instant::now();
        // (seconds between two looks, by the wall clock): stalled, clock set
        let rows = [
            (1, 1, false, false),
            (6, 6, false, false),
            (60, 60, true, false),
            (1, 3600, false, true),
            (1, -3600, false, true),
            (60, 3600, true, true),
        ];
        for (passed, by_wall, stalled, clock_set) in rows {
            let mut hearing = Hearing::new(40 * SECOND, start, wall(0));
            let now = start + 1000 * SECOND;
            hearing.last_look = now;
            let next = now + passed * SECOND;
            let got = hearing.look(next, wall(by_wall));
            let expected = Passed { stalled, clock_set };
            assert_eq!(got, expected, "{passed} {by_wall}");
            let lost = hearing.judge(false, Some(start + 950 * SECOND), next);
            // A process that was stopped missed what the nodes said meanwhile.
            let expected = if passed > 6 {
                Verdict::Unchanged
            } else {
                Verdict::Lost
            };
            assert_eq!(lost, expected, "{passed} {by_wall}");
        }
    }
}
