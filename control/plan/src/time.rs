//! Arithmetic of times that has an answer for every input.

use jiff::{SignedDuration, Timestamp};

/// `t` and `seconds` more; at the end of time, the end of time.
pub fn after(t: Timestamp, seconds: i64) -> Timestamp {
    t.checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX)
}
