//! What happens while something else is on its way: a slow link, a stop, a new image, an
//! agent that starts anew beside a pod that has ended.

use proto::v1;

use super::contact::{asks, restart_agent};
use super::*;
use crate::outcome::{Answer, Part};
use crate::probe::Kind;
use crate::step;

fn instance(attempt: u32) -> Instance {
    Instance {
        uid: "u".into(),
        container: "c0".into(),
        attempt,
    }
}

fn starts(action: &Action) -> bool {
    matches!(action, Action::StartContainer { .. })
}

fn removes(action: &Action) -> bool {
    matches!(action, Action::RemoveSandbox { .. })
}

/// Begins what is due until nothing is; what of it holds is on its way.
fn begin_all(node: &mut Node, holds: impl Fn(&Action) -> bool) -> Vec<Action> {
    let mut held = Vec::new();
    for _ in 0..64 {
        let before = node.log.len();
        held.extend(node.begin(&holds));
        if node.log.len() == before {
            return held;
        }
    }
    panic!("does not converge: {held:?}");
}

#[test]
fn no_container_starts_before_its_address_is_live() {
    for slow in ["CreateLink", "AttachPrograms"] {
        let mut node = Node::new();
        node.want(pod_spec("u", 1));
        let is_slow = |a: &Action| format!("{a:?}").starts_with(slow);
        let held = begin_all(&mut node, is_slow);
        assert_eq!(held.len(), 1, "{slow}");
        // It is made meanwhile.
        assert_eq!(node.places(creates("c0")).len(), 1, "{slow}");
        assert!(node.places(starts).is_empty(), "{slow}");
        let done = success(&held[0], node.moment()).unwrap();
        node.take(done);
        node.settle();
        assert_eq!(node.phase("u"), "Running", "{slow}");
    }
}

#[test]
fn pulls_of_a_pod_that_ends_are_cancelled() {
    let mut node = Node::new();
    node.want(pod_spec("u", 2));
    let pulls = begin_all(&mut node, |a| matches!(a, Action::PullImage { .. }));
    assert_eq!(pulls.len(), 2);
    node.desired.pods.clear();
    let held = begin_all(&mut node, removes);
    assert_eq!(held.len(), 1);
    let cancelled = |a: &Action| matches!(a, Action::CancelPull { .. });
    assert_eq!(node.places(cancelled).len(), 2);
    // One of them had ended just before.
    node.take(success(&pulls[0], node.moment()).unwrap());
    node.take(success(&held[0], node.moment()).unwrap());
    node.settle();
    assert_eq!(node.places(cancelled).len(), 2, "once each");
    assert!(node.observed.pods.is_empty());
}

