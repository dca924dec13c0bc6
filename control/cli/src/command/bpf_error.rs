//! Why `foil bpf` cannot read the maps.

use agent_sys::maps::MapsError;

/// The maps cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BpfError {
    #[error("{0}\n  Is this the agent's `bpffs` folder (--bpffs), on this node, and are you root?")]
    Open(#[source] MapsError),
    #[error(transparent)]
    Read(#[from] MapsError),
    #[error(
        "no service \"{name}\" on this node; `foil bpf service list` prints those that there are"
    )]
    NoService { name: String },
    #[error(
        "no pod \"{name}\" on this node, and no backend of that name; `foil bpf endpoint list` and `foil bpf backend list` print those that there are"
    )]
    NoPod { name: String },
}
