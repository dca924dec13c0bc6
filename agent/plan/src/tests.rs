//! Whole nodes under the model of `simulate.rs`: plans converge, then are quiet,
//! and pods live the lives that Kubernetes describes.

use std::sync::Arc;

use proptest::prelude::*;
use proto::v1;

use crate::action::{Action, Instance};
use crate::outcome::{ImageFailure, Outcome, Refusal};
use crate::record::Kept;
use crate::simulate::{pod_spec, settings, simulate, success};
use crate::status;
use crate::time::{Moment, Monotonic, Wall};
use crate::world::{Desired, Exit, Finished, ImageReason, Life, Observed, Pod};
use crate::{plan, pod};

mod contact;
mod environment;
mod late;
mod life;
mod machine;
mod reboot;

/// A node, its wishes and its clock.
struct Node {
    desired: Desired,
    observed: Observed,
    now: Monotonic,
    /// The wall clock, set to this many milliseconds more than `now`.
    wall: i64,
    /// Every action, in order.
    log: Vec<Action>,
    /// Images that no registry has.
    missing: bool,
    /// Commands that no image has.
    no_command: bool,
}

impl Node {
    fn new() -> Node {
        let desired = Desired {
            complete: true,
            ..Desired::default()
        };
        Node {
            desired,
            observed: Observed::default(),
            now: Monotonic::from_ms(1_000_000),
            wall: 1_700_000_000_000,
            log: Vec::new(),
            missing: false,
            no_command: false,
        }
    }

    fn moment(&self) -> Moment {
        let ms = self.now.ms();
        Moment::from_ms(ms, ms + self.wall)
    }

    fn want(&mut self, spec: v1::PodSpec) {
        self.desired.pods.insert(spec.uid.clone(), Arc::new(spec));
    }

    fn change(&mut self, uid: &str, change: impl FnOnce(&mut v1::PodSpec)) {
        let mut spec = (*self.desired.pods[uid]).clone();
        change(&mut spec);
        spec.generation += 1;
        self.want(spec);
    }

    /// Begins an action and lets it succeed.
    fn run(&mut self, action: &Action) {
        self.log.push(action.clone());
        let now = self.moment();
        simulate(&mut self.observed, action, now);
    }

    /// Begins what is due now; what of it holds is on its way, the rest succeeds.
    fn begin(&mut self, holds: impl Fn(&Action) -> bool) -> Vec<Action> {
        let (actions, _) = plan(&self.desired, &self.observed, &settings(), self.moment());
        let mut held = Vec::new();
        for action in actions {
            if holds(&action) {
                self.log.push(action.clone());
                self.observed.begin(&action, &settings());
                held.push(action);
            } else {
                self.run(&action);
            }
        }
        held
    }

    /// Takes an outcome in.
    fn take(&mut self, outcome: Outcome) {
        let now = self.moment();
        self.observed.take(outcome, &settings(), now);
    }

    /// What an agent that starts anew makes of the pod's record, under a boot id.
    fn restored(&self, uid: &str, boot_id: &str) -> Pod {
        let record = crate::record::of(&self.observed.pods[uid], "boot");
        crate::record::restore(record, Kept::Whole, boot_id, self.moment()).unwrap()
    }

    /// Lets all happen that needs no time.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "two outcomes are made to fail"
    )]
    fn settle(&mut self) {
        for _ in 0..500 {
            let (actions, _) = plan(&self.desired, &self.observed, &settings(), self.moment());
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.log.push(action.clone());
                if let Action::DeleteContainer { instance } = &action {
                    let c = &self.observed.pods[&instance.uid].containers[&instance.container];
                    let over = matches!(c.life, Life::Exited(_) | Life::Refused { .. });
                    assert!(instance.attempt < c.attempt || over, "{instance:?} lives");
                }
                let pull = matches!(action, Action::PullImage { .. });
                let start = matches!(action, Action::StartContainer { .. });
                if !(pull && self.missing || start && self.no_command) {
                    let now = self.moment();
                    simulate(&mut self.observed, &action, now);
                    continue;
                }
                self.observed.begin(&action, &settings());
                let good = success(&action, self.moment()).unwrap();
                let failed = match good {
                    Outcome::ImagePulled {
                        instance,
                        image,
                        took_ms,
                        ..
                    } => {
                        let failure = ImageFailure {
                            reason: ImageReason::Pull,
                            message: "not found".into(),
                        };
                        Outcome::ImagePulled {
                            instance,
                            image,
                            took_ms,
                            result: Err(failure),
                        }
                    }
                    Outcome::Started { instance, .. } => Outcome::Started {
                        instance,
                        result: Err(Refusal::Command("no such file".into())),
                    },
                    other => other,
                };
                self.observed.take(failed, &settings(), self.moment());
            }
        }
        panic!(
            "does not converge: {:?}",
            self.log.iter().rev().take(8).collect::<Vec<_>>()
        );
    }

    /// Lets so much time pass, stopping wherever something becomes due.
    fn pass(&mut self, ms: i64) {
        let end = self.now + ms;
        loop {
            self.settle();
            let wake = self
                .desired
                .pods
                .keys()
                .chain(self.observed.pods.keys())
                .filter_map(|uid| {
                    pod::plan(
                        uid,
                        &self.desired,
                        &self.observed,
                        &settings(),
                        self.moment(),
                    )
                    .wake
                })
                .min();
            match wake {
                Some(wake) if wake <= end => {
                    assert!(
                        wake > self.now,
                        "a wake that is due is no wake: {wake:?} {:?}",
                        self.now
                    );
                    self.now = wake;
                }
                Some(_) | None => break,
            }
        }
        self.now = end;
    }

    fn exit(&mut self, uid: &str, container: &str, code: i32) {
        let attempt = self.observed.pods[uid].containers[container].attempt;
        let instance = Instance {
            uid: uid.into(),
            container: container.into(),
            attempt,
        };
        let reason = if code == 0 { "Completed" } else { "Error" };
        let exit = Exit {
            code,
            reason: reason.into(),
            finished: self.moment(),
            attempt,
            ..Exit::default()
        };
        self.observed.take(
            Outcome::Exited { instance, exit },
            &settings(),
            self.moment(),
        );
    }

    fn status(&self, uid: &str) -> v1::PodStatus {
        status::of(&self.observed.pods[uid], &settings(), self.moment())
    }

    fn phase(&self, uid: &str) -> String {
        self.status(uid).phase
    }

    fn waiting(&self, uid: &str, at: usize) -> String {
        match self.status(uid).containers[at]
            .state
            .clone()
            .unwrap()
            .state
            .unwrap()
        {
            v1::container_state::State::Waiting(waiting) => waiting.reason,
            v1::container_state::State::Running(_) => "Running".into(),
            v1::container_state::State::Terminated(ended) => ended.reason,
        }
    }

    /// Places in the log of the actions that this finds.
    fn places(&self, find: impl Fn(&Action) -> bool) -> Vec<usize> {
        self.log
            .iter()
            .enumerate()
            .filter(|(_, a)| find(a))
            .map(|(i, _)| i)
            .collect()
    }
}

