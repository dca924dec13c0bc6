//! The end of a pod: its containers, its sandbox, its folders.
//!
//! Called by `pod.rs` for a pod that was asked to stop, that finished by itself, or
//! whose sandbox is another's.

use proto::v1;

use crate::action::Action;
use crate::container::alive;
use crate::hostport;
use crate::kill;
use crate::link;
use crate::restart::{self, Role};
use crate::settings::Settings;
use crate::step::Step;
use crate::steps::{Steps, instance};
use crate::time::Monotonic;
use crate::world::{Contact, Container, Finished, Image, Life, Observed, Pod, Stop};

/// The least grace of a pod, seconds; kubelet's calculateEffectiveGracePeriod has it
/// "no matter what".
pub const LEAST_GRACE_S: i64 = 1;

/// Ends containers, then removes the sandbox, then, for a pod that was asked to
/// stop, its folders. `recorded`: the ends of its containers are on disk.
pub fn plan(
    pod: &Pod,
    observed: &Observed,
    settings: &Settings,
    recorded: bool,
    now: Monotonic,
    steps: &mut Steps,
) {
    let uid = || pod.spec.uid.clone();
    // Whoever else waits for the image asks for it, too.
    let pulling = pod.containers.iter();
    let pulling = pulling.filter(|(_, container)| container.image == Image::Pulling);
    steps
        .actions
        .extend(pulling.map(|(name, container)| Action::CancelPull {
            instance: instance(pod, name, container),
        }));
    if pod.teardown.sandbox != Step::Ready {
        let until = until(pod, now);
        if pod.contact == Contact::Heard {
            if !end_containers(pod, until, settings, now, steps) {
                return;
            }
        } else if now < until.deadline {
            // What it has can neither be asked to end nor be said to have ended.
            steps.wake(until.deadline);
            return;
        }
        // Their ends are on disk before the shim that remembers them goes; a pod
        // that is to go tells no more of itself.
        if !recorded && pod.stop.is_none() {
            return;
        }
        clear(pod, observed, steps);
        if !busy(pod) && pod.teardown.sandbox.due(now) {
            let (uid, link) = (uid(), link::name(&pod.spec.uid));
            steps.actions.push(Action::RemoveSandbox { uid, link });
        }
        steps.wake_if(pod.teardown.sandbox.wake());
        return;
    }
    if pod.stop.is_none() {
        return;
    }
    if pod.teardown.folders == Step::Ready {
        let gone = v1::PodGone {
            uid: uid(),
            namespace: pod.spec.namespace.clone(),
            name: pod.spec.name.clone(),
        };
        steps.actions.push(Action::ReportGone { gone });
    } else if pod.teardown.folders.due(now) && !pod.record.busy() {
        steps.actions.push(Action::RemoveFolders {
            uid: uid(),
            namespace: pod.spec.namespace.clone(),
            name: pod.spec.name.clone(),
        });
    }
    steps.wake_if(pod.teardown.folders.wake());
}

/// Containers except sidecars, with their states.
fn others(pod: &Pod) -> impl Iterator<Item = (&v1::ContainerSpec, &Container)> {
    let init = pod.spec.init_containers.iter();
    init.filter(|c| restart::init_role(c) == Role::Init)
        .chain(&pod.spec.containers)
        .filter_map(|spec| Some((spec, pod.containers.get(&spec.name)?)))
}

/// Since when a pod ends, and until when it may take.
fn until(pod: &Pod, now: Monotonic) -> Stop {
    pod.stop.unwrap_or_else(|| {
        let since = match pod.finished {
            Some(Finished::Overdue { since }) => since,
            // From the moment at which its last container ended.
            Some(Finished::Succeeded | Finished::Failed) | None => {
                let ends = others(pod).filter_map(|(_, c)| ended(c));
                ends.max().unwrap_or(now)
            }
        };
        let grace = pod.spec.termination_grace_period_seconds;
        Stop {
            since,
            deadline: since + grace.max(LEAST_GRACE_S).saturating_mul(1000),
        }
    })
}

/// True when nothing runs any more.
fn end_containers(
    pod: &Pod,
    until: Stop,
    settings: &Settings,
    now: Monotonic,
    steps: &mut Steps,
) -> bool {
    for (spec, state) in others(pod) {
        kill::end(pod, spec, state, (until, true), settings, now, steps);
    }
    // Sidecars serve the others to their end, and go in reverse order. Their hooks run
    // at once, as kubelet has it.
    let mut before = others(pod).any(|(_, c)| alive(c));
    let sidecars = pod.spec.init_containers.iter().rev();
    for spec in sidecars.filter(|c| restart::init_role(c) == Role::Sidecar) {
        let Some(state) = pod.containers.get(&spec.name) else {
            continue;
        };
        kill::end(pod, spec, state, (until, !before), settings, now, steps);
        before |= alive(state);
    }
    !pod.containers.values().any(alive)
}

fn ended(container: &Container) -> Option<Monotonic> {
    match &container.life {
        Life::Exited(exit) => Some(exit.finished.monotonic),
        Life::None
        | Life::Creating
        | Life::Created
        | Life::Starting
        | Life::Running { .. }
        | Life::Refused { .. } => None,
    }
}

/// Removes what is left of a sandbox that the pod has lost, before another one is made.
pub fn leftovers(pod: &Pod, observed: &Observed, now: Monotonic, steps: &mut Steps) {
    clear(pod, observed, steps);
    if !busy(pod) && pod.leftovers.due(now) {
        let uid = pod.spec.uid.clone();
        let link = link::name(&uid);
        steps.actions.push(Action::RemoveLeftovers { uid, link });
    }
    steps.wake_if(pod.leftovers.wake());
}

/// What is still being made, or removed, must have come back before a removal begins,
/// or it would be left over.
fn busy(pod: &Pod) -> bool {
    let steps = [
        &pod.cgroup,
        &pod.namespaces,
        &pod.link,
        &pod.programs,
        &pod.shim,
        &pod.volumes,
        &pod.leftovers,
        &pod.teardown.sandbox,
    ];
    let making = |c: &Container| c.making.is_some();
    steps.iter().any(|step| step.busy()) || pod.containers.values().any(making)
}

/// The programs forget the pod before its link goes.
fn clear(pod: &Pod, observed: &Observed, steps: &mut Steps) {
    if busy(pod) {
        return;
    }
    if let Some(endpoint) = pod.address().and_then(|a| observed.endpoints.of(a))
        // The address may be another pod's by now.
        && pod.ifindex == Some(endpoint.ifindex)
    {
        let ports = hostport::remove(endpoint, &observed.maps);
        steps.actions.extend(ports);
        steps.actions.push(Action::DeleteEndpoint {
            endpoint: *endpoint,
        });
    }
}
