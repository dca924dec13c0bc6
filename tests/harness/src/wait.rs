//! Waiting for conditions, with generous limits and with what was seen last in the message.
//!
//! No test sleeps and hopes: it polls here, in the only loop that pauses between two looks.
//! Also the one place that knows of Ctrl-C.
//! Called by everything in this crate and by all tests above the unit tier.

use nix::sys::signal::{SigSet, Signal};
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Long enough for a loaded machine of two cores; only a test that fails waits this long.
pub const GENEROUS: Duration = Duration::from_secs(90);

/// First pause of a wait for something that takes its time.
pub const COARSE: Duration = Duration::from_millis(10);

/// First pause where the moment matters: a measurement, or the end of a short command.
pub const FINE: Duration = Duration::from_micros(200);

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
    let mut seen = String::new();
    let got = poll_for(limit, COARSE, || poll().map_err(|now| seen = now).ok());
    match got {
        Some(value) => value,
        None if interrupted() => panic!("interrupted while waiting for {what}"),
        None => panic!("{what}: not within {limit:?}; last seen: {seen}"),
    }
}

/// Polls until `poll` gives a value; `None` after `limit`, or when interrupted. Between two
/// polls it pauses for `pause`, or for a fiftieth of the time waited if that is more.
pub fn poll_for<T>(
    limit: Duration,
    pause: Duration,
    mut poll: impl FnMut() -> Option<T>,
) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = poll() {
            return Some(value);
        }
        // Waiting while unwinding is part of cleaning up, which an interrupt only asks for.
        let given_up = interrupted() && !std::thread::panicking();
        if given_up || start.elapsed() >= limit {
            return None;
        }
        std::thread::sleep(pause.max(start.elapsed() / 50));
    }
}

/// Calls again while the call is interrupted: on a socket with a time-out each of `read`, `recv`,
/// `recv_from` and `write` fails with EINTR when the process is stopped and continued, or its
/// group frozen and thawed, without any signal handler (signal(7)). `read_exact`, `read_to_end`,
/// `read_line` and `write_all` do the same by themselves.
///
/// # Errors
/// What the call gives, except EINTR.
pub fn retry_on_intr<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
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
    fn only_an_interrupted_call_is_made_again() {
        let mut results = vec![
            Err(ErrorKind::WouldBlock.into()),
            Ok(7),
            Err(ErrorKind::Interrupted.into()),
            Err(ErrorKind::Interrupted.into()),
        ];
        let mut call = || results.pop().expect("a call that was wanted");
        assert_eq!(retry_on_intr(&mut call).expect("a value"), 7);
        let error = retry_on_intr(&mut call).expect_err("a time-out");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }

    #[test]
    #[should_panic(expected = "never: not within 30ms; last seen: nothing")]
    fn says_what_was_seen_last() {
        wait_for("never", Duration::from_millis(30), || {
            Err::<(), _>("nothing".to_owned())
        });
    }
}
