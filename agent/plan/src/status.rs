//! A pod as it is to what Kubernetes says of it: phase, conditions, container
//! states and their reasons (pkg/kubelet/kubelet_pods.go, getPhase and
//! convertToAPIContainerStatuses).
//!
//! Called by the daemon's `report.rs` after each change of a pod.

use proto::v1;
use v1::container_state::{Running, State, Waiting};

use crate::container::next_backoff;
use crate::create::role;
use crate::event;
use crate::image;
use crate::init::initialized;
use crate::record::{finished_text, terminated};
use crate::restart::{self, Restart};
use crate::settings::Settings;
use crate::step::Step;
use crate::time::{Moment, Monotonic, Wall};
use crate::world::{Contact, Container, Finished, Image, ImageReason, Life, Pod, container_id};

/// What is told of a pod now.
pub fn of(pod: &Pod, settings: &Settings, now: Moment) -> v1::PodStatus {
    let spec = &pod.spec;
    let initialized = initialized(pod);
    let states = |list: &[v1::ContainerSpec], init: bool| -> Vec<v1::ContainerStatus> {
        let waits_for_init = init || !initialized;
        list.iter()
            .filter_map(|c| {
                let state = pod.containers.get(&c.name)?;
                let waiting = if waits_for_init && !spec.init_containers.is_empty() {
                    "PodInitializing"
                } else {
                    "ContainerCreating"
                };
                Some(container(pod, c, state, waiting, settings, now.monotonic))
            })
            .collect()
    };
    let init_containers = states(&spec.init_containers, true);
    let containers = states(&spec.containers, false);
    let phase = phase(pod, &containers);
    let terminal = pod.finished.is_some();
    let ready = !containers.is_empty() && containers.iter().all(|c| c.ready);
    let sidecars = init_containers
        .iter()
        .zip(&spec.init_containers)
        .filter(|(_, c)| c.restart_policy == "Always")
        .all(|(status, _)| status.ready);
    // One that is to stop is ready for as long as its probes say so: control marks its
    // endpoints as terminating, and they may still serve.
    let ready = ready && sidecars && !terminal;
    let sandboxed = pod.namespaces == Step::Ready
        && pod.shim == Step::Ready
        && (spec.host_network || pod.programs == Step::Ready);
    let address = pod.address().unwrap_or(settings.node_ip).to_string();
    // A link that is made anew leaves the pod its address.
    let ran = pod.containers.values().any(|c| c.life != Life::None);
    let addressed = spec.host_network || pod.link == Step::Ready || ran || terminal;
    let unready = match pod.finished {
        Some(Finished::Succeeded) => Unmet::Completed,
        Some(Finished::Failed | Finished::Overdue { .. }) => Unmet::Failed,
        None => Unmet::Containers(unready(&containers)),
    };
    let gated = if ready {
        Unmet::Gates(spec.readiness_gates.clone())
    } else {
        unready.clone()
    };
    let initialized = initialized || pod.finished == Some(Finished::Succeeded);
    let wanted = [
        (
            "PodReadyToStartContainers",
            (!sandboxed).then_some(Unmet::Sandbox),
        ),
        (
            "Initialized",
            (!initialized).then(|| Unmet::Init(incomplete(pod))),
        ),
        ("ContainersReady", (!ready).then_some(unready)),
        (
            "Ready",
            (!ready || !spec.readiness_gates.is_empty()).then_some(gated),
        ),
    ];
    let conditions = wanted
        .into_iter()
        .map(|(kind, unmet)| condition(pod, kind, unmet.as_ref(), now.wall))
        .collect();
    let (reason, message) = trouble(pod);
    v1::PodStatus {
        uid: spec.uid.clone(),
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        observed_generation: spec.generation,
        phase: phase.into(),
        reason,
        message,
        pod_ips: if addressed { vec![address] } else { Vec::new() },
        host_ip: settings.node_ip.to_string(),
        start_time_ms: pod.seen.wall.ms(),
        conditions,
        init_containers,
        containers,
        qos_class: spec.qos_class.clone(),
    }
}