fn creates(container: &str) -> impl Fn(&Action) -> bool {
    move |a| matches!(a, Action::CreateContainer { instance, .. } if instance.container == container)
}

#[test]
fn a_pod_comes_up_and_its_address_is_live_before_its_first_instruction() {
    let mut node = Node::new();
    node.want(pod_spec("u", 2));
    node.settle();
    assert_eq!(node.phase("u"), "Running");
    let record = node.places(|a| matches!(a, Action::Record { .. }));
    let endpoint = node.places(|a| matches!(a, Action::PutEndpoint { .. }));
    let programs = node.places(|a| matches!(a, Action::AttachPrograms { .. }));
    let start = node.places(|a| matches!(a, Action::StartContainer { .. }));
    assert!(record[0] < node.places(|a| matches!(a, Action::StartShim { .. }))[0]);
    assert!(endpoint[0] < programs[0] && programs[0] < start[0]);
}

#[test]
fn a_stop_ends_containers_then_removes_all_and_says_so_once() {
    let mut node = Node::new();
    node.want(pod_spec("u", 1));
    node.settle();
    node.change("u", |spec| spec.stop_grace_seconds = Some(30));
    node.settle();
    let ordered = [
        node.places(|a| matches!(a, Action::Signal { signal: 15, .. })),
        node.places(|a| matches!(a, Action::DeleteEndpoint { .. })),
        node.places(|a| matches!(a, Action::RemoveSandbox { .. })),
        node.places(|a| matches!(a, Action::RemoveFolders { .. })),
        node.places(|a| matches!(a, Action::ReportGone { .. })),
    ];
    assert!(ordered.iter().all(|p| p.len() == 1), "{ordered:?}");
    assert!(ordered.is_sorted());
    assert!(node.observed.pods.is_empty() && node.observed.endpoints.entries.is_empty());
    // While the control plane still lists it, it does not come back.
    node.pass(60_000);
    assert!(node.observed.pods.is_empty());
    node.desired.pods.clear();
    node.settle();
    assert!(node.observed.gone.is_empty());
}

#[test]
fn a_container_that_ignores_sigterm_is_killed_after_its_grace() {
    let mut node = Node::new();
    node.want(pod_spec("u", 1));
    node.settle();
    node.change("u", |spec| spec.stop_grace_seconds = Some(5));
    let begin = |node: &mut Node| {
        let (actions, _) = plan(&node.desired, &node.observed, &settings(), node.moment());
        for action in &actions {
            let asks = matches!(action, Action::Signal { signal: 15, .. });
            if asks {
                node.observed.begin(action, &settings());
            } else {
                let now = node.moment();
                simulate(&mut node.observed, action, now);
            }
        }
        actions
    };
    let mut asked = 0;
    for _ in 0..20 {
        asked += begin(&mut node)
            .iter()
            .filter(|a| matches!(a, Action::Signal { .. }))
            .count();
    }
    assert_eq!(asked, 1);
    let wake = pod::plan(
        "u",
        &node.desired,
        &node.observed,
        &settings(),
        node.moment(),
    )
    .wake;
    assert_eq!(wake, Some(node.now + 5_000));
    node.now = node.now + 5_000;
    let killed = begin(&mut node);
    assert!(
        matches!(
            killed[..],
            [Action::Signal {
                signal: 9,
                all: true,
                ..
            }]
        ),
        "{killed:?}"
    );
}

