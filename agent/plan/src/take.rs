//! Outcomes taken into `Observed`, and the events that users are told, in Kubernetes' words.
//!
//! With `begin.rs` the only writer of `Observed`. Called by the daemon's loop.

use std::sync::Arc;

use proto::v1;

use crate::action::{Action, HookKind, Instance};
use crate::container::next_backoff;
use crate::create::role;
use crate::event::{self, Note};
use crate::image;
use crate::lost::{self, to_be_replaced};
use crate::outcome::{ImageFailure, Outcome, Part, Refusal};
use crate::probe::{self, Kind, Probes};
use crate::restart::{self, Restart};
use crate::settings::Settings;
use crate::step::Step;
use crate::time::{Moment, Monotonic, Wall};
use crate::world::{Container, Exit, Hook, Image, Kill, Life, Observed, Refused, Why};

impl Observed {
    /// Takes an outcome in; what users are to be told.
    pub fn take(&mut self, outcome: Outcome, settings: &Settings, moment: Moment) -> Vec<Note> {
        let now = moment.monotonic;
        let mut notes = Vec::new();
        if let Outcome::Created { instance, .. } = &outcome {
            self.made(instance);
        }
        match outcome {
            Outcome::Part { uid, part, result } => {
                if part == Part::NoStray {
                    return self.stray_removed(&uid, result, now);
                }
                let Some(pod) = self.pods.get_mut(&uid) else {
                    return notes;
                };
                if let Err(message) = &result {
                    notes.extend(event::part_failed(&pod.spec, part, message));
                }
                let removed = matches!(part, Part::NoSandbox | Part::NoLeftovers);
                let removed = removed && result.is_ok();
                let step = match part {
                    Part::Record => &mut pod.record,
                    Part::Namespaces => &mut pod.namespaces,
                    Part::Programs => &mut pod.programs,
                    Part::Cgroup => &mut pod.cgroup,
                    Part::Shim => &mut pod.shim,
                    Part::Volumes => &mut pod.volumes,
                    Part::NoLeftovers => &mut pod.leftovers,
                    Part::NoSandbox => &mut pod.teardown.sandbox,
                    Part::NoFolders => &mut pod.teardown.folders,
                    Part::NoStray => return notes,
                };
                step.end(result, now);
                if removed {
                    lost::sandbox(pod, moment);
                }
            }
            Outcome::Link { uid, result } => notes.extend(self.linked(&uid, result, now)),
            // An image that is not asked for any more: the spec names another one now.
            Outcome::ImageFound {
                instance, image, ..
            }
            | Outcome::ImagePulled {
                instance, image, ..
            } if self.image_of(&instance) != image => {}
            Outcome::ImageFound {
                instance, result, ..
            } => {
                let note = result
                    .as_ref()
                    .is_ok_and(Option::is_some)
                    .then_some(event::present);
                self.with_image(&instance, Image::Looking, |c| {
                    c.image = match result {
                        Ok(Some(facts)) => {
                            c.image_delay_ms = 0;
                            Image::Ready(facts)
                        }
                        Ok(None) => Image::Missing,
                        Err(failure) => failed(failure, c.image_delay_ms, settings, now),
                    };
                });
                notes.extend(note.and_then(|n| self.note(&instance, n)));
            }
            Outcome::ImagePulled {
                instance,
                took_ms,
                result,
                ..
            } => {
                let spec = self.spec_of(&instance);
                match (&result, &spec) {
                    (Ok(_), Some((pod, c))) => notes.push(event::pulled(pod, c, took_ms)),
                    (Err(failure), Some((pod, c))) => {
                        notes.extend(event::pull_failed(pod, c, failure));
                    }
                    (_, None) => {}
                }
                self.with_image(&instance, Image::Pulling, |c| {
                    c.image = match result {
                        Ok(facts) => {
                            c.image_delay_ms = 0;
                            Image::Ready(facts)
                        }
                        Err(failure) => failed(failure, c.image_delay_ms, settings, now),
                    };
                });
            }
            Outcome::Created {
                instance,
                result: Err(Refusal::Unanswered(_)),
            } => {
                self.unanswered(&instance.uid, now);
                // What may be there of it is found, or removed, before another try.
                if let Some(c) = self.container_mut(&instance)
                    && c.life == Life::Creating
                {
                    c.life = Life::None;
                }
            }
            // It runs, or will: the shim tells which.
            Outcome::Started {
                instance,
                result: Err(Refusal::Begun(_)),
            } => self.unanswered(&instance.uid, now),
            Outcome::Started {
                instance,
                result: Err(Refusal::Unanswered(_)),
            } => {
                self.unanswered(&instance.uid, now);
                if let Some(c) = self.container_mut(&instance)
                    && c.life == Life::Starting
                {
                    c.life = Life::Created;
                }
            }
            Outcome::Created { instance, result } => {
                let waits = self.container_mut(&instance);
                if waits.is_none_or(|c| c.life != Life::Creating) {
                    return notes;
                }
                match &result {
                    Ok(warnings) => {
                        notes.extend(self.note(&instance, event::created));
                        for text in warnings {
                            let warn = |p: &_, c: &_| event::limited(p, c, text);
                            notes.extend(self.note(&instance, warn));
                        }
                    }
                    Err(refusal) => {
                        let say = |p: &_, c: &_| event::refused(p, c, refusal);
                        notes.extend(self.note(&instance, say));
                    }
                }
                self.refused_or(&instance, result.map(drop), moment, |life| {
                    *life = Life::Created
                });
            }
            Outcome::Started { instance, result } => {
                // A container that is there and does not start has had its try: it
                // counts as an instance that failed.
                let result = result.map_err(|refusal| match refusal {
                    Refusal::Memory(message) => Refusal::Memory(message),
                    Refusal::Config(message)
                    | Refusal::Command(message)
                    | Refusal::Runtime(message)
                    | Refusal::Unanswered(message)
                    | Refusal::Begun(message) => Refusal::Command(message),
                });
                let waits = self.container_mut(&instance).is_some_and(|c| match result {
                    // Told by the call and by the watch, whichever comes first; the call
                    // may have been given up.
                    Ok(_) => matches!(c.life, Life::Created | Life::Starting),
                    Err(_) => c.life == Life::Starting,
                });
                if !waits {
                    return notes;
                }
                match &result {
                    Ok(_) => notes.extend(self.note(&instance, event::started)),
                    Err(refusal) => {
                        let say = |p: &_, c: &_| event::refused(p, c, refusal);
                        notes.extend(self.note(&instance, say));
                    }
                }
                let started = result.as_ref().copied().unwrap_or(moment);
                if let (Ok(_), Some(pod)) = (&result, self.pods.get_mut(&instance.uid)) {
                    pod.record.touch();
                }
                self.refused_or(&instance, result.map(drop), moment, |life| {
                    *life = Life::Running { started };
                });
            }
            Outcome::Exited { instance, exit } => {
                self.exited(&instance, exit, settings, now, &mut notes)
            }
            Outcome::HookDone {
                instance,
                kind,
                result,
            } => {
                if let Err(message) = &result {
                    let say = |p: &_, c: &_| event::hook_failed(p, c, kind, message);
                    notes.extend(self.note(&instance, say));
                }
                let grace = self.pods.get(&instance.uid).map_or(0, |pod| {
                    pod.spec
                        .termination_grace_period_seconds
                        .max(0)
                        .saturating_mul(1000)
                });
                if let Some(c) = self.container_mut(&instance) {
                    match (kind, &mut c.kill) {
                        (HookKind::PreStop, Some(kill)) => kill.pre_stop = Hook::Done,
                        (HookKind::PreStop, None) => {}
                        (HookKind::PostStart, kill) => {
                            c.post_start = Hook::Done;
                            // As kubelet: a container whose hook failed is ended.
                            if result.is_err() && kill.is_none() {
                                *kill = Some(Kill::new(Why::Hook, now, now + grace));
                            }
                        }
                    }
                }
            }
            Outcome::Probed {
                instance,
                kind,
                result,
            } => {
                self.probed(&instance, kind, result, now, &mut notes);
            }
            Outcome::Deleted { instance, result } => {
                let pod = self.pods.get_mut(&instance.uid);
                if let Some(c) = pod.and_then(|p| p.containers.get_mut(&instance.container)) {
                    let step = c.remains.entry(instance.attempt).or_default();
                    step.end(result, now);
                    c.remains.retain(|_, step| *step != Step::Ready);
                }
            }
            Outcome::Unanswered { instance, call } => self.unanswered_call(&instance, call, now),
            Outcome::ShimLost { uid } => self.deaf(&uid, now),
            Outcome::ShimAnswered {
                uid,
                listens,
                answer,
            } => return self.answered(&uid, listens, answer, moment),
            Outcome::Route {
                route,
                deleted,
                result,
            } => self.routed(route, deleted, result, now),
            Outcome::LinkDeleted { name, result } => self.link_deleted(&name, result, now),
            Outcome::ServiceLink { result } => {
                notes.extend(self.service_link_put(result, settings, now));
            }
            Outcome::DeviceAttached { name, result } => {
                notes.extend(self.device_attached(&name, result, settings, now));
            }
            Outcome::Seen { expected, seen } => {
                return self.seen(&expected, *seen, settings, now);
            }
            Outcome::Detached { ifindex, result } => self.detached(ifindex, result, now),
            Outcome::Written { action } => self.written(*action),
        }
        notes
    }

