//! A pod to and from its record on disk: what no kernel and no shim remembers.
//!
//! The bytes are written by `apply.rs` of the daemon, and read by its `observe.rs`.

use std::sync::Arc;

use proto::v1;

use crate::reboot;
use crate::restart::Backoff;
use crate::step::Step;
use crate::time::{Moment, Monotonic, Wall};
use crate::world::{
    Contact, Container, Exit, Finished, Hook, Image, ImageFacts, Life, Pod, Silence, Stop,
    container_id, parse_container_id,
};

/// What is to be remembered of a pod. Monotonic times are of the boot with this id.
pub fn of(pod: &Pod, boot_id: &str) -> v1::PodRecord {
    let containers = pod
        .containers
        .iter()
        .map(|(name, c)| container(pod, name, c))
        .collect();
    v1::PodRecord {
        spec: Some((*pod.spec).clone()),
        withheld: pod.withheld,
        seen_ms: pod.seen.wall.ms(),
        seen_monotonic_ms: Some(pod.seen.monotonic.ms()),
        overdue_monotonic_ms: match pod.finished {
            Some(Finished::Overdue { since }) => Some(since.ms()),
            Some(Finished::Succeeded | Finished::Failed) | None => None,
        },
        stop: pod.stop.map(|stop| v1::pod_record::Stop {
            since_monotonic_ms: stop.since.ms(),
            deadline_monotonic_ms: stop.deadline.ms(),
        }),
        boot_id: boot_id.into(),
        leftovers: pod.leftovers != Step::Ready,
        sandbox_removed: pod.teardown.sandbox == Step::Ready,
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
        Some(Finished::Failed | Finished::Overdue { .. }) => "Failed",
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
    let ended = match &c.life {
        Life::Exited(exit) => Some(exit),
        Life::None
        | Life::Creating
        | Life::Created
        | Life::Starting
        | Life::Running { .. }
        | Life::Refused { .. } => None,
    };
    let uid = &pod.spec.uid;
    v1::ContainerRecord {
        name: name.into(),
        attempt: c.attempt,
        image_id: c.image_id.clone(),
        stop_signal,
        delay_ms: c.backoff.delay_ms,
        updated_monotonic_ms: c.backoff.updated.ms(),
        ended: ended.map(|exit| terminated(uid, name, exit)),
        ended_monotonic_ms: ended.map_or(0, |exit| exit.finished.monotonic.ms()),
        last: c.last.as_ref().map(|exit| terminated(uid, name, exit)),
        started: c.probes.startup.passing,
        ready: c.probes.readiness.passing,
        hooked: c.post_start == Hook::Done,
        running: match c.life {
            Life::Running { started } => Some(v1::container_record::Running {
                started_ms: started.wall.ms(),
                started_monotonic_ms: started.monotonic.ms(),
            }),
            Life::None
            | Life::Creating
            | Life::Created
            | Life::Starting
            | Life::Exited(_)
            | Life::Refused { .. } => None,
        },
        passed: c.passed,
        made_from: c.made_from.clone(),
        replace: c.replace,
    }
}

/// An end as status and records have it.
pub fn terminated(uid: &str, name: &str, exit: &Exit) -> v1::container_state::Terminated {
    v1::container_state::Terminated {
        exit_code: exit.code,
        signal: exit.signal,
        reason: exit.reason.clone(),
        message: exit.message.clone(),
        started_ms: exit.started.ms(),
        finished_ms: exit.finished.wall.ms(),
        container_id: format!("foil://{}", container_id(uid, name, exit.attempt)),
    }
}

fn exit(of: &v1::container_state::Terminated, ended: Monotonic) -> Exit {
    let id = of.container_id.strip_prefix("foil://").unwrap_or_default();
    Exit {
        code: of.exit_code,
        signal: of.signal,
        reason: of.reason.clone(),
        message: of.message.clone(),
        started: Wall::from_ms(of.started_ms),
        finished: Moment {
            monotonic: ended,
            wall: Wall::from_ms(of.finished_ms),
        },
        attempt: parse_container_id(id).map_or(0, |(_, _, attempt)| attempt),
    }
}

/// Which of a pod's two records there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The complete one, which is in memory (`run`).
    Whole,
    /// Only the one on the disk: the complete one is lost, and with it what is in the same
    /// folder (pins of namespaces, the shim's socket).
    OnDisk,
}