#[test]
fn init_containers_run_in_order_and_sidecars_stay() {
    let mut node = Node::new();
    let mut spec = pod_spec("u", 1);
    let mut init = pod_spec("x", 3).containers;
    for (i, c) in init.iter_mut().enumerate() {
        c.name = format!("i{i}");
    }
    init[1].restart_policy = "Always".into();
    spec.init_containers = init;
    node.want(spec);
    node.settle();
    assert_eq!(node.waiting("u", 0), "PodInitializing");
    assert!(node.places(creates("i1")).is_empty());
    node.exit("u", "i0", 0);
    node.settle();
    // The sidecar runs; the next one does not wait for its end.
    assert_eq!(node.places(creates("i2")).len(), 1);
    assert!(node.places(creates("c0")).is_empty());
    node.exit("u", "i2", 0);
    node.settle();
    assert_eq!(node.phase("u"), "Running");
    // A sidecar that ends comes back, and nothing else is touched.
    node.exit("u", "i1", 1);
    node.settle();
    assert_eq!(node.places(creates("i1")).len(), 2);
    assert_eq!(node.places(creates("c0")).len(), 1);
}

/// A pod of one container behind a sidecar.
fn with_sidecar() -> v1::PodSpec {
    let mut spec = pod_spec("u", 1);
    let mut sidecar = pod_spec("x", 1).containers.remove(0);
    sidecar.name = "side".into();
    sidecar.restart_policy = "Always".into();
    spec.init_containers = vec![sidecar];
    spec
}

#[test]
fn a_sidecar_that_never_started_does_not_unblock_the_pod() {
    let mut node = Node::new();
    node.no_command = true;
    node.want(with_sidecar());
    node.pass(100_000);
    assert!(node.places(creates("side")).len() > 2);
    assert!(node.places(creates("c0")).is_empty());
    assert_eq!(node.waiting("u", 0), "PodInitializing");
    node.no_command = false;
    node.pass(600_000);
    assert_eq!(node.phase("u"), "Running");
}

#[test]
fn a_sidecar_that_falls_later_holds_nothing_back() {
    let mut node = Node::new();
    node.want(with_sidecar());
    node.settle();
    // It falls again and again, and waits for its back-off when the other one falls.
    for _ in 0..3 {
        node.exit("u", "side", 1);
        node.settle();
    }
    node.exit("u", "c0", 1);
    node.settle();
    assert_eq!(node.waiting("u", 0), "Running");
    assert_eq!(node.status("u").containers[0].restart_count, 1);
    // Neither does an agent that starts anew forget it.
    let back = node.restored("u", "boot");
    assert!(crate::init::initialized(&back));
}

/// A volume of one file.
fn files(data: &str) -> v1::Volume {
    v1::Volume {
        name: "conf".into(),
        source: Some(v1::volume::Source::Files(v1::volume::Files {
            files: vec![v1::File {
                path: "key".into(),
                data: data.into(),
                mode: 0o644,
            }],
            ..Default::default()
        })),
    }
}

#[test]
fn a_config_map_that_changes_while_its_files_are_written_is_written_again() {
    let mut node = Node::new();
    let mut spec = pod_spec("u", 1);
    spec.volumes = vec![files("old")];
    node.want(spec);
    let mut written = Vec::new();
    for round in 0..50 {
        let (actions, _) = plan(&node.desired, &node.observed, &settings(), node.moment());
        if actions.is_empty() {
            break;
        }
        for action in actions {
            node.observed.begin(&action, &settings());
            if let Action::MakeVolumes { spec, .. } = &action {
                written.push(spec.volumes.clone());
            }
            if written.len() == 1 && matches!(action, Action::MakeVolumes { .. }) {
                // The change comes before the answer.
                node.change("u", |spec| spec.volumes = vec![files("new")]);
                let (actions, _) = plan(&node.desired, &node.observed, &settings(), node.moment());
                for action in actions {
                    let again = matches!(action, Action::MakeVolumes { .. });
                    assert!(!again, "two writers of the same files");
                    node.run(&action);
                }
            }
            if let Some(outcome) = success(&action, node.moment()) {
                node.observed.take(outcome, &settings(), node.moment());
            }
        }
        assert!(round < 49, "does not converge");
    }
    assert_eq!(written, [vec![files("old")], vec![files("new")]]);
    assert_eq!(node.phase("u"), "Running");
}

/// Images of a container's instances, in the order in which they were made.
fn images(node: &Node, container: &str) -> Vec<String> {
    let of = |action: &Action| {
        if let Action::PullImage {
            instance, image, ..
        } = action
        {
            (instance.container == container).then(|| image.clone())
        } else {
            None
        }
    };
    node.log.iter().filter_map(of).collect()
}

#[test]
fn an_image_that_changes_restarts_its_container_and_no_other() {
    for policy in ["Always", "OnFailure", "Never"] {
        let mut node = Node::new();
        let mut spec = pod_spec("u", 2);
        spec.restart_policy = policy.into();
        node.want(spec);
        node.settle();
        node.change("u", |spec| spec.containers[0].image = "other".into());
        node.settle();
        let status = node.status("u");
        assert_eq!(node.phase("u"), "Running", "{policy}");
        let counts: Vec<u32> = status.containers.iter().map(|c| c.restart_count).collect();
        assert_eq!(counts, [1, 0], "{policy}");
        assert_eq!(images(&node, "c0"), ["busybox", "other"], "{policy}");
        assert_eq!(images(&node, "c1"), ["busybox"], "{policy}");
        let signals = node.places(|a| matches!(a, Action::Signal { signal: 15, .. }));
        assert_eq!(signals.len(), 1, "it ends within its grace");
        // Restarted for that, it is not in a crash loop.
        node.exit("u", "c1", 1);
        node.pass(1_000_000);
        assert_eq!(images(&node, "c0").len(), 2, "{policy}");
    }
}

