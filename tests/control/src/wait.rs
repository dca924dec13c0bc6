//! Waiting for a condition: the only loop of these tests that pauses between two looks.
//!
//! The counterpart of `tests-harness`'s `wait` for code that awaits.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long a test waits; generous, as the machine may be busy. Only a test that fails waits
/// this long.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// The first pause. A look is a request to a server without optimisation, which costs
/// milliseconds: the pauses grow with the time waited, so that looking is not most of the work.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Looks until `look` gives `Ok`; the last `Err` is what the panic's message shows. It is
/// written as text only then.
///
/// # Panics
/// After [`PATIENCE`].
pub async fn eventually<T, E: Display>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let start = Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) if start.elapsed() > PATIENCE => {
                panic!("{what}: not within {PATIENCE:?}; last seen: {seen}")
            }
            Err(_) => sleep((start.elapsed() / 10).clamp(PAUSE, LONGEST_PAUSE)).await,
        }
    }
}
