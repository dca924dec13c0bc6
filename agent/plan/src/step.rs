//! How far an action on one part of the node is, and when it is tried again.
//!
//! Part of `Observed`; written by `begin.rs` and `take.rs` only.

use crate::time::Monotonic;

/// How far something is that takes time and can fail.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Step {
    /// Not there.
    #[default]
    Absent,
    /// An action on it is on its way, after so many failures in a row.
    Busy(u32),
    /// As `Busy`, and what the action was begun for has changed meanwhile: it is done
    /// again once it has come back.
    Stale(u32),
    /// There.
    Ready,
    /// The last action failed; the next try may start at `retry`.
    Failed {
        /// Why, in words.
        message: String,
        /// Failures in a row.
        tries: u32,
        /// When.
        retry: Monotonic,
    },
}

impl Step {
    /// True if an action may start now.
    pub fn due(&self, now: Monotonic) -> bool {
        match self {
            Step::Absent => true,
            Step::Failed { retry, .. } => now >= *retry,
            Step::Busy(_) | Step::Stale(_) | Step::Ready => false,
        }
    }

    /// When an action becomes due, if time alone brings it.
    pub fn wake(&self) -> Option<Monotonic> {
        match self {
            Step::Failed { retry, .. } => Some(*retry),
            Step::Absent | Step::Busy(_) | Step::Stale(_) | Step::Ready => None,
        }
    }

    /// Marks an action as begun.
    pub fn start(&mut self) {
        *self = Step::Busy(self.tries());
    }

    /// Marks it as to be done again, because what it is made from has changed: at once,
    /// or when the action that is on its way has come back.
    pub fn touch(&mut self) {
        *self = match self {
            Step::Busy(tries) | Step::Stale(tries) => Step::Stale(*tries),
            Step::Absent | Step::Ready | Step::Failed { .. } => Step::Absent,
        };
    }

    /// True while an action is on its way.
    pub fn busy(&self) -> bool {
        matches!(self, Step::Busy(_) | Step::Stale(_))
    }

    fn tries(&self) -> u32 {
        match self {
            Step::Failed { tries, .. } | Step::Busy(tries) | Step::Stale(tries) => *tries,
            Step::Absent | Step::Ready => 0,
        }
    }

    /// Notes how an action ended. After a failure it is tried again: after 0.2 s,
    /// then twice as long each time, up to a minute.
    pub fn end(&mut self, result: Result<(), String>, now: Monotonic) {
        *self = match result {
            _ if matches!(self, Step::Stale(_)) => Step::Absent,
            Ok(()) => Step::Ready,
            Err(message) => {
                let tries = self.tries() + 1;
                let delay = (200_i64 << tries.min(10).saturating_sub(1)).min(60_000);
                Step::Failed {
                    message,
                    tries,
                    retry: now + delay,
                }
            }
        };
    }
}