#[test]
fn an_image_that_changes_takes_effect_wherever_the_container_is() {
    // Not found yet: the new one is looked for at once, not after the back-off.
    let mut node = Node::new();
    node.missing = true;
    node.want(pod_spec("u", 1));
    node.pass(100_000);
    node.missing = false;
    node.change("u", |spec| spec.containers[0].image = "other".into());
    node.settle();
    assert_eq!(node.phase("u"), "Running");
    assert_eq!(node.status("u").containers[0].restart_count, 0);

    // Being pulled: what comes of the old one does not count.
    let mut node = Node::new();
    node.want(pod_spec("u", 1));
    let mut pull = None;
    while pull.is_none() {
        let (actions, _) = plan(&node.desired, &node.observed, &settings(), node.moment());
        for action in actions {
            if matches!(action, Action::PullImage { .. }) {
                node.observed.begin(&action, &settings());
                pull = Some(action);
            } else {
                node.run(&action);
            }
        }
    }
    node.change("u", |spec| spec.containers[0].image = "other".into());
    let (actions, _) = plan(&node.desired, &node.observed, &settings(), node.moment());
    for action in actions {
        node.run(&action);
    }
    let late = success(&pull.unwrap(), node.moment()).unwrap();
    node.observed.take(late, &settings(), node.moment());
    node.settle();
    assert_eq!(images(&node, "c0"), ["other"]);
    assert_eq!(node.observed.pods["u"].containers["c0"].made_from, "other");

    // The agent dies while the old instance is being ended: its successor goes on.
    let mut node = Node::new();
    let mut spec = pod_spec("u", 1);
    spec.restart_policy = "Never".into();
    node.want(spec);
    node.settle();
    node.change("u", |spec| spec.containers[0].image = "other".into());
    let (actions, _) = plan(&node.desired, &node.observed, &settings(), node.moment());
    for action in actions {
        node.run(&action);
    }
    contact::restart_agent(&mut node, "u");
    node.settle();
    assert_eq!(node.phase("u"), "Running");
    assert_eq!(node.status("u").containers[0].restart_count, 1);
}

#[test]
fn a_finished_job_ends_its_sidecars_and_keeps_its_phase() {
    let mut node = Node::new();
    let mut spec = pod_spec("u", 1);
    spec.restart_policy = "Never".into();
    let mut sidecar = pod_spec("x", 1).containers.remove(0);
    sidecar.name = "side".into();
    sidecar.restart_policy = "Always".into();
    spec.init_containers = vec![sidecar];
    node.want(spec);
    node.settle();
    node.exit("u", "c0", 3);
    node.settle();
    assert_eq!(node.phase("u"), "Failed");
    assert_eq!(node.observed.pods["u"].finished, Some(Finished::Failed));
    assert!(matches!(
        node.observed.pods["u"].containers["side"].life,
        Life::Exited(_)
    ));
    assert!(node.observed.endpoints.entries.is_empty());
    node.pass(600_000);
    assert_eq!(node.places(creates("c0")).len(), 1);
    assert_eq!(node.phase("u"), "Failed");
}

#[test]
fn crash_loops_are_held_back_and_counted() {
    let mut node = Node::new();
    node.want(pod_spec("u", 1));
    node.settle();
    let mut waits = Vec::new();
    for _ in 0..4 {
        node.exit("u", "c0", 1);
        node.settle();
        let reason = node.waiting("u", 0);
        let began = node.now;
        while node.waiting("u", 0) != "Running" {
            let wake = pod::plan(
                "u",
                &node.desired,
                &node.observed,
                &settings(),
                node.moment(),
            )
            .wake;
            node.now = wake.unwrap();
            node.settle();
        }
        waits.push((reason, node.now - began));
    }
    let text = |reason: &str, ms| (reason.to_owned(), ms);
    assert_eq!(
        waits,
        [
            text("Running", 0),
            text("CrashLoopBackOff", 10_000),
            text("CrashLoopBackOff", 20_000),
            text("CrashLoopBackOff", 40_000)
        ]
    );
    assert_eq!(node.status("u").containers[0].restart_count, 4);
}

#[test]
fn an_image_that_is_not_there_is_tried_again_with_delays() {
    let mut node = Node::new();
    node.missing = true;
    node.want(pod_spec("u", 1));
    node.settle();
    assert_eq!(node.waiting("u", 0), "ErrImagePull");
    node.pass(9_000);
    assert_eq!(node.waiting("u", 0), "ImagePullBackOff");
    node.pass(1_000 + 20_000 + 40_000);
    assert_eq!(
        node.places(|a| matches!(a, Action::PullImage { .. })).len(),
        4
    );
    node.missing = false;
    node.pass(80_000);
    assert_eq!(node.phase("u"), "Running");
}

#[test]
fn a_command_that_does_not_exist_is_start_error_then_crash_loop() {
    let mut node = Node::new();
    node.no_command = true;
    let mut spec = pod_spec("u", 1);
    spec.restart_policy = "Never".into();
    node.want(spec);
    node.settle();
    assert_eq!(node.waiting("u", 0), "StartError");
    assert_eq!(node.phase("u"), "Failed");
    let mut spec = pod_spec("v", 1);
    spec.ips = vec!["10.244.1.6".into()];
    node.want(spec);
    node.settle();
    assert_eq!(node.waiting("v", 0), "CrashLoopBackOff");
    assert_eq!(node.status("v").containers[0].restart_count, 1);
}

