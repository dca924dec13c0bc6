//! Why `foil bpf` cannot read the maps.

use agent_sys::maps::MapsError;

/// The maps cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BpfError {
    #[error("{0}\n  Is this the agent's `bpffs` folder (--bpffs), on this node, and are you root?")]
    Open(#[source] MapsError),
    #[error(transparent)]
    Read(#[from] MapsError),
}
