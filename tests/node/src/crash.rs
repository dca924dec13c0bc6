//! The agent dies at each place of a pod's life, once: after an action was begun, and
//! before what came of it is known.

use std::fs;

use proto::v1::change::Change;
use tests_harness::wait_until;

use crate::node::{Node, pod, ready, stopped};

/// Places between a pod's arrival and its readiness.
const BEGINNING: [&str; 22] = [
    "begun Take",
    "begun Record",
    "done Record",
    "begun CreateCgroup",
    "begun StartShim",
    "begun MakeVolumes",
    "begun PinNamespaces",
    "done Cgroup",
    "done Shim",
    "done Volumes",
    "done Namespaces",
    "begun CreateLink",
    "done Link",
    "begun PutEndpoint",
    "begun AttachPrograms",
    "done Programs",
    "begun FindImage",
    "done ImageFound",
    "begun CreateContainer",
    "done Created",
    "begun StartContainer",
    "done Started",
];

/// Places between the order to stop and the end.
const ENDING: [&str; 10] = [
    "begun Stop",
    "begun BeginKill",
    "begun Signal",
    "done Exited",
    "begun DeleteEndpoint",
    "begun RemoveSandbox",
    "done NoSandbox",
    "begun RemoveFolders",
    "done NoFolders",
    "begun ReportGone",
];

/// SIGABRT.
const DIED: i32 = 128 + 6;

#[test]
fn the_agent_may_die_at_each_place_of_a_pods_life() {
    let beginning = BEGINNING.iter().map(|place| (*place, true));
    let ending = ENDING.iter().map(|place| (*place, false));
    let rows: Vec<_> = beginning
        .chain(ending)
        .enumerate()
        .map(|(at, (place, begins))| (format!("mortal-{at}"), place, begins))
        .collect();
    let places: Vec<String> = rows
        .iter()
        .map(|(uid, p, _)| format!("{uid} {p}"))
        .collect();
    let mut node = Node::new();
    node.start_until(Some(&places[0]));
    node.push_config();
    for (at, (uid, place, begins)) in rows.iter().enumerate() {
        node.control.hello(at + 1);
        let spec = pod(uid, 30, "trap 'exit 0' TERM; while :; do sleep 0.1; done");
        node.control.push(vec![Change::Pod(spec.clone())]);
        let die = |node: &mut Node| {
            let mut agent = node.agent.take().expect("an agent");
            assert_eq!(agent.wait(), DIED, "{place}: {}", agent.tail(20));
            node.start_until(places.get(at + 1).map(String::as_str));
        };
        if *begins {
            die(&mut node);
        }
        let status = node.control.status(uid, ready);
        assert_eq!(status.containers[0].restart_count, 0, "{place} {status:#?}");
        node.control.push(vec![stopped(spec, 30)]);
        if !*begins {
            die(&mut node);
        }
        node.control.gone(uid);
        node.control.push(vec![Change::PodRemoved(uid.clone())]);
    }
    let revision = node.control.push(Vec::new());
    node.control.acknowledged(revision);
    wait_until("nothing to be left", || {
        let of = |folder: &str| {
            let list = fs::read_dir(node.folder.join(folder)).expect("a folder");
            list.map(|e| e.expect("an entry").path())
                .collect::<Vec<_>>()
        };
        let left = [of("lib/pods"), of("run/shim"), of("run/ns"), of("lib/logs")].concat();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
    let links = node.netns.ip(&["-o", "link"]);
    let pods = links
        .lines()
        .filter(|l| l.contains("foil") && !l.contains("foil0"))
        .count();
    assert_eq!(pods, 0, "{links}");
}