#[test]
fn a_config_error_waits_with_its_reason() {
    let mut node = Node::new();
    let mut spec = pod_spec("u", 1);
    spec.containers[0].config_error = "configmap \"x\" not found".into();
    node.want(spec);
    node.settle();
    assert_eq!(node.waiting("u", 0), "CreateContainerConfigError");
    // Refused again and again: the next try is minutes away, but it does not wait for that.
    node.pass(1_000_000);
    assert_eq!(node.waiting("u", 0), "CreateContainerConfigError");
    node.change("u", |spec| spec.containers[0].config_error.clear());
    node.settle();
    assert_eq!(node.phase("u"), "Running");
}

#[test]
fn a_lost_shim_is_replaced_and_its_containers_restarted() {
    let mut node = Node::new();
    node.want(pod_spec("u", 1));
    node.settle();
    contact::die(&mut node, "u");
    node.settle();
    assert_eq!(node.phase("u"), "Running");
    assert_eq!(
        node.places(|a| matches!(a, Action::StartShim { .. })).len(),
        2
    );
    assert_eq!(node.status("u").containers[0].restart_count, 1);
}

#[test]
fn a_pod_waits_until_what_was_left_of_it_is_removed() {
    let mut node = Node::new();
    node.observed.strays.insert("u".into(), Default::default());
    let removes = |a: &Action| matches!(a, Action::RemoveStray { .. });
    let held = node.begin(removes);
    assert_eq!(held.len(), 1);
    node.want(pod_spec("u", 1));
    node.settle();
    assert!(
        node.observed.pods.is_empty(),
        "it would lose what is made for it"
    );
    let removed = success(&held[0], node.moment()).unwrap();
    node.take(removed);
    node.settle();
    assert_eq!(node.phase("u"), "Running");
}

#[test]
fn nothing_is_ended_before_the_state_is_whole() {
    let mut node = Node::new();
    node.want(pod_spec("u", 1));
    node.settle();
    node.desired.pods.clear();
    node.desired.complete = false;
    node.settle();
    assert_eq!(node.observed.pods.len(), 1);
    node.desired.complete = true;
    node.settle();
    assert!(node.observed.pods.is_empty());
}

#[test]
fn liveness_ends_and_readiness_gates() {
    let mut node = Node::new();
    let mut spec = pod_spec("u", 1);
    let probe = v1::Probe {
        period_seconds: 1,
        failure_threshold: 2,
        success_threshold: 1,
        timeout_seconds: 1,
        handler: Some(v1::Handler::default()),
        ..v1::Probe::default()
    };
    spec.containers[0].liveness = Some(probe.clone());
    spec.containers[0].readiness = Some(probe);
    node.want(spec);
    // The first probes are on their way, and the pod is not ready.
    let ready = |node: &Node| node.status("u").containers[0].ready;
    node.settle();
    assert!(ready(&node));
    let fail = |node: &mut Node, kind| {
        let attempt = node.observed.pods["u"].containers["c0"].attempt;
        let instance = Instance {
            uid: "u".into(),
            container: "c0".into(),
            attempt,
        };
        let result = Err("refused".into());
        node.observed.take(
            Outcome::Probed {
                instance,
                kind,
                result,
            },
            &settings(),
            node.moment(),
        )
    };
    for _ in 0..2 {
        node.now = node.now + 1_000;
        fail(&mut node, crate::probe::Kind::Readiness);
    }
    assert!(!ready(&node));
    for _ in 0..2 {
        node.now = node.now + 1_000;
        fail(&mut node, crate::probe::Kind::Liveness);
    }
    node.settle();
    assert_eq!(node.status("u").containers[0].restart_count, 1);
    assert!(ready(&node));
}

/// What a test may let happen.
#[derive(Debug, Clone)]
enum Step {
    Exit(usize, i32),
    Pass(i64),
    Stop(i64),
    Remove,
    LoseShim,
    LoseConnection,
    Reboot,
    Missing(bool),
    NoCommand(bool),
    /// The wall clock is set.
    SetClock(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_usize..3, prop_oneof![Just(0), Just(1), Just(137)]).prop_map(|(c, code)| Step::Exit(c, code)),
        4 => (1_i64..400_000).prop_map(Step::Pass),
        1 => (0_i64..60).prop_map(Step::Stop),
        1 => Just(Step::Remove),
        1 => Just(Step::LoseShim),
        1 => Just(Step::LoseConnection),
        1 => Just(Step::Reboot),
        1 => any::<bool>().prop_map(Step::Missing),
        1 => any::<bool>().prop_map(Step::NoCommand),
        1 => (-4_000_000_000_000_i64..4_000_000_000_000).prop_map(Step::SetClock),
    ]
}

/// What was done, and when it would have been woken next, without what is only told.
fn due(node: &Node) -> (Vec<Action>, Vec<Option<Monotonic>>) {
    let mut log = node.log.clone();
    for action in &mut log {
        if let Action::Take { now, .. } = action {
            now.wall = Wall::default();
        }
    }
    let wakes = node.observed.pods.keys().map(|uid| {
        pod::plan(
            uid,
            &node.desired,
            &node.observed,
            &settings(),
            node.moment(),
        )
        .wake
    });
    (log, wakes.collect())
}

