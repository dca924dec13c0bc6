//! What a test of this tier leaves on the machine: nothing, whatever else happens meanwhile.

use crate::live::Raise;
use crate::node::{Folder, Node};
use agent_sys::bpf::{BpfError, Config, Datapath, FlowEntries, NodeFacts};
use agent_sys::mounts;
use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use tests_harness::NetNs;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);

fn assert_nothing(folder: &Path) {
    assert!(!folder.exists(), "{folder:?}");
    assert_eq!(mounts::list(folder).unwrap(), []);
}

#[test]
fn a_node_leaves_nothing_even_if_its_test_panics() {
    for panics in [false, true] {
        let mut seen = None;
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let node = Node::new(&[CLIENT]);
            assert!(mounts::at(node.folder()).unwrap().is_some());
            let all = [&node.netns, &node.pods[0].netns];
            let namespaces = all.map(NetNs::path);
            assert!(namespaces.iter().all(|path| path.exists()));
            seen = Some((node.folder().to_owned(), namespaces));
            assert!(!panics, "as it is meant to");
        }));
        assert_eq!(ended.is_err(), panics);
        let (folder, namespaces) = seen.expect("a node");
        assert_nothing(&folder);
        for path in namespaces {
            assert!(!path.exists(), "{path:?}");
        }
    }
}

/// A process that was forked by another thread has copies of this one's descriptors until it
/// executes its program: one of a folder in the bpffs makes the mount busy.
#[test]
fn pins_go_while_other_threads_start_processes() {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let ended = Command::new("true").status().expect("true");
                    assert!(ended.success());
                }
            });
        }
        for _ in 0..300 {
            let folder = Folder::new();
            // Mounts, and ends before it has loaded anything.
            let opened = Datapath::open(&Config {
                object: "/nowhere".into(),
                folder: folder.path().to_owned(),
                flow_entries: FlowEntries::Exactly(4096),
                node: NodeFacts {
                    address: Ipv4Addr::new(172, 31, 0, 11),
                    address6: None,
                    service_device: None,
                    flow_events: false,
                },
            });
            assert!(matches!(opened, Err(BpfError::Object { .. })));
            let path = folder.path().to_owned();
            drop(folder);
            assert_nothing(&path);
        }
    });
}
