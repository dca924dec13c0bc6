//! The only clocks: everything that needs the time is given it from here, so that
//! plans stay functions of their arguments. Called by the daemon's `clock.rs`.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Monotonic time; for how long something took.
pub fn now() -> Instant {
    Instant::now()
}

/// CLOCK_MONOTONIC, milliseconds since the boot; for what is due. The same in all
/// processes of this boot, so that shims and records can name a moment.
pub fn monotonic_ms() -> i64 {
    // It fails only for a clock that the kernel does not have.
    let since_boot = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    i64::try_from(since_boot.as_millis()).unwrap_or(i64::MAX)
}

/// Which boot CLOCK_MONOTONIC counts from.
///
/// # Errors
/// No /proc.
pub fn boot_id() -> io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().to_owned())
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

/// CPU time of the calling thread, in user space and in the kernel; for measuring work on a
/// machine that does other work as well. Zero if the kernel does not say.
pub fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
