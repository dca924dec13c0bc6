//! A pod to and from its record on disk: what no kernel and no shim remembers.
//!
//! The bytes are written by `apply.rs` of the daemon, and read by its `observe.rs`.

use std::sync::Arc;

use proto::v1;

use crate::restart::Backoff;
use crate::step::Step;
use crate::world::{
    Container, Exit, Finished, Hook, Image, ImageFacts, Life, Pod, Stop, container_id,
    parse_container_id,
};

/// What is to be remembered of a pod.
pub fn of(pod: &Pod) -> v1::PodRecord {
    let containers = pod
        .containers
        .iter()
        .map(|(name, c)| container(pod, name, c))
        .collect();
    v1::PodRecord {
        spec: Some((*pod.spec).clone()),
        seen_ms: pod.seen_ms,
        stop_since_ms: pod.stop.map_or(0, |s| s.since_ms),
        stop_deadline_ms: pod.stop.map_or(0, |s| s.deadline_ms.max(1)),
        finished: finished_text(pod.finished).into(),
        containers,
        conditions: pod.conditions.clone(),
    }
}

/// "Succeeded", "Failed", or empty.
pub fn finished_text(finished: Option<Finished>) -> &'static str {
    match finished {
        None => "",
        Some(Finished::Succeeded) => "Succeeded",
        Some(Finished::Failed) => "Failed",
    }
}

fn container(pod: &Pod, name: &str, c: &Container) -> v1::ContainerRecord {
    let stop_signal = match &c.image {
        Image::Ready(facts) => facts.stop_signal,
        Image::Unknown
        | Image::Looking
        | Image::Missing
        | Image::Pulling
        | Image::Failed { .. } => 0,
    };
    let uid = &pod.spec.uid;
    v1::ContainerRecord {
        name: name.into(),
        attempt: c.attempt,
        image_id: c.image_id.clone(),
        stop_signal,
        delay_ms: c.backoff.delay_ms,
        updated_ms: c.backoff.updated_ms,
        ended: match &c.life {
            Life::Exited(exit) => Some(terminated(uid, name, exit)),
            Life::None
            | Life::Creating
            | Life::Created
            | Life::Starting
            | Life::Running { .. }
            | Life::Refused { .. } => None,
        },
        last: c.last.as_ref().map(|exit| terminated(uid, name, exit)),
        started: c.probes.startup.passing,
        ready: c.probes.readiness.passing,
        hooked: c.post_start == Hook::Done,
    }
}

/// An end as status and records have it.
pub fn terminated(uid: &str, name: &str, exit: &Exit) -> v1::container_state::Terminated {
    v1::container_state::Terminated {
        exit_code: exit.code,
        signal: exit.signal,
        reason: exit.reason.clone(),
        message: exit.message.clone(),
        started_ms: exit.started_ms,
        finished_ms: exit.finished_ms,
        container_id: format!("foil://{}", container_id(uid, name, exit.attempt)),
    }
}

fn exit(of: &v1::container_state::Terminated) -> Exit {
    let id = of.container_id.strip_prefix("foil://").unwrap_or_default();
    Exit {
        code: of.exit_code,
        signal: of.signal,
        reason: of.reason.clone(),
        message: of.message.clone(),
        started_ms: of.started_ms,
        finished_ms: of.finished_ms,
        attempt: parse_container_id(id).map_or(0, |(_, _, attempt)| attempt),
    }
}

/// A pod as it was remembered: nothing of its sandbox is known to be there yet.
/// `None` when the record names no pod.
pub fn restore(record: v1::PodRecord, now: i64) -> Option<Pod> {
    let spec = record.spec.filter(|s| !s.uid.is_empty())?;
    let mut pod = Pod::new(Arc::new(spec), record.seen_ms);
    pod.record = Step::Ready;
    pod.conditions = record.conditions;
    pod.finished = match record.finished.as_str() {
        "Succeeded" => Some(Finished::Succeeded),
        "Failed" => Some(Finished::Failed),
        _ => None,
    };
    if record.stop_deadline_ms != 0 {
        let (since_ms, deadline_ms) = (record.stop_since_ms, record.stop_deadline_ms);
        pod.stop = Some(Stop {
            since_ms,
            deadline_ms,
        });
    }
    for kept in record.containers {
        let Some(c) = pod.containers.get_mut(&kept.name) else {
            continue;
        };
        c.attempt = kept.attempt;
        c.backoff = Backoff {
            delay_ms: kept.delay_ms,
            updated_ms: kept.updated_ms,
        };
        c.last = kept.last.as_ref().map(exit);
        if let Some(ended) = &kept.ended {
            c.life = Life::Exited(exit(ended));
        }
        if !kept.image_id.is_empty() {
            c.image = Image::Ready(Arc::new(ImageFacts {
                image_id: kept.image_id.clone(),
                stop_signal: kept.stop_signal,
                ..ImageFacts::default()
            }));
        }
        c.image_id = kept.image_id;
        if kept.hooked {
            c.post_start = Hook::Done;
        }
        for (probe, passing) in [
            (&mut c.probes.startup, kept.started),
            (&mut c.probes.readiness, kept.ready),
        ] {
            // A verdict outlives the agent: the next probe is due a period from now.
            if passing {
                probe.passing = true;
                probe.settled = true;
                probe.last_ms = now;
            }
        }
    }
    Some(pod)
}

