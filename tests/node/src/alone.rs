//! Two agents of one machine: what they may not share, also in two network namespaces.

use agent_sys::mounts;
use tests_harness::{NetNs, Process, process};

use crate::cleanup::Other;
use crate::node::Node;

#[test]
fn agents_in_two_network_namespaces_do_not_share_a_cgroup_or_pins() {
    let mut node = Node::new();
    node.start();
    node.control.hello(1);
    let elsewhere = NetNs::create("alone");
    let pins = node.folder.join("bpf");
    let count = || std::fs::read_dir(&pins).expect("pins").count();
    let (group, folder) = (format!("/{}", node.name), pins.display().to_string());
    for (key, value) in [("cgroup", &group), ("bpffs", &folder)] {
        let other = Other::sharing(&[(key, value)]);
        let log = other.folder.join("agent.log");
        let before = count();
        let mut second = Process::spawn("agent", &mut other.command(&elsewhere), &log);
        assert_eq!(second.wait(), 1);
        let said = process::tail(&log, 5);
        let refused = format!("need a `{key}` each");
        assert!(said.contains(&refused), "{said}");
        // Nothing of it is left, and nothing of the first one's is gone.
        let run = other.folder.join("run");
        assert_eq!(mounts::at(&run).expect("mounts"), None);
        assert_eq!(mounts::list(&other.folder).expect("mounts"), []);
        let out = other.cleanup(&elsewhere);
        assert_eq!(out.code, 1, "{}{}", out.stdout, out.stderr);
        assert!(out.stderr.contains(&refused), "{}", out.stderr);
        assert_eq!(count(), before);
    }
    let first = node.agent.as_mut().expect("an agent");
    assert!(first.is_running() && node.control.hellos() == 1);
}
