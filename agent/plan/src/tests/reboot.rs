//! Machines that start anew: the agent finds records of another boot and nothing else.

use proto::v1;

use super::contact::asks;
use super::*;
use crate::record::{self, Sandbox};
use crate::step;

pub(super) fn reboot(node: &mut Node, uid: &str) {
    let mut back = node.restored(uid, "another boot");
    record::adopt_sandbox(&mut back, &Sandbox::default(), node.moment());
    node.observed = Observed::default();
    node.observed.pods.insert(uid.into(), back);
    node.log.clear();
}

#[test]
fn after_a_reboot_init_containers_run_again() {
    let mut node = Node::new();
    let mut spec = pod_spec("u", 1);
    spec.init_containers = pod_spec("x", 1).containers;
    spec.init_containers[0].name = "i0".into();
    node.want(spec);
    node.settle();
    node.exit("u", "i0", 0);
    node.settle();
    assert_eq!(node.phase("u"), "Running");
    reboot(&mut node, "u");
    node.settle();
    let asked = node.places(asks);
    assert!(
        asked.is_empty(),
        "nothing of the old boot is asked whether it lives"
    );
    // What is left on disk goes first.
    let first = node.places(|a| matches!(a, Action::RemoveLeftovers { .. }));
    let made = node.places(|a| matches!(a, Action::StartShim { .. } | Action::MakeVolumes { .. }));
    assert_eq!(first.len(), 1);
    assert!(made.iter().all(|at| *at > first[0]), "{:?}", node.log);
    assert_eq!(node.places(creates("i0")).len(), 1);
    assert!(
        node.places(creates("c0")).is_empty(),
        "it waits for its init container"
    );
    let status = node.status("u");
    let initialized = status.conditions.iter().find(|c| c.r#type == "Initialized");
    assert_eq!(initialized.unwrap().status, "False");
    // Another reboot before that has ended, and an agent that dies between the two.
    reboot(&mut node, "u");
    let back = node.restored("u", "boot");
    assert_eq!(
        back.leftovers,
        step::Step::Absent,
        "what is left is not forgotten"
    );
    node.settle();
    node.exit("u", "i0", 0);
    node.settle();
    let status = node.status("u");
    assert_eq!(node.phase("u"), "Running");
    assert_eq!(status.init_containers[0].restart_count, 2);
    assert_eq!(status.containers[0].restart_count, 1);
    let last = status.containers[0]
        .last_state
        .clone()
        .unwrap()
        .state
        .unwrap();
    let v1::container_state::State::Terminated(last) = last else {
        panic!("{last:?}");
    };
    assert_eq!(last.reason, "ContainerStatusUnknown");
}

#[test]
fn after_a_reboot_restart_policies_hold() {
    // (policy, how the first container ended, phase, the first is made again, the second)
    let rows = [
        ("Always", None, "Running", true, true),
        ("OnFailure", None, "Running", true, true),
        ("OnFailure", Some(0), "Running", false, true),
        ("Never", None, "Failed", false, false),
        ("Never", Some(0), "Failed", false, false),
    ];
    for (policy, ended, phase, first, second) in rows {
        let mut node = Node::new();
        let mut spec = pod_spec("u", 2);
        spec.restart_policy = policy.into();
        node.want(spec);
        node.settle();
        if let Some(code) = ended {
            node.exit("u", "c0", code);
            node.settle();
        }
        reboot(&mut node, "u");
        node.settle();
        assert_eq!(node.phase("u"), phase, "{policy} {ended:?}");
        let made = |name| !node.places(creates(name)).is_empty();
        assert_eq!(
            (made("c0"), made("c1")),
            (first, second),
            "{policy} {ended:?}"
        );
    }
}

/// A removal takes longer than a plan.
#[test]
fn after_a_reboot_what_is_left_of_a_pod_that_ends_is_removed_once() {
    for finished in [true, false] {
        let mut node = Node::new();
        let mut spec = pod_spec("u", 1);
        spec.restart_policy = "Never".into();
        node.want(spec);
        node.settle();
        if finished {
            node.exit("u", "c0", 0);
            let removes = |a: &Action| matches!(a, Action::RemoveSandbox { .. });
            while node.begin(removes).is_empty() {}
        } else {
            node.change("u", |spec| spec.stop_grace_seconds = Some(30));
            while node.observed.pods["u"].stop.is_none() {
                node.begin(|_| true);
            }
        }
        reboot(&mut node, "u");
        let removes = |a: &Action| {
            matches!(
                a,
                Action::RemoveSandbox { .. } | Action::RemoveLeftovers { .. }
            )
        };
        let begun: usize = (0..64).map(|_| node.begin(removes).len()).sum();
        assert_eq!(begun, 1, "finished: {finished}");
        let made = node.places(|a| matches!(a, Action::StartShim { .. }));
        assert!(made.is_empty(), "for nothing");
    }
}

#[test]
fn after_a_reboot_ends_stay_ends() {
    let mut node = Node::new();
    let mut spec = pod_spec("u", 1);
    spec.restart_policy = "Never".into();
    node.want(spec);
    node.settle();
    node.exit("u", "c0", 0);
    node.settle();
    reboot(&mut node, "u");
    node.settle();
    assert_eq!(node.phase("u"), "Succeeded");
    node.change("u", |spec| spec.stop_grace_seconds = Some(30));
    reboot(&mut node, "u");
    node.settle();
    assert!(node.observed.pods.is_empty());
}
