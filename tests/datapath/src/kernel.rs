//! Kernels that lack something: what is said, and that nothing is left behind.
//!
//! `cargo xtask kernels` runs this where that is so, and says what is lacking.

use crate::node::Folder;
use agent_sys::bpf::{BpfError, Config, Datapath, NodeFacts, probe};
use std::net::Ipv4Addr;
use tests_harness::binary;

/// What this kernel is known to lack; nothing on a machine where all tests run.
fn known() -> Vec<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests have no config file; the guest's kernel is chosen outside of it"
    )]
    let named = std::env::var("HYDROFOIL_LACKS").unwrap_or_default();
    let names = named.split(';').filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

#[test]
fn what_the_kernel_lacks_is_named() {
    let lacks: Vec<String> = probe()
        .into_iter()
        .map(|lack| lack.what.to_owned())
        .collect();
    assert_eq!(lacks, known());
    if lacks.is_empty() {
        return;
    }
    let folder = Folder::new();
    let config = Config {
        object: binary("hydrofoil.bpf.o"),
        folder: folder.path().to_owned(),
        flow_entries: 1024,
        node: NodeFacts {
            address: Ipv4Addr::new(172, 31, 0, 11),
            service_device: None,
            flow_events: false,
        },
    };
    match Datapath::open(&config) {
        Err(error @ BpfError::Kernel(_)) => {
            let said = error.to_string();
            assert!(lacks.iter().all(|lack| said.contains(lack)), "{said}");
        }
        other => panic!("opened on a kernel without {lacks:?}: {other:?}"),
    }
    assert!(!folder.path().exists());
}
