//! The only clock: everything that needs the time is given it from here, so that
//! plans stay functions of their arguments. Called by the daemon's event loop.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time; for intervals, back-off and time-outs.
pub fn now() -> Instant {
    Instant::now()
}

/// Wall clock, milliseconds since the epoch; for what users read.
pub fn unix_ms() -> i64 {
    i64::try_from(unix().as_millis()).unwrap_or(i64::MAX)
}

/// Wall clock since the epoch; zero when the machine's clock is before it.
pub fn unix() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
