//! The life of a pod: taken in, sandbox, init containers in order, containers. Its end
//! is `ending.rs`.
//!
//! One call plans the next steps of one pod; what a step waits for comes back as
//! an `Outcome`, after which the pod is planned again. Nothing is done here.

use std::sync::Arc;

use proto::v1;

use crate::action::{Action, Problem};
use crate::cgroup;
use crate::contact;
use crate::container::{self, Ready, alive};
use crate::create::{self, role};
use crate::ending;
use crate::endpoint;
use crate::hostport;
use crate::init;
use crate::link;
use crate::restart::{self, Role};
use crate::settings::Settings;
use crate::step::Step;
use crate::steps::{Steps, instance};
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
                    now: moment,
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
            now: moment,
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
    // Of a pod whose folders go nothing is written into them any more.
    let leaves = pod.stop.is_some() && pod.teardown.sandbox == Step::Ready;
    if pod.record != Step::Ready && !leaves {
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
        ending::plan(pod, observed, settings, recorded, now, &mut steps);
    } else if let Some(finished) = finished(pod).or_else(|| overdue(pod, now, &mut steps)) {
        let uid = uid.into();
        steps.actions.push(Action::Finish { uid, finished });
    } else if pod.leftovers != Step::Ready {
        ending::leftovers(pod, observed, now, &mut steps);
    } else if recorded && !pod.withheld && pod.contact == Contact::Heard {
        let (create, start) = sandbox(
            pod,
            desired,
            observed,
            settings,
            now,
            &mut steps,
            &mut plan.problems,
        );
        let ready = Ready {
            // As in kubelet, no container is made before the services are known once. From
            // then on they come before the pods of the same step.
            create: create && desired.complete,
            start,
            services: &desired.services,
        };
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
    let grace_ms = grace_s.max(ending::LEAST_GRACE_S).saturating_mul(1000);
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

/// Makes what the containers live in: whether they can be made, and run. They can be made
/// before its address is live, and not run before.
fn sandbox(
    pod: &Pod,
    desired: &Desired,
    observed: &Observed,
    settings: &Settings,
    now: Monotonic,
    steps: &mut Steps,
    problems: &mut Vec<Problem>,
) -> (bool, bool) {
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
        steps.actions.push(Action::StartShim {
            uid: uid(),
            again: pod.has_begun(),
        });
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
    let linked = network(pod, desired, observed, settings, now, steps, problems);
    let parts = [&pod.cgroup, &pod.namespaces, &pod.shim, &pod.volumes];
    let create = parts.iter().all(|s| **s == Step::Ready);
    (create, create && linked)
}

fn network(
    pod: &Pod,
    desired: &Desired,
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
        let link = link::pod(&pod.spec.uid, address, &observed.network, settings);
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
    if hostport::has_any(&pod.spec) {
        let (actions, bad) = hostport::plan(pod, address, &entry, &desired.config, observed);
        steps.actions.extend(actions);
        problems.extend(bad);
        // Services are planned apart, and may take a port, or give one back.
        steps.wake(now + hostport::AGAIN_MS);
    }
    if pod.programs.due(now) {
        steps.actions.push(Action::AttachPrograms {
            uid: uid(),
            ifindex,
        });
    }
    pod.programs == Step::Ready
}

fn containers(pod: &Pod, ready: Ready<'_>, settings: &Settings, now: Monotonic, steps: &mut Steps) {
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
            let instance = instance(pod, &spec.name, state);
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
        if container.making == Some(*attempt) {
            continue;
        }
        if step.due(now) {
            let mut instance = instance(pod, name, container);
            instance.attempt = *attempt;
            steps.actions.push(Action::DeleteContainer { instance });
        }
        steps.wake_if(step.wake());
    }
}

/// The end that the pod has come to if its active deadline is over; kubelet's
/// activeDeadlineHandler.
fn overdue(pod: &Pod, now: Monotonic, steps: &mut Steps) -> Option<Finished> {
    let seconds = pod.spec.active_deadline_seconds?;
    let deadline = pod.seen.monotonic + seconds.saturating_mul(1000);
    if now < deadline {
        steps.wake(deadline);
        return None;
    }
    Some(Finished::Overdue { since: now })
}

/// The end that the pod has come to by itself, if it has and that is known.
fn finished(pod: &Pod) -> Option<Finished> {
    if pod.contact != Contact::Heard {
        return None;
    }
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
