//! The clocks of `agent-sys` as the types of the plans.

use agent_plan::time::{Moment, Monotonic};
use agent_sys::clock;

/// Now, on both clocks.
pub(crate) fn moment() -> Moment {
    Moment::from_ms(clock::monotonic_ms(), clock::unix_ms())
}

/// Now, for what is due.
pub(crate) fn monotonic() -> Monotonic {
    Monotonic::from_ms(clock::monotonic_ms())
}
