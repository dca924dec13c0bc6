//! Shims that are stopped: not known is not dead, and their pods alone wait.

use agent_sys::process::Pidfd;
use agent_sys::shim::Client;
use agent_sys::state::Layout;
use proto::v1;
use proto::v1::change::Change;
use proto::v1::open::What;
use tokio::runtime::Runtime;

use crate::node::{Node, pod, ready, started_ms, stopped};

/// The shim of a pod.
fn shim(node: &Node, uid: &str) -> Pidfd {
    let layout = Layout::new(node.folder.join("lib"), node.folder.join("run"));
    let pid = Runtime::new().expect("runtime").block_on(async {
        let mut client = Client::connect(&layout, uid).await.expect("a shim");
        client.list().await.expect("an answer").1
    });
    Pidfd::open(pid).expect("the shim's process")
}

fn says(node: &Node, id: &str, uid: &str, word: &str) {
    let exec = v1::OpenExec {
        pod_uid: uid.into(),
        command: vec!["echo".into(), word.into()],
        ..Default::default()
    };
    let said = node.control.open(id, What::Exec(exec));
    assert_eq!(said.exit_code, Some(0), "{said:?}");
    assert_eq!(String::from_utf8_lossy(&said.output).trim(), word);
}

const LIVES: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

#[test]
fn a_stopped_shim_delays_its_own_pod_only() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let (mute, other) = (pod("mute", 70, LIVES), pod("other", 71, LIVES));
    let pods = [mute.clone(), other].map(Change::Pod).to_vec();
    let revision = node.control.push(pods);
    let before = node.control.status("mute", ready);
    let beside = node.control.status("other", ready);
    node.saved(revision);
    let process = shim(&node, "mute");
    process.signal(libc::SIGSTOP).expect("stop the shim");
    node.kill();
    node.start();
    node.control.hello(2);

    // Others are adopted, and new ones start.
    says(&node, "other", "other", "adopted");
    let third = pod("third", 72, LIVES);
    node.control.push(vec![Change::Pod(third)]);
    node.control.status("third", ready);
    let status = node.control.status("other", ready);
    assert_eq!(started_ms(&status), started_ms(&beside));
    // The stopped one is not known: as it was last seen, and that is said.
    let silent = |s: &v1::PodStatus| s.reason == "ShimNotResponding";
    let status = node.control.status("mute", silent);
    assert!(ready(&status), "{status:#?}");
    assert_eq!(started_ms(&status), started_ms(&before));

    process.signal(libc::SIGCONT).expect("continue the shim");
    let after = node
        .control
        .status("mute", |s| s.reason.is_empty() && ready(s));
    assert_eq!(started_ms(&after), started_ms(&before));
    assert_eq!(after.containers[0].restart_count, 0);
    says(&node, "mute", "mute", "adopted");
    let reasons = node.control.reasons("mute");
    assert!(
        reasons.contains(&"ShimResponding".to_owned()),
        "{reasons:?}"
    );

    // One that shall end does so, when its grace is over, regardless of its shim.
    process.signal(libc::SIGSTOP).expect("stop the shim");
    node.control.push(vec![stopped(mute, 1)]);
    node.control.gone("mute");
    assert!(process.wait(10_000).expect("wait"), "its shim is ended too");
}

#[test]
fn a_probe_that_a_stopped_shim_does_not_take_restarts_nothing() {
    use v1::handler::{Exec, Handler};
    let mut node = Node::new();
    node.start();
    node.push_config();
    let mut spec = pod("probed", 73, LIVES);
    spec.containers[0].liveness = Some(v1::Probe {
        handler: Some(v1::Handler {
            handler: Some(Handler::Exec(Exec {
                command: vec!["true".into()],
            })),
        }),
        period_seconds: 1,
        timeout_seconds: 1,
        success_threshold: 1,
        failure_threshold: 1,
        ..Default::default()
    });
    node.control.push(vec![Change::Pod(spec)]);
    let before = node.control.status("probed", ready);
    let process = shim(&node, "probed");
    process.signal(libc::SIGSTOP).expect("stop the shim");
    let silent = |s: &v1::PodStatus| s.reason == "ShimNotResponding";
    node.control.status("probed", silent);
    process.signal(libc::SIGCONT).expect("continue the shim");
    let after = node.control.status("probed", |s| s.reason.is_empty());
    says(&node, "probed", "probed", "runs");
    assert_eq!(started_ms(&after), started_ms(&before));
    assert_eq!(after.containers[0].restart_count, 0);
}