/// Takes in what a shim says of an instance. An instance that is not the one the
/// record speaks of is left over, and is to be deleted.
pub fn adopt(pod: &mut Pod, name: &str, attempt: u32, found: Life) {
    let Some(c) = pod.containers.get_mut(name) else {
        return;
    };
    c.remains.insert(attempt);
    if attempt < c.attempt {
        return;
    }
    if attempt > c.attempt {
        // The record is older than the instance: a crash between the two.
        c.attempt = attempt;
        c.life = Life::None;
    }
    if !matches!(c.life, Life::Exited(_)) {
        c.life = found;
    }
}

/// What of a pod's sandbox was found on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sandbox {
    /// All its namespaces are pinned.
    pub namespaces: bool,
    /// Its link is up and has its route, which is made last.
    pub ifindex: Option<u32>,
    /// Programs are attached to that link.
    pub programs: bool,
    /// Its shim answers.
    pub shim: bool,
}

/// Takes in what was found of a sandbox. Volumes and limits are many writes, and
/// no single one of them tells that the last was done, or that what changed while
/// there was no agent was written: both are made again, which changes nothing
/// where they are whole.
pub fn adopt_sandbox(pod: &mut Pod, found: &Sandbox) {
    let step = |there: bool| if there { Step::Ready } else { Step::Absent };
    pod.namespaces = step(found.namespaces);
    // A link into other namespaces than the pod's is of no use.
    pod.ifindex = found.ifindex.filter(|_| found.namespaces);
    pod.link = step(pod.ifindex.is_some());
    pod.programs = step(pod.ifindex.is_some() && found.programs);
    pod.shim = step(found.shim);
    pod.volumes = Step::Absent;
    pod.cgroup = Step::Absent;
}

/// After all shims were heard: an instance that ran, by its record, and that no
/// shim knows any more starts from its image again.
pub fn settle(pod: &mut Pod) {
    for c in pod.containers.values_mut() {
        if c.life == Life::None {
            c.image = Image::Unknown;
            c.post_start = Hook::Waiting;
            c.probes = Default::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate;

    #[test]
    fn what_is_remembered_comes_back() {
        let mut pod = Pod::new(Arc::new(simulate::pod_spec("u", 1)), 5);
        pod.stop = Some(Stop {
            since_ms: 7,
            deadline_ms: 8,
        });
        pod.finished = Some(Finished::Failed);
        let c = pod.containers.get_mut("c0").unwrap();
        c.attempt = 3;
        c.backoff = Backoff {
            delay_ms: 20,
            updated_ms: 30,
        };
        c.life = Life::Exited(Exit {
            code: 1,
            reason: "Error".into(),
            attempt: 3,
            ..Exit::default()
        });
        c.last = Some(Exit {
            code: 2,
            attempt: 2,
            ..Exit::default()
        });
        c.image_id = "i@sha256:1".into();
        c.probes.readiness.passing = true;
        let back = restore(of(&pod), 99).unwrap();
        assert_eq!(of(&back), of(&pod));
        assert_eq!(back.containers["c0"].life, pod.containers["c0"].life);
        assert_eq!(back.containers["c0"].last, pod.containers["c0"].last);
        assert!(back.containers["c0"].probes.readiness.passing);
    }

    #[test]
    fn what_may_be_half_made_is_made_again() {
        let whole = Sandbox {
            namespaces: true,
            ifindex: Some(7),
            programs: true,
            shim: true,
        };
        let mut pod = Pod::new(Arc::new(simulate::pod_spec("u", 1)), 5);
        adopt_sandbox(&mut pod, &whole);
        let ready = [&pod.namespaces, &pod.link, &pod.programs, &pod.shim];
        assert!(ready.iter().all(|step| **step == Step::Ready), "{ready:?}");
        // A crash in the middle of these leaves their folders without all that is in them.
        assert_eq!((&pod.volumes, &pod.cgroup), (&Step::Absent, &Step::Absent));
        let other = Sandbox {
            namespaces: false,
            ..whole
        };
        adopt_sandbox(&mut pod, &other);
        let link = (&pod.link, &pod.programs, pod.ifindex);
        assert_eq!(link, (&Step::Absent, &Step::Absent, None));
    }

    #[test]
    fn a_newer_instance_than_the_record_wins_and_older_ones_are_left_over() {
        let mut pod = Pod::new(Arc::new(simulate::pod_spec("u", 1)), 5);
        pod.containers.get_mut("c0").unwrap().attempt = 1;
        adopt(&mut pod, "c0", 0, Life::Exited(Exit::default()));
        assert_eq!(pod.containers["c0"].attempt, 1);
        assert_eq!(pod.containers["c0"].life, Life::None);
        adopt(&mut pod, "c0", 2, Life::Running { started_ms: 4 });
        let c = &pod.containers["c0"];
        assert_eq!(
            (c.attempt, c.life.clone()),
            (2, Life::Running { started_ms: 4 })
        );
        assert_eq!(c.remains.iter().copied().collect::<Vec<_>>(), [0, 2]);
    }
}