    /// The making of an instance has come back, which may not be the current one any more.
    fn made(&mut self, instance: &Instance) {
        let pod = self.pods.get_mut(&instance.uid);
        if let Some(c) = pod.and_then(|pod| pod.containers.get_mut(&instance.container))
            && c.making == Some(instance.attempt)
        {
            c.making = None;
        }
    }

    fn stray_removed(
        &mut self,
        uid: &str,
        result: Result<(), String>,
        now: Monotonic,
    ) -> Vec<Note> {
        if result.is_ok() {
            self.strays.remove(uid);
        } else if let Some(step) = self.strays.get_mut(uid) {
            step.end(result, now);
        }
        Vec::new()
    }

    /// The pod's and the container's spec of an instance that is still current.
    fn spec_of(&self, instance: &Instance) -> Option<(Arc<v1::PodSpec>, v1::ContainerSpec)> {
        let pod = self.pods.get(&instance.uid)?;
        let state = pod.containers.get(&instance.container)?;
        let spec = &pod.spec;
        let of = spec.init_containers.iter().chain(&spec.containers);
        let container = of.into_iter().find(|c| c.name == instance.container)?;
        (state.attempt == instance.attempt).then(|| (spec.clone(), container.clone()))
    }

    fn note(
        &self,
        instance: &Instance,
        make: impl FnOnce(&v1::PodSpec, &v1::ContainerSpec) -> Note,
    ) -> Option<Note> {
        self.spec_of(instance)
            .map(|(pod, container)| make(&pod, &container))
    }

