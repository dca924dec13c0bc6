//! Waiting for conditions, with generous limits and with what was seen last in the message.
//!
//! No test sleeps and hopes: it polls here. Also the one place that knows of Ctrl-C.
//! Called by everything in this crate and by all tests above the unit tier.

use nix::sys::signal::{SigSet, Signal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Long enough for a loaded machine of two cores; a test never waits so long unless it fails.
pub const GENEROUS: Duration = Duration::from_secs(90);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Turns SIGINT and SIGTERM into a panic of the next wait, so that guards clean up.
/// Call once, before any thread is started: the mask is inherited by threads, and reset
/// by `std::process` in children.
pub fn catch_interrupts() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGHUP);
    signals.thread_block().expect("block signals");
    std::thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            eprintln!("{signal}: cleaning up");
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    });
}

/// True once a signal asked us to stop.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Polls until `poll` gives `Ok`; the last `Err` is what the panic's message shows.
///
/// # Panics
/// After [`GENEROUS`], or when interrupted.
pub fn wait_until<T>(what: &str, poll: impl FnMut() -> Result<T, String>) -> T {
    wait_for(what, GENEROUS, poll)
}

/// [`wait_until`] with a limit of one's own.
///
/// # Panics
/// After `limit`, or when interrupted.
pub fn wait_for<T>(what: &str, limit: Duration, mut poll: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(10);
    loop {
        let seen = match poll() {
            Ok(value) => return value,
            Err(seen) => seen,
        };
        // A poll while unwinding is part of cleaning up and must not panic again.
        if interrupted() && !std::thread::panicking() {
            panic!("interrupted while waiting for {what}");
        }
        assert!(
            start.elapsed() < limit,
            "{what}: not within {limit:?}; last seen: {seen}"
        );
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_first_ok() {
        let mut tries = 0;
        let got = wait_until("third try", || {
            tries += 1;
            if tries == 3 {
                Ok(tries)
            } else {
                Err(format!("try {tries}"))
            }
        });
        assert_eq!(got, 3);
    }

    #[test]
    #[should_panic(expected = "never: not within 30ms; last seen: nothing")]
    fn says_what_was_seen_last() {
        wait_for("never", Duration::from_millis(30), || {
            Err::<(), _>("nothing".to_owned())
        });
    }
}
