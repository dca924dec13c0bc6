//! Removes expired flows, piece by piece, so that neither packets nor pods wait for it.
//!
//! What the programs dropped is logged at the end of each pass. Called by `node`.

use agent_plan::time::Monotonic;
use agent_sys::bpf::Datapath;

use crate::drops;

/// A pass over the flows begins so often, milliseconds.
pub(crate) const PASS_MS: i64 = 10_000;
/// Pause between two pieces of a pass, milliseconds.
const PIECE_MS: i64 = 10;

/// One piece of a pass; returns when the next one is due.
pub(crate) fn sweep(datapath: &Datapath, now: Monotonic) -> Monotonic {
    match datapath.sweep() {
        Ok(swept) if !swept.complete => {
            tracing::trace!(?swept, "a piece of the flows");
            return now + PIECE_MS;
        }
        Ok(swept) => tracing::trace!(?swept, "all flows"),
        Err(error) => tracing::error!(%error, "cannot remove expired flows"),
    }
    if let Err(error) = drops::report(datapath.maps()) {
        tracing::error!(%error, "cannot read events of dropped packets");
    }
    agent_sys::heap::trim();
    now + PASS_MS
}