/// Why the pod failed as a whole, or why the rest of the status is what was known last:
/// reason and message.
fn trouble(pod: &Pod) -> (String, String) {
    if let Some(Finished::Overdue { .. }) = pod.finished {
        return ("DeadlineExceeded".into(), event::OVERDUE.into());
    }
    match &pod.contact {
        Contact::Unknown(silence) if silence.since.is_some() => (
            "ShimNotResponding".into(),
            "The pod's shim does not answer; containers are shown as they were last seen".into(),
        ),
        Contact::Unknown(_) | Contact::Heard => Default::default(),
    }
}

/// Why a condition does not hold.
#[derive(Debug, Clone)]
enum Unmet {
    /// The sandbox is not there.
    Sandbox,
    /// These init containers have yet to do their work.
    Init(Vec<String>),
    /// These containers are not ready.
    Containers(Vec<String>),
    /// The pod has ended well.
    Completed,
    /// The pod has failed.
    Failed,
    /// Others have to set these conditions.
    Gates(Vec<String>),
}

impl Unmet {
    /// In Kubernetes' words: reason and message (pkg/kubelet/status/generate.go).
    fn text(&self) -> (&'static str, String) {
        match self {
            Unmet::Sandbox => ("", String::new()),
            Unmet::Init(names) => (
                "ContainersNotInitialized",
                format!("containers with incomplete status: [{}]", names.join(" ")),
            ),
            Unmet::Containers(names) => (
                "ContainersNotReady",
                format!("containers with unready status: [{}]", names.join(" ")),
            ),
            Unmet::Completed => ("PodCompleted", String::new()),
            Unmet::Failed => ("PodFailed", String::new()),
            Unmet::Gates(conditions) => {
                let texts = conditions.iter().map(|condition| {
                    format!(
                        "corresponding condition of pod readiness gate {condition:?} does not exist."
                    )
                });
                let texts: Vec<String> = texts.collect();
                ("ReadinessGatesNotReady", texts.join(", "))
            }
        }
    }
}

fn unready(containers: &[v1::ContainerStatus]) -> Vec<String> {
    let unready = containers.iter().filter(|c| !c.ready);
    unready.map(|c| c.name.clone()).collect()
}

fn incomplete(pod: &Pod) -> Vec<String> {
    let passed = |c: &&v1::ContainerSpec| pod.containers.get(&c.name).is_some_and(|c| c.passed);
    let init = pod.spec.init_containers.iter();
    init.filter(|c| !passed(c))
        .map(|c| c.name.clone())
        .collect()
}

fn condition(pod: &Pod, kind: &str, unmet: Option<&Unmet>, now: Wall) -> v1::Condition {
    let status = if unmet.is_none() { "True" } else { "False" };
    let before = pod
        .conditions
        .iter()
        .find(|c| c.r#type == kind && c.status == status);
    let (reason, message) = unmet.map(Unmet::text).unwrap_or_default();
    v1::Condition {
        r#type: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message,
        last_transition_ms: before.map_or(now.ms(), |c| c.last_transition_ms),
    }
}

fn phase(pod: &Pod, containers: &[v1::ContainerStatus]) -> &'static str {
    // Who reads a final phase takes the pod's address and resources for free.
    if pod.finished.is_some() && pod.teardown.sandbox == Step::Ready {
        return finished_text(pod.finished);
    }
    let (mut waiting, mut running, mut stopped) = (0, 0, 0);
    for container in containers {
        let state = |s: &Option<v1::ContainerState>| s.as_ref().and_then(|s| s.state.clone());
        match (state(&container.state), state(&container.last_state)) {
            (Some(State::Running(_)), _) => running += 1,
            (Some(State::Terminated(_)), _) | (_, Some(State::Terminated(_))) => stopped += 1,
            (_, _) => waiting += 1,
        }
    }
    if waiting > 0 || running + stopped == 0 {
        return "Pending";
    }
    // All containers have ended: still Running until the sandbox is removed.
    "Running"
}

