//! The life of a pod: taken in, sandbox, init containers in order, containers,
//! the end, removal.
//!
//! One call plans the next steps of one pod; what a step waits for comes back as
//! an `Outcome`, after which the pod is planned again. Nothing is done here.

use std::sync::Arc;

use proto::v1;

use crate::action::{Action, Problem};
use crate::cgroup;
use crate::contact;
use crate::container::{self, Ready, Steps, alive};
use crate::create::{self, role};
use crate::endpoint;
use crate::init;
use crate::link;
use crate::restart::{self, Role};
use crate::settings::Settings;
use crate::step::Step;
use crate::time::{Moment, Monotonic};
use crate::world::{Contact, Container, Desired, Finished, Life, Observed, Pod, Stop};

/// Grace of a pod that the control plane has taken off the node, seconds.
const REMOVED_GRACE_S: i64 = 2;

/// The next steps of one pod.
#[derive(Debug, Default)]
pub struct PodPlan {
    /// In the order in which they are to be begun.
    pub actions: Vec<Action>,
    /// What cannot be had.
    pub problems: Vec<Problem>,
    /// When time alone makes more due.
    pub wake: Option<Monotonic>,
}

/// Plans one pod; `uid` is in `desired`, in `observed`, or in both.
pub fn plan(
    uid: &str,
    desired: &Desired,
    observed: &Observed,
    settings: &Settings,
    moment: Moment,
) -> PodPlan {
    let now = moment.monotonic;
    let mut plan = PodPlan::default();
    let wanted = desired.pods.get(uid);
    if observed.strays.get(uid).is_some_and(Step::busy) {
        // What an agent before this one left is being removed, and what is made for the
        // pod now would go with it.
        return plan;
    }
    let Some(pod) = observed.pods.get(uid) else {
        match wanted {
            Some(spec) if !observed.gone.contains(uid) => {
                plan.actions.push(Action::Take {
                    spec: spec.clone(),
                    now: moment.wall,
                });
            }
            None if observed.gone.contains(uid) && desired.complete => {
                plan.actions.push(Action::Forget { uid: uid.into() });
            }
            Some(_) | None => {}
        }
        return plan;
    };
    if let Some(spec) = wanted
        && (spec.generation != pod.spec.generation || pod.withheld)
        && !Arc::ptr_eq(spec, &pod.spec)
    {
        plan.actions.push(Action::Take {
            spec: spec.clone(),
            now: moment.wall,
        });
        return plan;
    }
    if let Some(stop) = stop(wanted, pod, desired.complete, now) {
        plan.actions.push(Action::Stop {
            uid: uid.into(),
            stop,
        });
        return plan;
    }
    let mut steps = Steps::default();
    if !matches!(pod.record, Step::Ready) && pod.teardown.folders == Step::Absent {
        if pod.record.due(now) {
            steps.actions.push(Action::Record { uid: uid.into() });
        }
        steps.wake_if(pod.record.wake());
    }
    let recorded = pod.record == Step::Ready;
    if let Contact::Unknown(silence) = &pod.contact
        && pod.teardown.sandbox != Step::Ready
    {
        contact::plan(pod, silence, now, &mut steps);
    }
    if pod.stop.is_some() || pod.finished.is_some() {
        ending(pod, observed, settings, recorded, now, &mut steps);
    } else if pod.leftovers != Step::Ready {
        remove_sandbox(pod, &pod.leftovers, observed, now, &mut steps);
    } else if recorded && !pod.withheld && pod.contact == Contact::Heard {
        let ready = sandbox(pod, observed, settings, now, &mut steps, &mut plan.problems);
        containers(pod, ready, settings, now, &mut steps);
    }
    plan.actions = steps.actions;
    plan.wake = steps.wake;
    plan
}

/// The stop that a pod shall have and has not, or a sooner one.
fn stop(
    wanted: Option<&Arc<v1::PodSpec>>,
    pod: &Pod,
    complete: bool,
    now: Monotonic,
) -> Option<Stop> {
    let grace_s = match wanted {
        Some(spec) => spec.stop_grace_seconds?,
        None if complete => REMOVED_GRACE_S,
        None => return None,
    };
    let grace_ms = grace_s.max(0).saturating_mul(1000);
    match pod.stop {
        None => Some(Stop {
            since: now,
            deadline: now + grace_ms,
        }),
        // Asked again with less grace.
        Some(before) => {
            let deadline = before.since + grace_ms;
            (deadline < before.deadline).then_some(Stop {
                since: before.since,
                deadline,
            })
        }
    }
}

