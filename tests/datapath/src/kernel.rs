//! Kernels that lack something: what is said, and that nothing is left behind.
//!
//! `cargo xtask kernels` runs this where that is so, and says what is lacking.

use crate::node::Folder;
use agent_sys::bpf::{BpfError, Config, Datapath, FlowEntries, NodeFacts, probe};
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::Signal;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;
use tests_harness::{NetNs, binary};
use tokio::signal::unix::{SignalKind, signal};

/// Signals to a thread that loads, 2 ms apart, where a program takes longer to verify.
const SIGNALS: u32 = 40;

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

fn config(folder: &Path) -> Config {
    Config {
        object: binary("hydrofoil.bpf.o"),
        folder: folder.to_owned(),
        flow_entries: FlowEntries::Exactly(1024),
        node: NodeFacts {
            address: Ipv4Addr::new(172, 31, 0, 11),
            address6: None,
            service_device: None,
            flow_events: false,
        },
    }
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
    let config = config(folder.path());
    match Datapath::open(&config) {
        Err(error @ BpfError::Kernel(_)) => {
            let said = error.to_string();
            assert!(lacks.iter().all(|lack| said.contains(lack)), "{said}");
        }
        other => panic!("opened on a kernel without {lacks:?}: {other:?}"),
    }
    assert!(!folder.path().exists());
}

/// The verifier gives up when a signal is pending. Each signal can end one attempt only, and there
/// are more than a load that is made once has.
#[test]
fn a_signal_does_not_end_the_load() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let _guard = runtime.enter();
    let _handled = signal(SignalKind::user_defined1()).expect("handler");
    let netns = NetNs::create("signal");
    let folder = Folder::new();
    let config = config(folder.path());
    netns.enter(|| {
        let loading = pthread_self();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for _ in 0..SIGNALS {
                    pthread_kill(loading, Signal::SIGUSR1).expect("signal");
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            Datapath::open(&config).expect("open the data plane");
        });
    });
}