fn container(
    pod: &Pod,
    spec: &v1::ContainerSpec,
    c: &Container,
    waiting: &'static str,
    settings: &Settings,
    now: Monotonic,
) -> v1::ContainerStatus {
    let uid = &pod.spec.uid;
    let name = &spec.name;
    let wait = |reason: &str, message: String| {
        Some(State::Waiting(Waiting {
            reason: reason.into(),
            message,
        }))
    };
    let mut last = c.last.as_ref();
    let mut current = Some(c.attempt);
    let (mut started, mut ready) = (false, false);
    let state = match &c.life {
        Life::Running { started: at } => {
            let hooked = spec.post_start.is_none() || c.post_start == crate::world::Hook::Done;
            started = hooked && c.probes.started(spec);
            ready = started && c.probes.ready(spec);
            Some(State::Running(Running {
                started_ms: at.wall.ms(),
            }))
        }
        Life::Exited(exit) => {
            let role = role(&pod.spec, name);
            let again = restart::wanted(role, &pod.spec.restart_policy, exit.code)
                && pod.stop.is_none()
                && pod.finished.is_none();
            let held = next_backoff(c.backoff, exit.finished.monotonic, settings, now);
            match held {
                Restart::At(_) if again => {
                    last = Some(exit);
                    let seconds = (c.backoff.delay_ms + 999) / 1000;
                    let message = format!(
                        "back-off {} restarting failed container={name} pod={}_{}({uid})",
                        duration(seconds),
                        pod.spec.name,
                        pod.spec.namespace,
                    );
                    wait("CrashLoopBackOff", message)
                }
                Restart::At(_) | Restart::Now(_) => {
                    // A completed init container counts as ready, as in Kubernetes.
                    ready = role == restart::Role::Init && exit.code == 0;
                    Some(State::Terminated(terminated(uid, name, exit)))
                }
            }
        }
        Life::Refused {
            reason, message, ..
        } => {
            current = None;
            wait(reason.text(), message.clone())
        }
        Life::None => {
            current = None;
            match &c.image {
                Image::Failed {
                    reason,
                    message,
                    at,
                    delay_ms,
                } => {
                    let reason = image::waiting_reason(*reason, *at, *delay_ms, now);
                    let message = if reason == ImageReason::BackOff {
                        format!(
                            "Back-off pulling image {:?}: ErrImagePull: {message}",
                            spec.image
                        )
                    } else {
                        message.clone()
                    };
                    wait(reason.text(), message)
                }
                Image::Unknown
                | Image::Looking
                | Image::Missing
                | Image::Pulling
                | Image::Ready(_) => wait(waiting, sandbox_trouble(pod)),
            }
        }
        Life::Creating | Life::Created | Life::Starting => {
            current = None;
            wait(waiting, String::new())
        }
    };
    let shown = current.or(last.map(|exit| exit.attempt));
    v1::ContainerStatus {
        name: name.clone(),
        image: spec.image.clone(),
        image_id: if shown.is_some() {
            c.image_id.clone()
        } else {
            String::new()
        },
        container_id: shown
            .map(|attempt| format!("foil://{}", container_id(uid, name, attempt)))
            .unwrap_or_default(),
        ready,
        started,
        restart_count: c.attempt,
        state: Some(v1::ContainerState { state }),
        last_state: last.map(|exit| v1::ContainerState {
            state: Some(State::Terminated(terminated(uid, name, exit))),
        }),
    }
}

/// Why the sandbox is not there yet, if something failed.
fn sandbox_trouble(pod: &Pod) -> String {
    if pod.withheld {
        let text = "waiting for the control plane: environment and secrets are not kept on disk";
        return text.into();
    }
    let steps = [
        &pod.record,
        &pod.cgroup,
        &pod.namespaces,
        &pod.link,
        &pod.programs,
        &pod.shim,
        &pod.volumes,
    ];
    steps
        .into_iter()
        .find_map(|step| match step {
            Step::Failed { message, .. } => Some(message.clone()),
            Step::Absent | Step::Busy(_) | Step::Stale(_) | Step::Ready => None,
        })
        .unwrap_or_default()
}

