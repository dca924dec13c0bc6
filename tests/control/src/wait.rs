//! Waiting for a condition: the only loop of these tests that pauses between two looks.
//!
//! The counterpart of `tests-harness`'s `wait` for code that awaits.

use std::time::Duration;

/// How long a test waits; generous, as the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(10);

/// Looks until `look` gives `Ok`; the last `Err` is what the panic's message shows.
///
/// # Panics
/// After [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) if tokio::time::Instant::now() > end => {
                panic!("{what}: not within {PATIENCE:?}; last seen: {seen}")
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