/// Lets a step happen.
fn let_happen(node: &mut Node, names: &[String], step: &Step) {
    match step {
        Step::Exit(at, code) => {
            let name = &names[at % names.len()];
            let running = node
                .observed
                .pods
                .get("u")
                .is_some_and(|p| matches!(p.containers[name].life, Life::Running { .. }));
            if running {
                node.exit("u", name, *code);
            }
        }
        Step::Pass(ms) => node.pass(*ms),
        Step::Stop(grace) if node.desired.pods.contains_key("u") => {
            node.change("u", |spec| spec.stop_grace_seconds = Some(*grace));
        }
        Step::Stop(_) => {}
        Step::Remove => node.desired.pods.clear(),
        Step::LoseShim => {
            contact::die(node, "u");
        }
        Step::Reboot if node.observed.pods.contains_key("u") => reboot::reboot(node, "u"),
        Step::LoseConnection => node.take(Outcome::ShimLost { uid: "u".into() }),
        Step::Reboot => {}
        Step::Missing(missing) => node.missing = *missing,
        Step::NoCommand(missing) => node.no_command = *missing,
        Step::SetClock(wall) => node.wall = *wall,
    }
    node.settle();
}

/// A pod that lives by all that time does: init containers, probes, back-offs.
fn any_pod(policy: &str, inits: usize, sidecar: bool) -> v1::PodSpec {
    let mut spec = pod_spec("u", 2);
    spec.restart_policy = policy.into();
    spec.init_containers = pod_spec("x", inits).containers;
    for (i, c) in spec.init_containers.iter_mut().enumerate() {
        c.name = format!("i{i}");
        if i == 0 && sidecar {
            c.restart_policy = "Always".into();
        }
    }
    spec
}

fn names(spec: &v1::PodSpec) -> Vec<String> {
    let all = spec.containers.iter().chain(&spec.init_containers);
    all.map(|c| c.name.clone()).collect()
}

proptest! {
    /// Two nodes with the same life, one of which has its wall clock set now and
    /// then, do the same at the same time: no deadline, delay or probe follows it.
    #[test]
    fn a_step_of_the_wall_clock_changes_no_deadline(
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        inits in 0_usize..2,
        probed in any::<bool>(),
        steps in proptest::collection::vec(step(), 0..25),
    ) {
        let mut spec = any_pod(policy, inits, true);
        if probed {
            spec.containers[0].liveness = Some(v1::Probe {
                period_seconds: 100,
                initial_delay_seconds: 5,
                handler: Some(v1::Handler::default()),
                ..v1::Probe::default()
            });
        }
        let names = names(&spec);
        let (mut steady, mut set) = (Node::new(), Node::new());
        for node in [&mut steady, &mut set] {
            node.want(spec.clone());
            node.settle();
        }
        for step in steps {
            let_happen(&mut set, &names, &step);
            if !matches!(step, Step::SetClock(_)) {
                let_happen(&mut steady, &names, &step);
            }
            prop_assert_eq!(due(&steady), due(&set));
        }
    }

    /// Whatever happens to a pod, its plans converge, then are quiet; at the end it
    /// can be removed, and nothing of it is left.
    #[test]
    fn any_life_converges_and_ends(
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        inits in 0_usize..3,
        sidecar in any::<bool>(),
        steps in proptest::collection::vec(step(), 0..25),
    ) {
        let mut node = Node::new();
        let spec = any_pod(policy, inits, sidecar);
        let names = names(&spec);
        node.want(spec);
        node.settle();
        for step in steps {
            let_happen(&mut node, &names, &step);
            let (again, _) = plan(&node.desired, &node.observed, &settings(), node.moment());
            prop_assert_eq!(again, vec![]);
            if let Some(pod) = node.observed.pods.get("u") {
                let status = status::of(pod, &settings(), node.moment());
                prop_assert!(["Pending", "Running", "Succeeded", "Failed"].contains(&status.phase.as_str()));
                // A record that is restored says the same of restarts and ends.
                let record = crate::record::of(pod, "boot");
                let back = crate::record::restore(record.clone(), Kept::Whole, "boot", node.moment()).unwrap();
                for (name, c) in &pod.containers {
                    prop_assert_eq!(back.containers[name].attempt, c.attempt);
                }
                prop_assert_eq!(crate::record::of(&back, "boot"), record);
            }
        }
        node.desired.pods.clear();
        node.pass(120_000);
        prop_assert!(node.observed.pods.is_empty());
        prop_assert!(node.observed.endpoints.entries.is_empty());
        let creates = node.places(|a| matches!(a, Action::CreateContainer { .. })).len();
        let created = |a: &Action| if let Action::CreateContainer { instance, .. } = a {
            Some(instance.clone())
        } else {
            None
        };
        let instances: std::collections::BTreeSet<_> = node.log.iter().filter_map(created).collect();
        prop_assert_eq!(creates, instances.len(), "no instance is made twice");
    }
}

/// A pod's end by its signals and hooks: when, which container, which signal (0: its
/// hook begins). Milliseconds since the stop.
struct Ending {
    node: Node,
    /// Containers that end at SIGTERM.
    polite: &'static [&'static str],
    /// How long each hook takes; longer than it may: it is cut off.
    hook_ms: i64,
    /// Nothing is heard of hooks.
    hooks_lost: bool,
    seen: Vec<(i64, String, i32)>,
}

