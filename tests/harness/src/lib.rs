//! What tests above the unit tier share: namespaces, processes, a cluster on one machine.
//!
//! Everything made here is named `foil-…` and goes away in `Drop`, also when a test panics.
//! Functions panic with what they saw: this crate is for tests, the demo and the benchmark,
//! and no product crate depends on it.
//! Reading order: `process`, `wait`, `netns`, `topology`, `cluster`, `leftovers`.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod image;
pub mod leftovers;
pub mod netns;
pub mod node;
pub mod process;
pub mod registry;
pub mod topology;
pub mod wait;

pub use cluster::Cluster;
pub use netns::NetNs;
pub use process::{Output, Process};
pub use wait::{retry_on_intr, wait_for, wait_until};

use std::path::PathBuf;

/// Folder with the binaries and the BPF object: `$HYDROFOIL_BIN`, or `target/debug` of this
/// workspace. `cargo xtask test` fills it.
pub fn bin_dir() -> PathBuf {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests have no config file; cargo xtask says where it has built"
    )]
    let named = std::env::var_os("HYDROFOIL_BIN");
    named.map_or_else(|| workspace().join("target/debug"), PathBuf::from)
}

/// A binary in [`bin_dir`]. Panics, naming the command that builds it, if it is not there.
pub fn binary(name: &str) -> PathBuf {
    let path = bin_dir().join(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo xtask build --dev`",
        path.display()
    );
    path
}

/// Root folder of the workspace: `$HYDROFOIL_WORKSPACE`, which a small machine sets, or the one
/// that this crate was compiled in.
pub fn workspace() -> PathBuf {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests have no config file; a guest has the workspace elsewhere"
    )]
    let named = std::env::var_os("HYDROFOIL_WORKSPACE");
    if let Some(named) = named {
        return PathBuf::from(named);
    }
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .canonicalize()
        .expect("the workspace that this crate was built from")
}

/// A name no other test of this machine has: `foil-PID-SEQ`. Short, because paths of
/// unix sockets below a folder of this name have 108 bytes.
pub fn unique_name() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "foil-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}
