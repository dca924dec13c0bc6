//! How containers end under the real agent: hooks, SIGTERM, and the time between that
//! and SIGKILL.

use proto::v1;
use proto::v1::change::Change;
use proto::v1::container_state::State;
use proto::v1::handler::{Exec, Handler};

use crate::node::{Node, ended, pod, ready, stopped};

fn exec(command: &str) -> v1::Handler {
    v1::Handler {
        handler: Some(Handler::Exec(Exec {
            command: vec!["sh".into(), "-c".into(), command.into()],
        })),
    }
}

/// Exit code of a container by its place, once it has ended.
fn exit_code(list: &[v1::ContainerStatus], at: usize) -> Option<i32> {
    match list.get(at)?.state.as_ref()?.state.as_ref()? {
        State::Terminated(ended) => Some(ended.exit_code),
        State::Waiting(_) | State::Running(_) => None,
    }
}

/// Says what it got by its exit code: 7 after SIGTERM and half a second to clean up.
const POLITE: &str = "trap 'sleep 0.5; exit 7' TERM; while :; do sleep 0.1; done";

#[test]
fn a_hook_that_uses_the_grace_up_leaves_sigterm() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let mut spec = pod("hooked", 50, POLITE);
    spec.containers[0].pre_stop = Some(exec("sleep 1000"));
    let mut sidecar = pod("x", 0, POLITE).containers.remove(0);
    sidecar.name = "beside".into();
    sidecar.restart_policy = "Always".into();
    spec.init_containers = vec![sidecar];
    node.control.push(vec![Change::Pod(spec.clone())]);
    node.control.status("hooked", ready);
    node.control.push(vec![stopped(spec, 2)]);
    let status = node.control.status("hooked", |s| {
        exit_code(&s.containers, 0).is_some() && exit_code(&s.init_containers, 0).is_some()
    });
    assert_eq!(exit_code(&status.containers, 0), Some(7), "{status:#?}");
    // The sidecar waited for its turn until the grace was over, and was asked as well.
    assert_eq!(
        exit_code(&status.init_containers, 0),
        Some(7),
        "{status:#?}"
    );
    let reasons = node.control.reasons("hooked");
    assert!(
        reasons.contains(&"FailedPreStopHook".to_owned()),
        "{reasons:?}"
    );
    node.control.gone("hooked");
}

#[test]
fn without_grace_there_is_a_second_for_the_hook_and_sigterm_all_the_same() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let mut spec = pod("at-once", 51, POLITE);
    spec.containers[0].pre_stop = Some(exec("sleep 1000"));
    node.control.push(vec![Change::Pod(spec.clone())]);
    node.control.status("at-once", ready);
    node.control.push(vec![stopped(spec, 0)]);
    let status = node
        .control
        .status("at-once", |s| exit_code(&s.containers, 0).is_some());
    // As under kubelet, which gives each pod a second and each container two.
    assert_eq!(exit_code(&status.containers, 0), Some(7), "{status:#?}");
    node.control.gone("at-once");
}

#[test]
fn a_pod_whose_active_deadline_is_over_is_asked_to_end_and_fails() {
    let mut node = Node::new();
    node.start();
    node.push_config();
    let script = "trap 'exit 0' TERM; touch /set; while :; do sleep 0.1; done";
    let mut spec = pod("late", 70, script);
    spec.containers[0].readiness = Some(v1::Probe {
        handler: Some(exec("test -e /set")),
        period_seconds: 1,
        timeout_seconds: 10,
        success_threshold: 1,
        failure_threshold: 3,
        ..Default::default()
    });
    spec.active_deadline_seconds = Some(100_000);
    node.control.push(vec![Change::Pod(spec.clone())]);
    node.control.status("late", ready);
    spec.generation += 1;
    spec.active_deadline_seconds = Some(1);
    node.control.push(vec![Change::Pod(spec)]);
    let status = node.control.status("late", |s| s.phase == "Failed");
    assert_eq!(status.reason, "DeadlineExceeded");
    // By its own trap, not by SIGKILL; and under restartPolicy Always it stays ended.
    assert_eq!(ended(&status).exit_code, 0, "{status:#?}");
    assert_eq!(status.containers[0].restart_count, 0);
    let reasons = node.control.reasons("late");
    assert!(
        reasons.contains(&"DeadlineExceeded".to_owned()),
        "{reasons:?}"
    );
}