impl Ending {
    /// A pod of one container "c0" and sidecars "s0", "s1", ..., with hooks or without.
    fn new(sidecars: usize, hooks: bool) -> Ending {
        let mut spec = pod_spec("u", 1);
        spec.init_containers = pod_spec("x", sidecars).containers;
        for (i, c) in spec.init_containers.iter_mut().enumerate() {
            c.name = format!("s{i}");
            c.restart_policy = "Always".into();
        }
        if hooks {
            let all = spec.init_containers.iter_mut().chain(&mut spec.containers);
            all.for_each(|c| c.pre_stop = Some(v1::Handler::default()));
        }
        let mut node = Node::new();
        node.want(spec);
        node.settle();
        assert_eq!(node.phase("u"), "Running");
        Ending {
            node,
            polite: &[],
            hook_ms: 0,
            hooks_lost: false,
            seen: Vec::new(),
        }
    }

    /// Stops the pod, and lets it end. `again`: stopped once more, after so many
    /// milliseconds, with so much grace.
    fn run(mut self, grace_s: i64, again: Option<(i64, i64)>) -> Vec<(i64, String, i32)> {
        let begin = self.node.now;
        self.node
            .change("u", |spec| spec.stop_grace_seconds = Some(grace_s));
        let mut hooks: Vec<(Monotonic, Instance)> = Vec::new();
        let mut again = again.map(|(after, grace)| (begin + after, grace));
        for _ in 0..500 {
            let node = &mut self.node;
            if !node.observed.pods.contains_key("u") {
                return self.seen;
            }
            let now = node.now;
            let moment = node.moment();
            let plan = pod::plan("u", &node.desired, &node.observed, &settings(), moment);
            for action in &plan.actions {
                let since = now - begin;
                if let Action::RunHook {
                    instance,
                    timeout_ms,
                    ..
                } = action
                {
                    self.seen.push((since, instance.container.clone(), 0));
                    node.observed.begin(action, &settings());
                    hooks.push((now + self.hook_ms.min(*timeout_ms), instance.clone()));
                } else if let Action::Signal {
                    instance, signal, ..
                } = action
                {
                    self.seen.push((since, instance.container.clone(), *signal));
                    if *signal == 9 || self.polite.contains(&instance.container.as_str()) {
                        simulate(&mut node.observed, action, moment);
                    } else {
                        node.observed.begin(action, &settings());
                    }
                } else {
                    simulate(&mut node.observed, action, moment);
                }
            }
            if !plan.actions.is_empty() {
                continue;
            }
            let hook = hooks.iter().map(|h| h.0).filter(|_| !self.hooks_lost);
            let stop = again.iter().map(|a| a.0);
            let next = plan.wake.into_iter().chain(hook).chain(stop).min();
            node.now = next.expect("something to wait for");
            if let Some((at, grace)) = again
                && at == node.now
            {
                again = None;
                node.change("u", |spec| spec.stop_grace_seconds = Some(grace));
            }
            let now = node.now;
            for (_, instance) in hooks.extract_if(.., |h| h.0 <= now && !self.hooks_lost) {
                let kind = crate::action::HookKind::PreStop;
                let result = Ok(());
                let done = Outcome::HookDone {
                    instance,
                    kind,
                    result,
                };
                node.observed.take(done, &settings(), node.moment());
            }
        }
        panic!("the pod does not end: {:?}", self.seen);
    }
}

fn signals(list: &[(i64, &str, i32)]) -> Vec<(i64, String, i32)> {
    let one = |(at, name, signal): &(i64, &str, i32)| (*at, (*name).to_owned(), *signal);
    list.iter().map(one).collect()
}

#[test]
fn a_hook_leaves_sigterm_and_two_seconds() {
    // (grace, hook, expected)
    type Expected = &'static [(i64, &'static str, i32)];
    let rows: [(i64, i64, Expected); 8] = [
        // No hook.
        (5, -1, &[(0, "c0", 15), (5_000, "c0", 9)]),
        (2, -1, &[(0, "c0", 15), (2_000, "c0", 9)]),
        // The least that there is.
        (1, -1, &[(0, "c0", 15), (2_000, "c0", 9)]),
        (0, -1, &[(0, "c0", 15), (2_000, "c0", 9)]),
        (
            5,
            3_000,
            &[(0, "c0", 0), (3_000, "c0", 15), (5_000, "c0", 9)],
        ),
        (
            5,
            4_500,
            &[(0, "c0", 0), (4_500, "c0", 15), (6_500, "c0", 9)],
        ),
        (
            5,
            60_000,
            &[(0, "c0", 0), (5_000, "c0", 15), (7_000, "c0", 9)],
        ),
        // A pod has a second, as kubelet has it, whatever was asked for.
        (
            0,
            60_000,
            &[(0, "c0", 0), (1_000, "c0", 15), (3_000, "c0", 9)],
        ),
    ];
    for (grace, hook_ms, expected) in rows {
        let mut ending = Ending::new(0, hook_ms >= 0);
        ending.hook_ms = hook_ms;
        assert_eq!(
            ending.run(grace, None),
            signals(expected),
            "{grace} s, hook {hook_ms} ms"
        );
    }
    let mut lost = Ending::new(0, true);
    lost.hooks_lost = true;
    let expected = [(0, "c0", 0), (5_000, "c0", 15), (7_000, "c0", 9)];
    assert_eq!(lost.run(5, None), signals(&expected), "the hook is lost");
}