    fn with_image(
        &mut self,
        instance: &Instance,
        expected: Image,
        change: impl FnOnce(&mut Container),
    ) {
        if let Some(c) = self.container_mut(instance)
            && c.image == expected
        {
            change(c);
        }
    }

    fn refused_or(
        &mut self,
        instance: &Instance,
        result: Result<(), Refusal>,
        now: Moment,
        good: impl FnOnce(&mut Life),
    ) {
        let Some(c) = self.container_mut(instance) else {
            return;
        };
        // It has ended meanwhile, or its shim has said more of it since.
        if !matches!(c.life, Life::Creating | Life::Created | Life::Starting) {
            return;
        }
        let (reason, message) = match result {
            Ok(()) => return good(&mut c.life),
            Err(Refusal::Config(message)) => (Refused::Config, message),
            Err(
                Refusal::Runtime(message) | Refusal::Unanswered(message) | Refusal::Begun(message),
            ) => (Refused::Create, message),
            Err(refusal @ (Refusal::Command(_) | Refusal::Memory(_))) => {
                let (code, reason, message) = match refusal {
                    Refusal::Memory(message) => (137, "OOMKilled", message),
                    Refusal::Config(message)
                    | Refusal::Command(message)
                    | Refusal::Runtime(message)
                    | Refusal::Unanswered(message)
                    | Refusal::Begun(message) => (128, "StartError", message),
                };
                // It counts as an instance that ran and failed, so that restarts are
                // counted and held back.
                c.life = Life::Exited(Exit {
                    code,
                    signal: 0,
                    reason: reason.into(),
                    message,
                    started: Wall::default(),
                    finished: now,
                    attempt: instance.attempt,
                });
                c.kill = None;
                if let Some(pod) = self.pods.get_mut(&instance.uid) {
                    pod.record.touch();
                }
                return;
            }
        };
        c.life = Life::Refused {
            reason,
            message,
            at: now.monotonic,
        };
        c.kill = None;
    }

