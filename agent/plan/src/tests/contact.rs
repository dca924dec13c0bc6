//! Shims that are asked and do not answer, and removals that fail.

use proto::v1;

use super::*;
use crate::outcome::{Answer, Call, Found};
use crate::record::Sandbox;

/// The agent starts anew, and finds all of the sandbox.
pub(super) fn restart_agent(node: &mut Node, uid: &str) {
    let mut back = node.restored(uid, "boot");
    let found = Sandbox {
        namespaces: true,
        ifindex: node.observed.pods[uid].ifindex,
        programs: true,
    };
    crate::record::adopt_sandbox(&mut back, &found, node.moment());
    node.observed.pods.insert(uid.into(), back);
}

pub(super) fn asks(action: &Action) -> bool {
    matches!(action, Action::AskShim { .. })
}

/// The shim dies, and that is found out.
pub(super) fn die(node: &mut Node, uid: &str) {
    node.take(Outcome::ShimLost { uid: uid.into() });
    answer(node, uid, false, Answer::Dead);
}

fn answer(node: &mut Node, uid: &str, listens: bool, answer: Answer) {
    node.take(Outcome::ShimAnswered {
        uid: uid.into(),
        listens,
        answer,
    });
}

fn next(node: &Node) -> pod::PodPlan {
    pod::plan(
        "u",
        &node.desired,
        &node.observed,
        &settings(),
        node.moment(),
    )
}

fn running(node: &Node) -> Found {
    Found {
        container: "c0".into(),
        attempt: 0,
        life: Life::Running {
            started: node.moment(),
        },
    }
}

#[test]
fn a_shim_that_does_not_answer_is_neither_alive_nor_dead() {
    let mut node = Node::new();
    node.want(pod_spec("u", 1));
    node.settle();
    node.log.clear();
    let before = node.status("u");
    restart_agent(&mut node, "u");
    // Nothing is told, and nothing is done, but that it is asked.
    assert!(!node.observed.pods["u"].is_told());
    assert_eq!(node.begin(asks).len(), 1);
    assert_eq!(node.begin(asks).len(), 0, "one question at a time");
    for _ in 0..20 {
        answer(&mut node, "u", false, Answer::Silent);
        assert_eq!(node.begin(asks).len(), 0, "not at once");
        node.now = next(&node).wake.unwrap();
        assert_eq!(node.begin(asks).len(), 1);
    }
    let status = node.status("u");
    assert!(node.observed.pods["u"].is_told());
    assert_eq!(status.reason, "ShimNotResponding");
    assert_eq!(status.phase, before.phase);
    assert_eq!(status.containers, before.containers);
    let held = |status: &v1::PodStatus| {
        let conditions = status.conditions.iter();
        conditions.map(|c| c.status.clone()).collect::<Vec<_>>()
    };
    assert_eq!(held(&status), held(&before), "its last verdicts stand");
    let only_asked = |a: &Action| asks(a) || matches!(a, Action::Record { .. });
    assert!(node.log.iter().all(only_asked), "{:?}", node.log);
    // It answers: all is as it was.
    let found = running(&node);
    answer(&mut node, "u", true, Answer::Alive(vec![found]));
    node.settle();
    let after = node.status("u");
    assert_eq!(after.reason, "");
    assert_eq!(after.containers[0].restart_count, 0);
    assert!(node.places(creates("c0")).is_empty());
}

#[test]
fn a_dead_shim_is_replaced_and_its_containers_are_restarted() {
    let mut node = Node::new();
    node.want(pod_spec("u", 1));
    node.settle();
    restart_agent(&mut node, "u");
    node.begin(asks);
    answer(&mut node, "u", false, Answer::Dead);
    node.settle();
    let status = node.status("u");
    assert_eq!(status.phase, "Running");
    assert_eq!(status.containers[0].restart_count, 1);
    let shims = node.places(|a| matches!(a, Action::StartShim { .. }));
    assert_eq!(shims.len(), 2);
}

