//! The two clocks as types that do not mix: an interval of one is never taken from
//! the other.
//!
//! Deadlines, back-offs and probes are [`Monotonic`], so that an operator or NTP who
//! sets the wall clock moves none of them; what is reported is [`Wall`]. Nothing
//! here asks a clock: the daemon's `clock.rs` does.

use std::ops::{Add, Sub};

/// Milliseconds of CLOCK_MONOTONIC, the clock of the runtime's timers too. It starts
/// with the boot, stands still while the machine is suspended (as do the programs
/// that deadlines are for), and means nothing in another boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Monotonic(i64);

impl Monotonic {
    /// So many milliseconds.
    pub const fn from_ms(ms: i64) -> Monotonic {
        Monotonic(ms)
    }

    /// Milliseconds, for records on disk and the shim's messages.
    pub const fn ms(self) -> i64 {
        self.0
    }
}

/// So many milliseconds later.
impl Add<i64> for Monotonic {
    type Output = Monotonic;

    fn add(self, ms: i64) -> Monotonic {
        Monotonic(self.0.saturating_add(ms))
    }
}

/// Milliseconds between two moments.
impl Sub for Monotonic {
    type Output = i64;

    fn sub(self, earlier: Monotonic) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Milliseconds since the epoch, by a clock that may be set at any time. It has no
/// arithmetic: it is only told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Wall(i64);

impl Wall {
    /// So many milliseconds since the epoch.
    pub const fn from_ms(ms: i64) -> Wall {
        Wall(ms)
    }

    /// Milliseconds since the epoch, as messages have it.
    pub const fn ms(self) -> i64 {
        self.0
    }
}

/// One moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Moment {
    /// For what is due.
    pub monotonic: Monotonic,
    /// For what is told.
    pub wall: Wall,
}

impl Moment {
    /// From the milliseconds of both clocks.
    pub const fn from_ms(monotonic: i64, wall: i64) -> Moment {
        Moment {
            monotonic: Monotonic(monotonic),
            wall: Wall(wall),
        }
    }
}