/// As Go prints a duration: "10s", "1m20s", "5m0s".
fn duration(seconds: i64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restart::Backoff;
    use crate::simulate::{self, settings};
    use crate::world::{Exit, Finished};
    use std::sync::Arc;

    fn at(ms: i64) -> Moment {
        Moment::from_ms(ms, ms)
    }

    fn pod(containers: usize) -> Pod {
        Pod::new(
            Arc::new(simulate::pod_spec("u", containers)),
            Moment::default(),
        )
    }

    fn exited(code: i32, finished_ms: i64) -> Life {
        let reason = if code == 0 { "Completed" } else { "Error" };
        Life::Exited(Exit {
            code,
            reason: reason.into(),
            finished: at(finished_ms),
            ..Exit::default()
        })
    }

    fn reason(status: &v1::PodStatus, at: usize) -> String {
        match status.containers[at].state.clone().unwrap().state.unwrap() {
            State::Waiting(waiting) => waiting.reason,
            State::Running(_) => "Running".into(),
            State::Terminated(ended) => ended.reason,
        }
    }

    fn is(status: &v1::PodStatus, kind: &str) -> bool {
        status
            .conditions
            .iter()
            .any(|c| c.r#type == kind && c.status == "True")
    }

    #[test]
    fn phases_and_reasons() {
        let running = || Life::Running { started: at(1) };
        let refused = Life::Refused {
            reason: crate::world::Refused::Create,
            message: "no".into(),
            at: at(0).monotonic,
        };
        // (lives, phase, reason of the first, ready)
        let rows = [
            (
                vec![Life::None, Life::None],
                "Pending",
                "ContainerCreating",
                false,
            ),
            (vec![running(), Life::None], "Pending", "Running", false),
            (vec![running(), running()], "Running", "Running", true),
            (vec![exited(1, 0), running()], "Running", "Error", false),
            (
                vec![exited(0, 0), exited(0, 0)],
                "Running",
                "Completed",
                false,
            ),
            (
                vec![refused, running()],
                "Pending",
                "CreateContainerError",
                false,
            ),
        ];
        for (lives, phase, first, ready) in rows {
            let mut pod = pod(2);
            for (i, life) in lives.into_iter().enumerate() {
                pod.containers.get_mut(&format!("c{i}")).unwrap().life = life;
            }
            let status = of(&pod, &settings(), at(10));
            assert_eq!(
                (status.phase.as_str(), reason(&status, 0).as_str()),
                (phase, first)
            );
            assert_eq!(is(&status, "Ready"), ready, "{phase} {first}");
        }
    }

    #[test]
    fn a_held_back_restart_is_crash_loop_back_off() {
        let mut pod = pod(1);
        let c = pod.containers.get_mut("c0").unwrap();
        c.life = exited(1, 100_000);
        c.attempt = 4;
        c.backoff = Backoff {
            delay_ms: 80_000,
            updated: at(99_000).monotonic,
        };
        let status = of(&pod, &settings(), at(100_001));
        assert_eq!(reason(&status, 0), "CrashLoopBackOff");
        assert_eq!(status.phase, "Running");
        assert_eq!(status.containers[0].restart_count, 4);
        assert!(status.containers[0].last_state.is_some());
        let Some(State::Waiting(waiting)) = status.containers[0].state.clone().unwrap().state
        else {
            panic!("waits");
        };
        assert_eq!(
            waiting.message,
            "back-off 1m20s restarting failed container=c0 pod=u_default(u)"
        );
    }

    #[test]
    fn an_image_that_is_not_there() {
        let mut pod = pod(1);
        pod.containers.get_mut("c0").unwrap().image = Image::Failed {
            reason: ImageReason::Pull,
            message: "not found".into(),
            at: at(1_000).monotonic,
            delay_ms: 10_000,
        };
        assert_eq!(reason(&of(&pod, &settings(), at(1_000)), 0), "ErrImagePull");
        assert_eq!(
            reason(&of(&pod, &settings(), at(4_000)), 0),
            "ImagePullBackOff"
        );
    }

    #[test]
    fn finished_pods_are_unready_at_once_and_have_a_final_phase_once_nothing_is_left() {
        let failed = || Step::Failed {
            message: "busy".into(),
            tries: 1,
            retry: at(9).monotonic,
        };
        // (how it finished, its sandbox, phase, why it is not ready)
        let rows = [
            (Finished::Succeeded, Step::Absent, "Running", "PodCompleted"),
            (
                Finished::Succeeded,
                Step::Busy(0),
                "Running",
                "PodCompleted",
            ),
            (Finished::Succeeded, failed(), "Running", "PodCompleted"),
            (
                Finished::Succeeded,
                Step::Ready,
                "Succeeded",
                "PodCompleted",
            ),
            (Finished::Failed, Step::Busy(0), "Running", "PodFailed"),
            (Finished::Failed, Step::Ready, "Failed", "PodFailed"),
        ];
        for (finished, removed, phase, reason) in rows {
            let mut pod = pod(1);
            let code = i32::from(finished == Finished::Failed);
            pod.containers.get_mut("c0").unwrap().life = exited(code, 5);
            pod.finished = Some(finished);
            pod.teardown.sandbox = removed.clone();
            let status = of(&pod, &settings(), at(10));
            assert_eq!(status.phase, phase, "{finished:?} {removed:?}");
            for kind in ["Ready", "ContainersReady"] {
                let ready = status.conditions.iter().find(|c| c.r#type == kind);
                let ready = ready.map(|c| (c.status.as_str(), c.reason.as_str()));
                assert_eq!(ready, Some(("False", reason)), "{finished:?} {removed:?}");
            }
        }
    }

    #[test]
    fn why_a_pod_is_not_ready() {
        let mut pod = pod(2);
        let mut spec = (*pod.spec).clone();
        spec.init_containers = simulate::pod_spec("x", 1).containers;
        spec.init_containers[0].name = "i0".into();
        spec.readiness_gates = vec!["example.com/gate".into()];
        pod.containers.insert("i0".into(), Container::default());
        pod.spec = Arc::new(spec);
        let said = |pod: &Pod, kind: &str| {
            let status = of(pod, &settings(), at(10));
            let found = status.conditions.into_iter().find(|c| c.r#type == kind);
            let found = found.unwrap();
            (found.status, found.reason, found.message)
        };
        let text = |status: &str, reason: &str, message: &str| {
            (status.to_owned(), reason.to_owned(), message.to_owned())
        };
        let incomplete = "containers with incomplete status: [i0]";
        let unready = "containers with unready status: [c0 c1]";
        assert_eq!(
            said(&pod, "Initialized"),
            text("False", "ContainersNotInitialized", incomplete)
        );
        assert_eq!(
            said(&pod, "Ready"),
            text("False", "ContainersNotReady", unready)
        );
        pod.containers.get_mut("i0").unwrap().passed = true;
        for name in ["c0", "c1"] {
            pod.containers.get_mut(name).unwrap().life = Life::Running { started: at(1) };
        }
        assert_eq!(said(&pod, "Initialized"), text("True", "", ""));
        assert_eq!(said(&pod, "ContainersReady"), text("True", "", ""));
        let gate = "corresponding condition of pod readiness gate \"example.com/gate\" \
                    does not exist.";
        assert_eq!(
            said(&pod, "Ready"),
            text("False", "ReadinessGatesNotReady", gate)
        );
    }

    #[test]
    fn transition_times_stay_while_nothing_changes() {
        let mut pod = pod(1);
        pod.conditions = of(&pod, &settings(), at(10)).conditions;
        assert_eq!(of(&pod, &settings(), at(20)).conditions, pod.conditions);
        pod.containers.get_mut("c0").unwrap().life = Life::Running { started: at(15) };
        let ready = of(&pod, &settings(), at(20));
        let ready = ready
            .conditions
            .iter()
            .find(|c| c.r#type == "Ready")
            .unwrap();
        assert_eq!(
            (ready.status.as_str(), ready.last_transition_ms),
            ("True", 20)
        );
    }
}