    fn exited(
        &mut self,
        instance: &Instance,
        exit: Exit,
        settings: &Settings,
        now: Monotonic,
        notes: &mut Vec<Note>,
    ) {
        let spec = self.spec_of(instance);
        let Some(c) = self.container_mut(instance) else {
            return;
        };
        // Told twice (by adoption and by the watch), or refused meanwhile.
        if matches!(c.life, Life::Exited(_) | Life::None | Life::Refused { .. }) {
            return;
        }
        let (backoff, ended, code) = (c.backoff, exit.finished.monotonic, exit.code);
        c.replace = to_be_replaced(c);
        c.life = Life::Exited(exit);
        c.kill = None;
        c.post_start = Hook::Waiting;
        c.probes = Probes::default();
        let Some(pod) = self.pods.get_mut(&instance.uid) else {
            return;
        };
        pod.record.touch();
        let Some((pod_spec, container)) = spec else {
            return;
        };
        let again = restart::wanted(
            role(&pod_spec, &container.name),
            &pod_spec.restart_policy,
            code,
        );
        let held = matches!(next_backoff(backoff, ended, settings, now), Restart::At(_));
        if again && held && pod.stop.is_none() && pod.finished.is_none() {
            notes.push(event::back_off(&pod_spec, &container));
        }
    }

    fn probed(
        &mut self,
        instance: &Instance,
        kind: Kind,
        result: Result<(), String>,
        now: Monotonic,
        notes: &mut Vec<Note>,
    ) {
        let Some((pod, container)) = self.spec_of(instance) else {
            return;
        };
        let Some(wanted) = kind.of(&container) else {
            return;
        };
        let Some(c) = self.container_mut(instance) else {
            return;
        };
        if !matches!(c.life, Life::Running { .. }) {
            return;
        }
        let before = *c.probes.get(kind);
        let probe = c.probes.get_mut(kind);
        probe::record(kind, wanted, probe, result.is_ok(), now);
        // Quick repetitions at the start are not worth an event each.
        // Nor is the first failure of a program that is just starting.
        let starting = kind != Kind::Liveness && !probe.settled && before.counted.is_none();
        let counted = probe.counted != before.counted && !starting;
        let failing = probe.failing && !before.failing;
        let turned = probe.passing != before.passing;
        if let (Err(message), true) = (&result, counted) {
            notes.push(event::unhealthy(&pod, &container, kind, message));
        }
        if let (true, Some(pod)) = (turned, self.pods.get_mut(&instance.uid)) {
            pod.record.touch();
        }
        if failing && kind != Kind::Readiness {
            notes.push(event::probe_kills(&pod, &container, kind));
        }
    }

    fn written(&mut self, action: Action) {
        if let Action::PutEndpoint { endpoint, .. } = action {
            self.endpoints.last = endpoint.id;
            self.endpoints.entries.insert(endpoint.addr, endpoint);
        } else if let Action::DeleteEndpoint { endpoint } = action {
            self.endpoints.entries.remove(&endpoint.addr);
        } else if let Action::PutNetwork { range, kind } = action {
            self.network.blocks.insert(range, kind);
        } else if let Action::DeleteNetwork { range } = action {
            self.network.blocks.remove(&range);
        } else if let Action::PutSourceRange { range } = action {
            self.maps.put_source_range(range);
        } else if let Action::DeleteSourceRange { range } = action {
            self.maps.delete_source_range(&range);
        } else if let Action::PutBackend { id, backend, .. } = action {
            self.maps.put_backend(id, backend);
        } else if let Action::DeleteBackend { id } = action {
            self.maps.delete_backend(id);
        } else if let Action::PutTable { port_id, table } = action {
            self.maps.put_table(port_id, table);
        } else if let Action::DeleteTable { port_id } = action {
            self.maps.delete_table(port_id);
        } else if let Action::PutFrontend { key, frontend, .. } = action {
            self.maps.put_frontend(key, frontend);
        } else if let Action::DeleteFrontend { key } = action {
            self.maps.delete_frontend(&key);
        }
    }
}

fn failed(failure: ImageFailure, before_ms: i64, settings: &Settings, now: Monotonic) -> Image {
    Image::Failed {
        reason: failure.reason,
        message: failure.message,
        at: now,
        delay_ms: image::delay_ms(before_ms, settings),
    }
}