/// Makes what the containers live in. They can be made before its address is live,
/// and not run before.
fn sandbox(
    pod: &Pod,
    observed: &Observed,
    settings: &Settings,
    now: Monotonic,
    steps: &mut Steps,
    problems: &mut Vec<Problem>,
) -> Ready {
    let uid = || pod.spec.uid.clone();
    for step in [
        &pod.cgroup,
        &pod.namespaces,
        &pod.link,
        &pod.programs,
        &pod.shim,
        &pod.volumes,
    ] {
        steps.wake_if(step.wake());
    }
    if pod.cgroup.due(now) {
        steps.actions.push(Action::CreateCgroup {
            uid: uid(),
            limits: cgroup::pod(&pod.spec, settings),
        });
    }
    if pod.shim.due(now) {
        steps.actions.push(Action::StartShim { uid: uid() });
    }
    if pod.volumes.due(now) {
        steps.actions.push(Action::MakeVolumes {
            uid: uid(),
            spec: pod.spec.clone(),
        });
    }
    if pod.namespaces.due(now) {
        let hostname = create::hostname(&pod.spec, settings);
        steps.actions.push(Action::PinNamespaces {
            uid: uid(),
            hostname,
        });
    }
    let linked = network(pod, observed, settings, now, steps, problems);
    let parts = [&pod.cgroup, &pod.namespaces, &pod.shim, &pod.volumes];
    let create = parts.iter().all(|s| **s == Step::Ready);
    Ready {
        create,
        start: create && linked,
    }
}

fn network(
    pod: &Pod,
    observed: &Observed,
    settings: &Settings,
    now: Monotonic,
    steps: &mut Steps,
    problems: &mut Vec<Problem>,
) -> bool {
    if pod.spec.host_network {
        return true;
    }
    let uid = || pod.spec.uid.clone();
    let Some(address) = pod.address() else {
        problems.push(Problem::NoAddress { uid: uid() });
        return false;
    };
    if pod.namespaces != Step::Ready {
        return false;
    }
    if pod.link.due(now) {
        let link = link::pod(&pod.spec.uid, address, settings);
        steps.actions.push(Action::CreateLink { uid: uid(), link });
        return false;
    }
    let (Step::Ready, Some(ifindex)) = (&pod.link, pod.ifindex) else {
        return false;
    };
    let identity = pod.spec.identity;
    let Some(entry) = endpoint::wanted(address, ifindex, identity, &observed.endpoints) else {
        problems.push(Problem::NoEndpoint { uid: uid() });
        return false;
    };
    // The entry first: programs drop what they do not know.
    if observed.endpoints.of(address) != Some(&entry) {
        let name = format!("{}/{}", pod.spec.namespace, pod.spec.name);
        steps.actions.push(Action::PutEndpoint {
            endpoint: entry,
            name,
        });
        return false;
    }
    if pod.programs.due(now) {
        steps.actions.push(Action::AttachPrograms {
            uid: uid(),
            ifindex,
        });
    }
    pod.programs == Step::Ready
}

fn containers(pod: &Pod, ready: Ready, settings: &Settings, now: Monotonic, steps: &mut Steps) {
    if let Some(finished) = finished(pod) {
        steps.actions.push(Action::Finish {
            uid: pod.spec.uid.clone(),
            finished,
        });
        return;
    }
    let mut blocked = false;
    for spec in &pod.spec.init_containers {
        let Some(state) = pod.containers.get(&spec.name) else {
            continue;
        };
        if !blocked {
            container::plan(pod, spec, state, ready, settings, now, steps);
        }
        remains(pod, &spec.name, state, now, steps);
        if !blocked && !state.passed && init::done(spec, state) {
            let instance = container::instance(pod, &spec.name, state);
            steps.actions.push(Action::Pass { instance });
        }
        blocked = blocked || !state.passed;
    }
    for spec in &pod.spec.containers {
        let Some(state) = pod.containers.get(&spec.name) else {
            continue;
        };
        if !blocked {
            container::plan(pod, spec, state, ready, settings, now, steps);
        }
        remains(pod, &spec.name, state, now, steps);
    }
}