fn is_ready(node: &Node) -> bool {
    let status = node.status("u");
    let mut conditions = status.conditions.iter();
    conditions.any(|c| c.r#type == "Ready" && c.status == "True")
}

#[test]
fn a_pod_that_terminates_is_ready_for_as_long_as_its_probe_says_so() {
    let mut node = Node::new();
    let mut spec = pod_spec("u", 1);
    let probe = v1::Probe {
        period_seconds: 1,
        success_threshold: 1,
        failure_threshold: 1,
        handler: Some(v1::Handler::default()),
        ..v1::Probe::default()
    };
    spec.containers[0].readiness = Some(probe.clone());
    spec.containers[0].liveness = Some(probe);
    node.want(spec);
    node.settle();
    assert!(is_ready(&node));
    node.change("u", |spec| spec.stop_grace_seconds = Some(30));
    // It takes its time to end.
    let term = |a: &Action| matches!(a, Action::Signal { .. });
    assert_eq!(begin_all(&mut node, term).len(), 1);
    node.log.clear();
    for _ in 0..3 {
        node.now = node.now + 1_000;
        begin_all(&mut node, term);
        assert!(is_ready(&node));
    }
    let probed = |kind| node.places(|a| matches!(a, Action::Probe { kind: k, .. } if *k == kind));
    assert_eq!(probed(Kind::Readiness).len(), 3);
    assert_eq!(probed(Kind::Liveness).len(), 0, "nothing is left to decide");
    // It drains.
    node.take(Outcome::Probed {
        instance: instance(0),
        kind: Kind::Readiness,
        result: Err("503".into()),
    });
    assert!(!is_ready(&node));
    node.exit("u", "c0", 0);
    assert!(!is_ready(&node));
}

/// Signals that an instance that is deaf to SIGTERM gets, milliseconds after `cause`.
fn signals_after(grace_s: i64, cause: impl Fn(&mut Node)) -> Vec<(i64, i32)> {
    let mut node = Node::new();
    let mut spec = pod_spec("u", 1);
    spec.termination_grace_period_seconds = grace_s;
    spec.containers[0].liveness = Some(v1::Probe {
        period_seconds: 1000,
        failure_threshold: 1,
        handler: Some(v1::Handler::default()),
        ..v1::Probe::default()
    });
    node.want(spec);
    node.settle();
    cause(&mut node);
    let began = node.now;
    let mut seen = Vec::new();
    while !seen.iter().any(|(_, signal)| *signal == 9) {
        let held = begin_all(&mut node, |a| matches!(a, Action::Signal { .. }));
        for action in held {
            if let Action::Signal { signal, .. } = action {
                seen.push((node.now - began, signal));
            }
        }
        let (desired, observed) = (&node.desired, &node.observed);
        let wake = pod::plan("u", desired, observed, &settings(), node.moment()).wake;
        node.now = wake.expect("it goes on");
    }
    seen
}

#[test]
fn sigterm_comes_first_whatever_ends_a_container() {
    let image = |node: &mut Node| node.change("u", |s| s.containers[0].image = "other".into());
    let liveness = |node: &mut Node| {
        node.take(Outcome::Probed {
            instance: instance(0),
            kind: Kind::Liveness,
            result: Err("refused".into()),
        });
    };
    let own = |seconds: i64| {
        move |node: &mut Node| {
            node.change("u", |spec| {
                let probe = spec.containers[0].liveness.as_mut().unwrap();
                probe.termination_grace_period_seconds = Some(seconds);
            });
            node.settle();
            liveness(node);
        }
    };
    let then = |ms| vec![(0, 15), (ms, 9)];
    for (grace_s, ms) in [(0, 2_000), (1, 2_000), (2, 2_000), (3, 3_000)] {
        assert_eq!(signals_after(grace_s, image), then(ms), "{grace_s}");
        assert_eq!(signals_after(grace_s, liveness), then(ms), "{grace_s}");
        // The probe's own grace counts, not the pod's.
        assert_eq!(signals_after(60, own(grace_s)), then(ms), "{grace_s}");
    }
}

#[test]
fn a_corrected_image_does_not_wait_for_the_delay_of_the_bad_one() {
    let mut node = Node::new();
    node.want(pod_spec("u", 2));
    node.settle();
    for _ in 0..3 {
        node.exit("u", "c0", 1);
        node.exit("u", "c1", 1);
        node.pass(5_000);
        node.now = node.now + 20_000;
        node.settle();
    }
    node.exit("u", "c0", 1);
    node.exit("u", "c1", 1);
    node.settle();
    assert_eq!(node.waiting("u", 0), "CrashLoopBackOff");
    assert_eq!(node.waiting("u", 1), "CrashLoopBackOff");
    node.change("u", |spec| spec.containers[0].image = "corrected".into());
    node.settle();
    assert_eq!(node.waiting("u", 0), "Running");
    assert_eq!(
        node.waiting("u", 1),
        "CrashLoopBackOff",
        "not the other one"
    );
    assert_eq!(images(&node, "c0").last().unwrap(), "corrected");
    // Its delays begin anew.
    node.exit("u", "c0", 1);
    node.settle();
    assert_eq!(
        node.observed.pods["u"].containers["c0"].backoff.delay_ms,
        10_000
    );
    node.pass(10_000);
    assert_eq!(node.waiting("u", 0), "Running");
}

/// A pod that has finished; what of it holds has not been done.
fn finished(holds: impl Fn(&Action) -> bool) -> Node {
    let mut node = Node::new();
    let mut spec = pod_spec("u", 1);
    spec.restart_policy = "Never".into();
    node.want(spec);
    node.settle();
    node.exit("u", "c0", 0);
    begin_all(&mut node, holds);
    node
}

#[test]
fn an_agent_that_starts_anew_leaves_a_pod_alone_that_is_finished_and_removed() {
    let mut node = finished(|_| false);
    assert_eq!(node.phase("u"), "Succeeded");
    restart_agent(&mut node, "u");
    node.log.clear();
    assert!(node.observed.pods["u"].is_told());
    assert_eq!(node.phase("u"), "Succeeded", "at once");
    node.pass(1_000_000);
    assert_eq!(node.log, []);
}

#[test]
fn a_finished_pods_sandbox_that_is_gone_is_no_news() {
    // The agent died while it removed the sandbox.
    let mut node = finished(removes);
    assert_eq!(node.phase("u"), "Running", "its address is not free yet");
    restart_agent(&mut node, "u");
    assert_eq!(begin_all(&mut node, asks).len(), 1);
    let now = node.moment();
    let answer = Outcome::ShimAnswered {
        uid: "u".into(),
        listens: false,
        answer: Answer::Dead,
    };
    let notes = node.observed.take(answer, &settings(), now);
    assert_eq!(notes, [], "it is not re-created");
    node.settle();
    assert_eq!(node.phase("u"), "Succeeded");
    assert_eq!(node.observed.pods["u"].teardown.sandbox, step::Step::Ready);
}

#[test]
fn the_record_of_a_pod_is_not_written_into_folders_that_go() {
    let mut node = finished(|_| false);
    node.change("u", |spec| spec.stop_grace_seconds = Some(30));
    let folders = |a: &Action| matches!(a, Action::RemoveFolders { .. });
    let records = |a: &Action| matches!(a, Action::Record { .. });
    node.log.clear();
    assert_eq!(begin_all(&mut node, folders).len(), 1);
    assert_eq!(node.places(records).len(), 0);
}

#[test]
fn a_removal_that_is_on_its_way_is_waited_for_when_the_pod_is_stopped() {
    let mut node = Node::new();
    node.want(pod_spec("u", 1));
    node.settle();
    super::reboot::reboot(&mut node, "u");
    let leftovers = |a: &Action| matches!(a, Action::RemoveLeftovers { .. });
    let held = begin_all(&mut node, leftovers);
    assert_eq!(held.len(), 1);
    node.change("u", |spec| spec.stop_grace_seconds = Some(30));
    assert_eq!(begin_all(&mut node, removes), [], "two removals at a time");
    let done = success(&held[0], node.moment()).unwrap();
    assert!(matches!(
        done,
        Outcome::Part {
            part: Part::NoLeftovers,
            ..
        }
    ));
    node.take(done);
    assert_eq!(begin_all(&mut node, removes).len(), 1);
}

#[test]
fn a_start_that_the_shim_is_at_already_is_not_a_failure() {
    // Begun by an agent before this one, by a call that was given up, or by a shim whose
    // list calls it created.
    for listed in [Life::Starting, Life::Created] {
        let mut node = Node::new();
        node.want(pod_spec("u", 1));
        let held = begin_all(&mut node, starts);
        assert_eq!(held.len(), 1);
        node.take(Outcome::Started {
            instance: instance(0),
            result: Err(Refusal::Begun("not waiting to be started".into())),
        });
        assert_eq!(begin_all(&mut node, asks).len(), 1);
        node.take(Outcome::ShimAnswered {
            uid: "u".into(),
            listens: false,
            answer: Answer::Alive(vec![crate::outcome::Found {
                container: "c0".into(),
                attempt: 0,
                life: listed.clone(),
            }]),
        });
        node.log.clear();
        node.settle();
        assert_eq!(node.places(starts).len(), 0, "{listed:?}");
        let started = Outcome::Started {
            instance: instance(0),
            result: Ok(node.moment()),
        };
        // Told by the shim's watch; a second time by a call's late answer.
        let now = node.moment();
        let notes = node.observed.take(started.clone(), &settings(), now);
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert_eq!(node.observed.take(started, &settings(), now), []);
        assert_eq!(node.phase("u"), "Running");
        assert_eq!(node.status("u").containers[0].restart_count, 0);
    }
}

#[test]
fn a_program_that_never_begins_does_not_keep_its_pod() {
    let mut node = Node::new();
    node.want(pod_spec("u", 1));
    assert_eq!(begin_all(&mut node, starts).len(), 1);
    node.change("u", |spec| spec.stop_grace_seconds = Some(30));
    let began = node.now;
    node.pass(29_999);
    let killed = |a: &Action| matches!(a, Action::Signal { .. });
    assert!(node.places(killed).is_empty());
    node.pass(10_000);
    assert_eq!(node.places(killed).len(), 1);
    assert!(node.observed.pods.is_empty(), "{:?}", node.now - began);
}

/// A pod that runs, with this deadline.
fn limited(seconds: i64) -> Node {
    let mut node = Node::new();
    let mut spec = pod_spec("u", 1);
    spec.active_deadline_seconds = Some(seconds);
    node.want(spec);
    node.settle();
    assert_eq!(node.phase("u"), "Running");
    node
}

fn signals(node: &mut Node) -> Vec<i32> {
    let held = begin_all(node, |a| matches!(a, Action::Signal { .. }));
    let mut signals = Vec::new();
    for action in held {
        if let Action::Signal { signal, .. } = action {
            signals.push(signal);
        }
    }
    signals
}

fn next_wake(node: &Node) -> Option<Monotonic> {
    let (desired, observed) = (&node.desired, &node.observed);
    pod::plan("u", desired, observed, &settings(), node.moment()).wake
}

#[test]
fn a_pod_whose_active_deadline_is_over_is_ended_with_grace_and_fails() {
    let mut node = limited(60);
    let began = node.now;
    assert_eq!(next_wake(&node), Some(began + 60_000));
    node.now = began + 59_999;
    node.wall += 3_600_000;
    assert_eq!(signals(&mut node), [0; 0], "the wall clock is not asked");
    node.now = began + 60_000;
    assert_eq!(signals(&mut node), [15]);
    let status = node.status("u");
    assert_eq!(
        (status.phase.as_str(), status.reason.as_str()),
        ("Running", "DeadlineExceeded")
    );
    node.now = began + 60_000 + 29_999;
    assert_eq!(signals(&mut node), [0; 0]);
    node.now = began + 60_000 + 30_000;
    assert_eq!(signals(&mut node), [9]);
    node.exit("u", "c0", 137);
    node.settle();
    let status = node.status("u");
    assert_eq!(
        (status.phase.as_str(), status.reason.as_str()),
        ("Failed", "DeadlineExceeded")
    );
    // It is not restarted, by this agent or the next one.
    node.pass(600_000);
    restart_agent(&mut node, "u");
    node.pass(600_000);
    assert_eq!(node.places(starts).len(), 1);
    assert_eq!(node.status("u").reason, "DeadlineExceeded");
}

#[test]
fn an_active_deadline_is_added_and_shortened_while_the_pod_runs() {
    let mut node = Node::new();
    node.want(pod_spec("u", 1));
    node.settle();
    let began = node.now;
    node.pass(100_000);
    node.change("u", |spec| spec.active_deadline_seconds = Some(300));
    assert_eq!(signals(&mut node), [0; 0]);
    assert_eq!(next_wake(&node), Some(began + 300_000));
    // Over already: the grace begins now all the same.
    node.change("u", |spec| spec.active_deadline_seconds = Some(50));
    assert_eq!(signals(&mut node), [15]);
    node.now = node.now + 29_999;
    assert_eq!(signals(&mut node), [0; 0]);
    // What ended by itself in time keeps its phase.
    let mut node = limited(60);
    node.change("u", |spec| spec.restart_policy = "Never".into());
    node.settle();
    node.exit("u", "c0", 0);
    node.pass(600_000);
    assert_eq!(
        (node.phase("u"), node.status("u").reason),
        ("Succeeded".into(), String::new())
    );
}

#[test]
fn an_active_deadline_goes_on_over_restarts_and_reboots() {
    let node = limited(60);
    let began = node.observed.pods["u"].seen;
    // The agent is away for a while, and somebody sets the clock.
    let mut later = limited(60);
    later.now = later.now + 20_000;
    later.wall -= 7_200_000;
    assert_eq!(later.restored("u", "boot").seen.monotonic, began.monotonic);
    // Monotonic time begins anew; what went by meanwhile counts.
    let mut rebooted = node;
    let wall = rebooted.moment().wall.ms();
    rebooted.now = Monotonic::from_ms(5_000);
    rebooted.wall = wall + 25_000 - 5_000;
    let seen = rebooted.restored("u", "another boot").seen;
    assert_eq!(seen.monotonic, Monotonic::from_ms(5_000 - 25_000));
    assert_eq!(seen.wall, began.wall);
}