/// A pod as it was remembered: nothing of its sandbox is known to be there yet.
/// `None` when the record names no pod.
///
/// After a reboot the times of the record mean nothing: ends are taken for ends of
/// now, a stop has no grace left, and back-offs begin anew, as kubelet's do.
pub fn restore(record: v1::PodRecord, kept: Kept, boot_id: &str, moment: Moment) -> Option<Pod> {
    let now = moment.monotonic;
    let same_boot = record.boot_id == boot_id;
    // A time in the future would be of another time namespace: never wait for it.
    let past = |ms: i64| {
        if same_boot {
            Monotonic::from_ms(ms).min(now)
        } else {
            now
        }
    };
    let spec = record.spec.filter(|s| !s.uid.is_empty())?;
    let seen = Moment {
        monotonic: match record.seen_monotonic_ms {
            Some(ms) if same_boot => past(ms),
            // The time in between counts, and no other clock ran.
            Some(_) | None => now + -moment.wall.ms().saturating_sub(record.seen_ms).max(0),
        },
        wall: Wall::from_ms(record.seen_ms),
    };
    let mut pod = Pod::new(Arc::new(spec), seen);
    pod.record = Step::Ready;
    pod.withheld = record.withheld;
    pod.conditions = record.conditions;
    pod.finished = match record.finished.as_str() {
        "Succeeded" => Some(Finished::Succeeded),
        "Failed" => Some(match record.overdue_monotonic_ms {
            Some(ms) => Finished::Overdue { since: past(ms) },
            None => Finished::Failed,
        }),
        _ => None,
    };
    if record.sandbox_removed {
        pod.teardown.sandbox = Step::Ready;
    }
    pod.stop = record.stop.map(|stop| Stop {
        since: past(stop.since_monotonic_ms),
        deadline: if same_boot {
            Monotonic::from_ms(stop.deadline_monotonic_ms)
        } else {
            now
        },
    });
    for kept in record.containers {
        let Some(c) = pod.containers.get_mut(&kept.name) else {
            continue;
        };
        c.attempt = kept.attempt;
        if same_boot {
            c.backoff = Backoff {
                delay_ms: kept.delay_ms,
                updated: past(kept.updated_monotonic_ms),
            };
        }
        c.last = kept
            .last
            .as_ref()
            .map(|last| exit(last, Monotonic::default()));
        if let Some(running) = &kept.running {
            let monotonic = past(running.started_monotonic_ms).ms();
            let started = Moment::from_ms(monotonic, running.started_ms);
            c.life = Life::Running { started };
        }
        if let Some(ended) = &kept.ended {
            c.life = Life::Exited(exit(ended, past(kept.ended_monotonic_ms)));
        }
        if !kept.image_id.is_empty() {
            c.image = Image::Ready(Arc::new(ImageFacts {
                image_id: kept.image_id.clone(),
                stop_signal: kept.stop_signal,
                ..ImageFacts::default()
            }));
        }
        c.image_id = kept.image_id;
        c.made_from = kept.made_from;
        c.passed = kept.passed;
        c.replace = kept.replace;
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
                probe.last = Some(now);
            }
        }
    }
    if !same_boot || kept == Kept::OnDisk {
        reboot::begin_anew(&mut pod, moment);
    } else if record.leftovers {
        pod.leftovers = Step::Absent;
    }
    Some(pod)
}

/// Records what a shim says of an instance. An instance that is not the one the
/// record speaks of is left over, and is to be deleted.
pub fn adopt(pod: &mut Pod, name: &str, attempt: u32, found: Life) {
    let Some(c) = pod.containers.get_mut(name) else {
        return;
    };
    c.remains.entry(attempt).or_default();
    if attempt < c.attempt {
        return;
    }
    if attempt > c.attempt {
        // The record is older than the instance: a crash between the two.
        c.attempt = attempt;
        c.life = Life::None;
        c.made_from.clear();
    }
    match (&c.life, &found) {
        // Made before its image was recorded, so that nothing is known of that: it is
        // removed, and made again under the same number.
        (Life::None, Life::Created) if c.made_from.is_empty() => return,
        // Known already, or a call on its way that will say so.
        (Life::Exited(_) | Life::Creating, _)
        | (Life::Starting, Life::Created)
        // The list is older than what was told since.
        | (Life::Running { .. }, Life::Created | Life::Starting) => return,
        (
            Life::None
            | Life::Created
            | Life::Starting
            | Life::Running { .. }
            | Life::Refused { .. },
            _,
        ) => {}
    }
    if c.life != found {
        // An end is on disk before the instance that knows of it is deleted.
        pod.record.touch();
    }
    c.life = found;
}