/// Ended instances are removed once their end is on disk.
fn remains(pod: &Pod, name: &str, container: &Container, now: Monotonic, steps: &mut Steps) {
    if pod.record != Step::Ready || pod.shim != Step::Ready {
        return;
    }
    for (attempt, step) in &container.remains {
        if *attempt == container.attempt && alive(container) {
            continue;
        }
        if step.due(now) {
            let mut instance = container::instance(pod, name, container);
            instance.attempt = *attempt;
            steps.actions.push(Action::DeleteContainer { instance });
        }
        steps.wake_if(step.wake());
    }
}

/// The end that the pod has come to by itself, if it has.
fn finished(pod: &Pod) -> Option<Finished> {
    let policy = pod.spec.restart_policy.as_str();
    let ended = |name: &str| {
        let container = pod.containers.get(name)?;
        match &container.life {
            Life::Exited(exit) if !container.replace => Some(exit.code),
            Life::Exited(_)
            | Life::None
            | Life::Creating
            | Life::Created
            | Life::Starting
            | Life::Running { .. }
            | Life::Refused { .. } => None,
        }
    };
    for spec in &pod.spec.init_containers {
        let role = role(&pod.spec, &spec.name);
        if let Some(code) = ended(&spec.name)
            && code != 0
            && !restart::wanted(role, policy, code)
        {
            return Some(Finished::Failed);
        }
    }
    let mut failed = false;
    for spec in &pod.spec.containers {
        let code = ended(&spec.name)?;
        if restart::wanted(Role::Main, policy, code) {
            return None;
        }
        failed |= code != 0;
    }
    if pod.spec.containers.is_empty() {
        return None;
    }
    Some(if failed {
        Finished::Failed
    } else {
        Finished::Succeeded
    })
}

/// Ends containers, then removes the sandbox, then, for a pod that was asked to
/// stop, its folders.
fn ending(
    pod: &Pod,
    observed: &Observed,
    settings: &Settings,
    recorded: bool,
    now: Monotonic,
    steps: &mut Steps,
) {
    let uid = || pod.spec.uid.clone();
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
        remove_sandbox(pod, &pod.teardown.sandbox, observed, now, steps);
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

/// Containers but for sidecars, with their states.
fn others(pod: &Pod) -> impl Iterator<Item = (&v1::ContainerSpec, &Container)> {
    let init = pod.spec.init_containers.iter();
    init.filter(|c| restart::init_role(c) == Role::Init)
        .chain(&pod.spec.containers)
        .filter_map(|spec| Some((spec, pod.containers.get(&spec.name)?)))
}

/// Since when a pod ends, and until when it may take.
fn until(pod: &Pod, now: Monotonic) -> Stop {
    pod.stop.unwrap_or_else(|| {
        // A pod that finished: from the moment at which its last container ended.
        let since = others(pod).filter_map(|(_, c)| ended(c)).max();
        let since = since.unwrap_or(now);
        let grace = pod.spec.termination_grace_period_seconds.max(0);
        Stop {
            since,
            deadline: since + grace.saturating_mul(1000),
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
        container::end(pod, spec, state, (until, true), settings, now, steps);
    }
    // Sidecars serve the others to their end, and go in reverse order. Their hooks run
    // at once, as kubelet has it.
    let mut before = others(pod).any(|(_, c)| alive(c));
    let sidecars = pod.spec.init_containers.iter().rev();
    for spec in sidecars.filter(|c| restart::init_role(c) == Role::Sidecar) {
        let Some(state) = pod.containers.get(&spec.name) else {
            continue;
        };
        container::end(pod, spec, state, (until, !before), settings, now, steps);
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

fn remove_sandbox(pod: &Pod, step: &Step, observed: &Observed, now: Monotonic, steps: &mut Steps) {
    // What is still being made must have come back, or it would be left over.
    let busy = [
        &pod.cgroup,
        &pod.namespaces,
        &pod.link,
        &pod.programs,
        &pod.shim,
        &pod.volumes,
    ]
    .iter()
    .any(|s| s.busy());
    if busy {
        return;
    }
    if let Some(endpoint) = pod.address().and_then(|a| observed.endpoints.of(a))
        // The address may be another pod's by now.
        && pod.ifindex == Some(endpoint.ifindex)
    {
        steps.actions.push(Action::DeleteEndpoint {
            endpoint: *endpoint,
        });
    }
    if step.due(now) {
        steps.actions.push(Action::RemoveSandbox {
            uid: pod.spec.uid.clone(),
            link: link::name(&pod.spec.uid),
        });
    }
    steps.wake_if(step.wake());
}
