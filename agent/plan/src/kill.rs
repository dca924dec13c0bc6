//! The end of one instance: its hook, SIGTERM, SIGKILL, with kubelet's times
//! (killContainer in pkg/kubelet/kuberuntime).
//!
//! Called by `container.rs` for instances that are ended for another one, and by
//! `ending.rs` for those whose pod ends.

use proto::v1;

use crate::action::{Action, HookKind};
use crate::probe::Kind;
use crate::probing;
use crate::settings::Settings;
use crate::steps::{Steps, instance};
use crate::time::Monotonic;
use crate::world::{Container, Hook, Image, Kill, Life, Pod, Stop, Why};

/// SIGTERM.
const TERM: i32 = 15;
/// SIGKILL.
const KILL: i32 = 9;
/// A SIGKILL that showed no effect is sent again after this, milliseconds.
const KILL_AGAIN_MS: i64 = 10_000;
/// From SIGTERM to SIGKILL at the least, also without any grace period, milliseconds;
/// kubelet's minimumGracePeriodInSeconds.
const LEAST_GRACE_MS: i64 = 2_000;

/// When SIGKILL is due; `None` while SIGTERM has to come before it.
fn sigkill(container: &Container, kill: &Kill) -> Option<Monotonic> {
    match container.life {
        // Its program does not run yet, and could not clean up.
        Life::None | Life::Creating | Life::Created | Life::Starting => Some(kill.deadline),
        Life::Running { .. } | Life::Exited(_) | Life::Refused { .. } => {
            let asked = kill.asked?;
            Some(kill.deadline.max(asked + LEAST_GRACE_MS))
        }
    }
}

/// The next step towards the end of an instance: its hook, SIGTERM on its turn,
/// SIGKILL. The hook and the turn are not waited for beyond the grace period.
/// Readiness is probed to the end, as endpoints that terminate may still serve.
pub fn killing(
    pod: &Pod,
    spec: &v1::ContainerSpec,
    container: &Container,
    (kill, turn): (&Kill, bool),
    settings: &Settings,
    now: Monotonic,
    steps: &mut Steps,
) {
    let this = || instance(pod, &spec.name, container);
    if let Life::Running { started } = &container.life {
        let since = started.monotonic;
        // Liveness and startup have nothing left to decide (StopLivenessAndStartup in
        // kubelet's prober).
        let of = (container, &[Kind::Readiness][..]);
        probing::due(pod, spec, of, since, settings, now, steps);
    }
    let again = kill.killed.map(|killed| killed + KILL_AGAIN_MS);
    if let Some(due) = again.or(sigkill(container, kill)) {
        if now >= due {
            steps.actions.push(Action::Signal {
                instance: this(),
                signal: KILL,
                all: true,
                now,
            });
        } else {
            steps.wake(due);
        }
        return;
    }
    if now < kill.deadline {
        steps.wake(kill.deadline);
        match (&spec.pre_stop, kill.pre_stop) {
            (Some(handler), Hook::Waiting) => {
                steps.actions.push(Action::RunHook {
                    instance: this(),
                    kind: HookKind::PreStop,
                    handler: handler.clone(),
                    address: pod.address().unwrap_or(settings.node_ip),
                    timeout_ms: kill.deadline - now,
                });
                return;
            }
            (Some(_), Hook::Running) => return,
            (Some(_), Hook::Done) | (None, _) if !turn => return,
            (Some(_), Hook::Done) | (None, _) => {}
        }
    }
    let signal = match &container.image {
        Image::Ready(facts) if facts.stop_signal != 0 => facts.stop_signal,
        Image::Unknown
        | Image::Looking
        | Image::Missing
        | Image::Pulling
        | Image::Ready(_)
        | Image::Failed { .. } => TERM,
    };
    steps.actions.push(Action::Signal {
        instance: this(),
        signal,
        all: false,
        now,
    });
}

/// The next step towards the end of a container that shall not run (any more), within
/// the pod's grace period. `turn`: those that end before it have ended.
pub fn end(
    pod: &Pod,
    spec: &v1::ContainerSpec,
    container: &Container,
    (stop, turn): (Stop, bool),
    settings: &Settings,
    now: Monotonic,
    steps: &mut Steps,
) {
    let mut begin = |since, deadline| {
        steps.actions.push(Action::BeginKill {
            instance: instance(pod, &spec.name, container),
            why: Why::Pod,
            since,
            deadline,
        });
    };
    match (&container.life, &container.kill) {
        // Never ran: nothing to ask, and the shim deletes only what has ended.
        (Life::Created, None) => begin(now, now),
        (Life::Starting | Life::Running { .. }, None) => begin(stop.since, stop.deadline),
        (Life::Starting | Life::Running { .. }, Some(kill))
            if kill.deadline > stop.deadline && kill.killed.is_none() =>
        {
            begin(stop.since, stop.deadline);
        }
        (Life::Created | Life::Starting | Life::Running { .. }, Some(kill)) => {
            killing(pod, spec, container, (kill, turn), settings, now, steps);
        }
        (Life::None | Life::Creating | Life::Exited(_) | Life::Refused { .. }, _) => {}
    }
}