#[test]
fn a_second_stop_shortens_the_grace() {
    let hook = |again| {
        let mut ending = Ending::new(0, true);
        ending.hook_ms = 60_000;
        ending.run(30, Some(again))
    };
    let at_once = [(0, "c0", 0), (3_000, "c0", 15), (5_000, "c0", 9)];
    assert_eq!(hook((3_000, 0)), signals(&at_once));
    let sooner = [(0, "c0", 0), (5_000, "c0", 15), (7_000, "c0", 9)];
    assert_eq!(hook((3_000, 5)), signals(&sooner));
    // It was asked long ago.
    let asked = Ending::new(0, false).run(30, Some((20_000, 10)));
    assert_eq!(asked, signals(&[(0, "c0", 15), (20_000, "c0", 9)]));
}

#[test]
fn sidecars_end_after_the_others_in_reverse_order() {
    let mut polite = Ending::new(2, false);
    polite.polite = &["c0", "s0", "s1"];
    let expected = [(0, "c0", 15), (0, "s1", 15), (0, "s0", 15)];
    assert_eq!(polite.run(5, None), signals(&expected));
    // What the others leave of the grace, and two seconds at the least.
    let mut deaf = Ending::new(2, false);
    deaf.polite = &["c0"];
    let expected = [
        (0, "c0", 15),
        (0, "s1", 15),
        (5_000, "s1", 9),
        (5_000, "s0", 15),
        (7_000, "s0", 9),
    ];
    let mut seen = deaf.run(5, None);
    seen.sort_by_key(|s| (s.0, s.1 != "c0", std::cmp::Reverse(s.1.clone())));
    assert_eq!(seen, signals(&expected));
    // A hook of the main container that uses all of it, and hooks of the sidecars
    // that run beside it.
    let mut hooks = Ending::new(1, true);
    hooks.hook_ms = 60_000;
    let expected = [
        (0, "c0", 0),
        (0, "s0", 0),
        (5_000, "c0", 15),
        (5_000, "s0", 15),
        (7_000, "c0", 9),
        (7_000, "s0", 9),
    ];
    assert_eq!(hooks.run(5, None), signals(&expected));
    let at_once = [
        (0, "c0", 0),
        (0, "s0", 0),
        (1_000, "c0", 15),
        (1_000, "s0", 15),
        (3_000, "c0", 9),
        (3_000, "s0", 9),
    ];
    let mut none = Ending::new(1, true);
    none.hook_ms = 60_000;
    assert_eq!(none.run(0, None), signals(&at_once));
}

#[test]
fn a_pod_whose_secrets_were_not_kept_waits_for_the_control_plane() {
    let mut node = Node::new();
    let mut spec = pod_spec("u", 1);
    spec.containers[0].env.push(v1::EnvVar {
        name: "PASSWORD".into(),
        value: "hunter2".into(),
        expand: false,
    });
    node.want(spec.clone());
    node.settle();
    // A reboot: nothing is left but what the disk has.
    let record = crate::record::of(&node.observed.pods["u"], "boot");
    let record = crate::withhold::for_disk(record);
    let pod = crate::record::restore(record, Kept::Whole, "another", node.moment()).unwrap();
    let mut rebooted = Node::new();
    rebooted.desired.pods.insert("u".into(), pod.spec.clone());
    rebooted.observed.pods.insert("u".into(), pod);
    rebooted.pass(600_000);
    assert!(rebooted.places(creates("c0")).is_empty());
    assert_ne!(rebooted.waiting("u", 0), "Running");
    // The control plane sends it again, as it was.
    rebooted.want(spec);
    rebooted.pass(1_000);
    assert_eq!(rebooted.waiting("u", 0), "Running");
    let secret = "PASSWORD=hunter2".to_owned();
    let has_secret = |a: &Action| matches!(a, Action::CreateContainer { create, .. } if create.env.contains(&secret));
    assert_eq!(rebooted.places(has_secret).len(), 1);
    // And one that is stopped needs no secrets for that.
    let mut stopped = Node::new();
    let mut pod = rebooted.observed.pods["u"].clone();
    pod.withheld = true;
    stopped.observed.pods.insert("u".into(), pod);
    stopped.pass(60_000);
    assert!(stopped.observed.pods.is_empty());
}

#[test]
fn one_record_is_written_at_a_time_and_the_newest_last() {
    let mut node = Node::new();
    node.want(pod_spec("u", 1));
    node.settle();
    let plan = |node: &Node| {
        let now = node.moment();
        pod::plan("u", &node.desired, &node.observed, &settings(), now).actions
    };
    let record = || Action::Record { uid: "u".into() };
    let written = |node: &mut Node| {
        let done = success(&record(), node.moment()).unwrap();
        let moment = node.moment();
        node.observed.take(done, &settings(), moment);
    };
    // It changes, is being written, and changes again.
    node.exit("u", "c0", 1);
    assert!(plan(&node).contains(&record()));
    node.observed.begin(&record(), &settings());
    node.observed.pods.get_mut("u").unwrap().record.touch();
    assert!(!plan(&node).contains(&record()), "two at a time");
    written(&mut node);
    assert!(plan(&node).contains(&record()), "the newest is not written");
    node.observed.begin(&record(), &settings());
    written(&mut node);
    assert_eq!(node.observed.pods["u"].record, crate::step::Step::Ready);
}