/// Records that the folder of an instance is on disk: what is left of it has to go,
/// unless it is the one that runs.
pub fn adopt_bundle(pod: &mut Pod, name: &str, attempt: u32) {
    if let Some(c) = pod.containers.get_mut(name) {
        c.remains.entry(attempt).or_default();
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
}

/// Records what was found of a sandbox. Volumes and limits are many writes, and
/// no single one of them tells that the last was done, or that what changed while
/// there was no agent was written: both are made again, which changes nothing
/// where they are whole.
///
/// Without the pins of its namespaces nothing new could join the containers that run:
/// the sandbox is lost.
pub fn adopt_sandbox(pod: &mut Pod, found: &Sandbox, moment: Moment) {
    if pod.teardown.sandbox == Step::Ready {
        return;
    }
    if !found.namespaces && pod.has_begun() && pod.leftovers == Step::Ready {
        reboot::begin_anew(pod, moment);
    }
    if pod.leftovers != Step::Ready {
        // Its programs and its endpoint go by this number.
        pod.ifindex = found.ifindex;
        return;
    }
    let step = |there: bool| if there { Step::Ready } else { Step::Absent };
    pod.namespaces = step(found.namespaces);
    // A link into other namespaces than the pod's is of no use.
    pod.ifindex = found.ifindex.filter(|_| found.namespaces);
    pod.link = step(pod.ifindex.is_some());
    pod.programs = step(pod.ifindex.is_some() && found.programs);
    // Whether it lives is asked later.
    pod.shim = Step::Ready;
    pod.contact = Contact::Unknown(Silence {
        deaf: true,
        ..Silence::default()
    });
    pod.volumes = Step::Absent;
    pod.cgroup = Step::Absent;
}

/// After the pod's shim was heard for the first time: an instance that was being made,
/// by its record, and that the shim does not know starts from its image again.
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

    fn at(ms: i64) -> Monotonic {
        Monotonic::from_ms(ms)
    }

    fn pod() -> Pod {
        Pod::new(Arc::new(simulate::pod_spec("u", 1)), Moment::from_ms(5, 5))
    }

    #[test]
    fn what_is_remembered_comes_back() {
        let mut pod = pod();
        pod.stop = Some(Stop {
            since: at(7),
            deadline: at(800),
        });
        pod.finished = Some(Finished::Failed);
        let c = pod.containers.get_mut("c0").unwrap();
        c.attempt = 3;
        c.backoff = Backoff {
            delay_ms: 20,
            updated: at(30),
        };
        c.life = Life::Exited(Exit {
            code: 1,
            reason: "Error".into(),
            finished: Moment::from_ms(60, 1_700_000_000_060),
            attempt: 3,
            ..Exit::default()
        });
        c.last = Some(Exit {
            code: 2,
            attempt: 2,
            ..Exit::default()
        });
        c.image_id = "i@sha256:1".into();
        c.made_from = "busybox".into();
        c.probes.readiness.passing = true;
        let back = restore(
            of(&pod, "boot"),
            Kept::Whole,
            "boot",
            Moment::from_ms(99, 99),
        )
        .unwrap();
        assert_eq!(of(&back, "boot"), of(&pod, "boot"));
        assert_eq!(back.containers["c0"].life, pod.containers["c0"].life);
        assert_eq!(back.containers["c0"].last, pod.containers["c0"].last);
        assert!(back.containers["c0"].probes.readiness.passing);
        // After a reboot its clock is at 50 ms: nothing waits for a time of the other boot.
        let back = restore(
            of(&pod, "boot"),
            Kept::Whole,
            "another",
            Moment::from_ms(50, 50),
        )
        .unwrap();
        let stop = Stop {
            since: at(50),
            deadline: at(50),
        };
        assert_eq!(back.stop, Some(stop));
        let c = &back.containers["c0"];
        assert_eq!((c.attempt, c.backoff), (3, Backoff::default()));
        let Life::Exited(exit) = &c.life else {
            panic!("{:?}", c.life);
        };
        assert_eq!(exit.finished, Moment::from_ms(50, 1_700_000_000_060));
    }

    #[test]
    fn a_sandbox_that_was_removed_stays_so() {
        for boot in ["boot", "another"] {
            let mut pod = pod();
            pod.finished = Some(Finished::Succeeded);
            pod.containers.get_mut("c0").unwrap().life = Life::Exited(Exit::default());
            pod.teardown.sandbox = Step::Ready;
            let now = Moment::from_ms(9, 9);
            let mut back = restore(of(&pod, "boot"), Kept::Whole, boot, now).unwrap();
            adopt_sandbox(&mut back, &Sandbox::default(), now);
            assert_eq!(back.teardown.sandbox, Step::Ready, "{boot}");
            assert_eq!(back.contact, Contact::Heard, "{boot}");
        }
    }

    /// What is left where nothing was rebooted: both records or one, the pins or none.
    #[test]
    fn a_sandbox_that_is_lost_in_the_same_boot_is_made_anew() {
        // (records, namespaces, a container was made, the pod begins anew)
        let rows = [
            (Kept::Whole, true, true, false),
            (Kept::Whole, false, true, true),
            // The last agent had not come to its pins yet.
            (Kept::Whole, false, false, false),
            (Kept::OnDisk, true, true, true),
            (Kept::OnDisk, false, true, true),
        ];
        for (kept, namespaces, begun, anew) in rows {
            let mut spec = simulate::pod_spec("u", 1);
            spec.init_containers = simulate::pod_spec("x", 1).containers;
            spec.init_containers[0].name = "i0".into();
            let mut pod = Pod::new(Arc::new(spec), Moment::from_ms(5, 5));
            if begun {
                let started = Moment::from_ms(4, 4);
                let init = pod.containers.get_mut("i0").unwrap();
                init.life = Life::Exited(Exit::default());
                init.passed = true;
                pod.containers.get_mut("c0").unwrap().life = Life::Running { started };
            }
            let now = Moment::from_ms(9, 9);
            let mut back = restore(of(&pod, "boot"), kept, "boot", now).unwrap();
            let found = Sandbox {
                namespaces,
                ifindex: Some(7),
                programs: true,
            };
            adopt_sandbox(&mut back, &found, now);
            let row = (kept, namespaces, begun);
            assert_eq!(back.leftovers == Step::Absent, anew, "{row:?}");
            assert_eq!(!back.containers["i0"].passed, anew || !begun, "{row:?}");
            let runs = matches!(back.containers["c0"].life, Life::Running { .. });
            assert_eq!(runs, begun && !anew, "{row:?}");
            if anew {
                assert_eq!(back.ifindex, Some(7), "its endpoint has to go: {row:?}");
            }
        }
    }

    #[test]
    fn what_is_told_late_takes_nothing_back() {
        let started = Moment::from_ms(4, 4);
        let running = || Life::Running { started };
        let ended = || Life::Exited(Exit::default());
        // (known, listed, then)
        let rows = [
            (Life::None, Life::Created, Life::Created),
            (Life::None, Life::Starting, Life::Starting),
            (Life::Created, Life::Starting, Life::Starting),
            (Life::Starting, Life::Created, Life::Starting),
            (Life::Starting, running(), running()),
            (running(), Life::Created, running()),
            (running(), Life::Starting, running()),
            (running(), ended(), ended()),
            (ended(), running(), ended()),
        ];
        for (known, listed, then) in rows {
            let mut pod = pod();
            let c = pod.containers.get_mut("c0").unwrap();
            c.life = known.clone();
            c.made_from = "busybox".into();
            adopt(&mut pod, "c0", 0, listed.clone());
            assert_eq!(pod.containers["c0"].life, then, "{known:?} {listed:?}");
        }
    }

    #[test]
    fn what_may_be_half_made_is_made_again() {
        let whole = Sandbox {
            namespaces: true,
            ifindex: Some(7),
            programs: true,
        };
        let mut pod = pod();
        adopt_sandbox(&mut pod, &whole, Moment::default());
        let ready = [&pod.namespaces, &pod.link, &pod.programs, &pod.shim];
        assert!(ready.iter().all(|step| **step == Step::Ready), "{ready:?}");
        // A crash in the middle of these leaves their folders without all that is in them.
        assert_eq!((&pod.volumes, &pod.cgroup), (&Step::Absent, &Step::Absent));
        let other = Sandbox {
            namespaces: false,
            ..whole
        };
        adopt_sandbox(&mut pod, &other, Moment::default());
        let link = (&pod.link, &pod.programs, pod.ifindex);
        assert_eq!(link, (&Step::Absent, &Step::Absent, None));
    }

    #[test]
    fn a_newer_instance_than_the_record_wins_and_older_ones_are_left_over() {
        let mut pod = pod();
        pod.containers.get_mut("c0").unwrap().attempt = 1;
        adopt(&mut pod, "c0", 0, Life::Exited(Exit::default()));
        assert_eq!(pod.containers["c0"].attempt, 1);
        assert_eq!(pod.containers["c0"].life, Life::None);
        let started = Moment::from_ms(4, 4);
        adopt(&mut pod, "c0", 2, Life::Running { started });
        let c = &pod.containers["c0"];
        assert_eq!((c.attempt, c.life.clone()), (2, Life::Running { started }));
        assert_eq!(c.remains.keys().copied().collect::<Vec<_>>(), [0, 2]);
    }
}