#[test]
fn a_connection_that_breaks_is_asked_about_and_made_anew() {
    let mut node = Node::new();
    node.want(pod_spec("u", 1));
    node.settle();
    node.log.clear();
    node.take(Outcome::ShimLost { uid: "u".into() });
    let asked = node.begin(asks);
    assert!(matches!(asked[..], [Action::AskShim { listen: true, .. }]));
    // An answer of a question that was put before the connection broke.
    let found = running(&node);
    answer(&mut node, "u", false, Answer::Alive(vec![found.clone()]));
    let asked = node.begin(asks);
    assert!(matches!(asked[..], [Action::AskShim { listen: true, .. }]));
    answer(&mut node, "u", true, Answer::Alive(vec![found]));
    node.settle();
    assert!(node.log.iter().all(asks), "{:?}", node.log);
}

#[test]
fn a_pod_that_shall_end_waits_for_a_silent_shim_until_its_grace_is_over() {
    let mut node = Node::new();
    node.want(pod_spec("u", 1));
    node.settle();
    node.take(Outcome::ShimLost { uid: "u".into() });
    node.change("u", |spec| spec.stop_grace_seconds = Some(30));
    node.log.clear();
    let began = node.now;
    while node
        .places(|a| matches!(a, Action::RemoveSandbox { .. }))
        .is_empty()
    {
        for _ in node.begin(asks) {
            answer(&mut node, "u", false, Answer::Silent);
        }
        let plan = next(&node);
        if plan.actions.is_empty() {
            node.now = plan.wake.expect("it goes on");
        }
        assert!(node.now - began <= 30_000);
    }
    assert_eq!(node.now - began, 30_000);
    node.settle();
    assert!(node.observed.pods.is_empty());
}

#[test]
fn a_call_that_was_not_answered_is_made_again_and_is_no_failure() {
    let mut node = Node::new();
    node.want(pod_spec("u", 1));
    let this = Instance {
        uid: "u".into(),
        container: "c0".into(),
        attempt: 0,
    };
    let unanswered = || Refusal::Unanswered("no answer".into());
    let starts = |a: &Action| matches!(a, Action::StartContainer { .. });
    // The container's making: what may be there of it goes before it is tried again.
    while node.begin(creates("c0")).is_empty() {}
    node.take(Outcome::Created {
        instance: this.clone(),
        result: Err(unanswered()),
    });
    while node.begin(starts).is_empty() {}
    let deleted = node.places(|a| matches!(a, Action::DeleteContainer { .. }));
    let created = node.places(creates("c0"));
    assert!(
        created[0] < deleted[0] && deleted[0] < created[1],
        "{created:?} {deleted:?}"
    );
    // Its start: it may run already.
    node.take(Outcome::Started {
        instance: this.clone(),
        result: Err(unanswered()),
    });
    node.begin(asks);
    let found = running(&node);
    answer(&mut node, "u", false, Answer::Alive(vec![found]));
    node.settle();
    assert_eq!(node.status("u").containers[0].restart_count, 0);
    assert_eq!(node.places(starts).len(), 1);
    // The signal that ends it.
    let terms = |a: &Action| matches!(a, Action::Signal { signal: 15, .. });
    node.change("u", |spec| spec.stop_grace_seconds = Some(30));
    while node.begin(terms).is_empty() {}
    let call = Call::Signal(15);
    node.take(Outcome::Unanswered {
        instance: this,
        call,
    });
    node.settle();
    assert_eq!(node.places(terms).len(), 2);
    assert!(node.observed.pods.is_empty());
}

#[test]
fn a_removal_that_failed_is_done_again() {
    let mut node = Node::new();
    node.want(pod_spec("u", 1));
    node.settle();
    node.exit("u", "c0", 1);
    let deletes = |a: &Action| matches!(a, Action::DeleteContainer { .. });
    for tries in 0..5 {
        let mut held = Vec::new();
        while held.is_empty() {
            held = node.begin(deletes);
            let plan = next(&node);
            if held.is_empty() && plan.actions.is_empty() {
                node.now = plan.wake.expect("it is tried again");
            }
        }
        let Some(Action::DeleteContainer { instance }) = held.pop() else {
            panic!("{held:?}");
        };
        assert_eq!(instance.attempt, 0);
        let result = if tries < 4 {
            Err("busy".into())
        } else {
            Ok(())
        };
        node.take(Outcome::Deleted { instance, result });
    }
    node.pass(600_000);
    assert_eq!(node.places(deletes).len(), 5);
    assert_eq!(node.phase("u"), "Running");
}
