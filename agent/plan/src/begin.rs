//! What an action makes of `Observed` at the moment it is begun: slow work is
//! marked as on its way, decisions take effect.
//!
//! Called by the daemon's loop for each action before `apply.rs` sees it, and by
//! `simulate.rs`. How the work went comes later, as an `Outcome`.

use proto::v1;

use crate::action::{Action, HookKind, Instance};
use crate::image;
use crate::link::SERVICE_LINK;
use crate::restart::Backoff;
use crate::settings::Settings;
use crate::world::{
    Contact, Container, Hook, Image, ImageReason, Kill, Life, Observed, Pod, Refused,
    container_spec,
};

impl Observed {
    /// The container of an instance, if that is still the one it is at.
    pub fn container_mut(&mut self, instance: &Instance) -> Option<&mut Container> {
        let pod = self.pods.get_mut(&instance.uid)?;
        let container = pod.containers.get_mut(&instance.container)?;
        (container.attempt == instance.attempt).then_some(container)
    }

    /// The image of an instance's container, as the manifest names it.
    pub(crate) fn image_of(&self, instance: &Instance) -> String {
        let pod = self.pods.get(&instance.uid);
        let spec = pod.and_then(|pod| pod.container_spec(&instance.container));
        spec.map(|c| c.image.clone()).unwrap_or_default()
    }

    fn with_pod(&mut self, uid: &str, change: impl FnOnce(&mut Pod)) {
        if let Some(pod) = self.pods.get_mut(uid) {
            change(pod);
        }
    }

    fn with_container(&mut self, instance: &Instance, change: impl FnOnce(&mut Container)) {
        if let Some(container) = self.container_mut(instance) {
            change(container);
        }
    }

    /// Marks an action as begun.
    pub fn begin(&mut self, action: &Action, settings: &Settings) {
        match action {
            Action::Take { spec, now } => match self.pods.get_mut(&spec.uid) {
                None => {
                    self.pods
                        .insert(spec.uid.clone(), Pod::new(spec.clone(), *now));
                }
                Some(pod) => {
                    if pod.spec.volumes != spec.volumes {
                        pod.volumes.touch();
                    }
                    pod.forget_config_errors(spec);
                    pod.forget_images(spec);
                    pod.spec = spec.clone();
                    pod.withheld = false;
                    pod.record.touch();
                }
            },
            Action::Stop { uid, stop } => self.with_pod(uid, |pod| {
                pod.stop = Some(*stop);
                pod.record.touch();
            }),
            Action::Finish { uid, finished } => self.with_pod(uid, |pod| {
                pod.finished = Some(*finished);
                pod.record.touch();
            }),
            Action::Restart { instance, backoff } => {
                self.with_pod(&instance.uid, |pod| pod.record.touch());
                // `attempt` is the next instance's: it may be the current one plus one.
                let pod = self.pods.get_mut(&instance.uid);
                if let Some(c) = pod.and_then(|p| p.containers.get_mut(&instance.container)) {
                    let ended = std::mem::take(&mut c.life);
                    if let Life::Exited(exit) = ended {
                        c.last = Some(exit);
                    }
                    *c = Container {
                        attempt: instance.attempt,
                        backoff: *backoff,
                        last: c.last.take(),
                        image_id: std::mem::take(&mut c.image_id),
                        passed: c.passed,
                        making: c.making,
                        remains: std::mem::take(&mut c.remains),
                        ..Container::default()
                    };
                }
            }
            Action::Pass { instance } => {
                self.with_pod(&instance.uid, |pod| pod.record.touch());
                self.with_container(instance, |c| c.passed = true);
            }
            Action::BeginKill {
                instance,
                why,
                since,
                deadline,
            } => {
                self.with_container(instance, |c| match &mut c.kill {
                    Some(kill) => {
                        kill.since = *since;
                        kill.deadline = *deadline;
                    }
                    None => c.kill = Some(Kill::new(*why, *since, *deadline)),
                });
            }
            Action::RefuseImage { instance, now } => {
                self.with_container(instance, |c| {
                    let delay_ms = settings.image_backoff_base_ms;
                    c.image = Image::Failed {
                        reason: ImageReason::NeverPull,
                        message: "Container image is not present with pull policy of Never".into(),
                        at: *now,
                        delay_ms,
                    };
                });
            }
            Action::RefuseConfig {
                instance,
                message,
                now,
            } => {
                self.with_container(instance, |c| {
                    c.life = Life::Refused {
                        reason: Refused::Config,
                        message: message.clone(),
                        at: *now,
                    };
                });
            }
            Action::ReportHostPorts { uid, conflicts } => {
                self.with_pod(uid, |pod| pod.host_ports.clone_from(conflicts));
            }
            Action::Record { uid } => self.with_pod(uid, |p| p.record.start()),
            Action::PinNamespaces { uid, .. } => self.with_pod(uid, |p| p.namespaces.start()),
            Action::CreateLink { uid, .. } => self.with_pod(uid, |p| p.link.start()),
            Action::AttachPrograms { uid, .. } => self.with_pod(uid, |p| p.programs.start()),
            Action::CreateCgroup { uid, .. } => self.with_pod(uid, |p| p.cgroup.start()),
            Action::StartShim { uid, .. } => self.with_pod(uid, |p| p.shim.start()),
            Action::AskShim { uid, .. } => self.with_pod(uid, |p| {
                if let Contact::Unknown(silence) = &mut p.contact {
                    silence.asking = true;
                }
            }),
            Action::MakeVolumes { uid, .. } => self.with_pod(uid, |p| p.volumes.start()),
            Action::FindImage { instance, .. } => {
                self.with_container(instance, |c| {
                    c.image_delay_ms = image::failed_delay_ms(&c.image, c.image_delay_ms);
                    c.image = Image::Looking;
                });
            }
            Action::PullImage { instance, .. } => {
                self.with_container(instance, |c| {
                    c.image_delay_ms = image::failed_delay_ms(&c.image, c.image_delay_ms);
                    c.image = Image::Pulling;
                });
            }
            Action::CancelPull { instance } => {
                self.with_container(instance, |c| c.image = Image::Unknown);
            }
            Action::CreateContainer {
                instance, image, ..
            } => {
                let named = self.image_of(instance);
                // Its image and stop signal are on disk before its program runs: an agent
                // that adopts it has no other source for them.
                self.with_pod(&instance.uid, |pod| pod.record.touch());
                self.with_container(instance, |c| {
                    c.life = Life::Creating;
                    c.making = Some(instance.attempt);
                    c.made_from = named;
                    c.image_id.clone_from(&image.image_id);
                    c.remains.entry(instance.attempt).or_default();
                });
            }
            Action::StartContainer { instance } => {
                self.with_container(instance, |c| c.life = Life::Starting);
            }
            Action::Signal {
                instance,
                signal,
                now,
                ..
            } => self.with_container(instance, |c| {
                if let Some(kill) = &mut c.kill {
                    kill.asked.get_or_insert(*now);
                    if *signal == 9 {
                        kill.killed = Some(*now);
                    }
                }
            }),
            Action::DeleteContainer { instance } => {
                let pod = self.pods.get_mut(&instance.uid);
                if let Some(c) = pod.and_then(|p| p.containers.get_mut(&instance.container)) {
                    let left = c.remains.entry(instance.attempt);
                    left.or_default().start();
                }
            }
            Action::RunHook { instance, kind, .. } => {
                self.with_container(instance, |c| match (kind, &mut c.kill) {
                    (HookKind::PostStart, _) => c.post_start = Hook::Running,
                    (HookKind::PreStop, Some(kill)) => kill.pre_stop = Hook::Running,
                    (HookKind::PreStop, None) => {}
                });
            }
            Action::Probe { instance, kind, .. } => {
                self.with_container(instance, |c| c.probes.get_mut(*kind).running = true);
            }
            Action::RemoveSandbox { uid, .. } => {
                self.with_pod(uid, |p| p.teardown.sandbox.start());
            }
            Action::RemoveLeftovers { uid, .. } => self.with_pod(uid, |p| p.leftovers.start()),
            Action::RemoveStray { uid, .. } => {
                if let Some(step) = self.strays.get_mut(uid) {
                    step.start();
                }
            }
            Action::RemoveFolders { uid, .. } => {
                self.with_pod(uid, |p| p.teardown.folders.start());
            }
            Action::ReportGone { gone } => {
                self.pods.remove(&gone.uid);
                self.gone.insert(gone.uid.clone());
            }
            Action::Forget { uid } => {
                self.gone.remove(uid);
            }
            Action::DeleteLink { name } => {
                if let Some(step) = self.network.strays.get_mut(name) {
                    step.start();
                }
            }
            Action::DetachPrograms { ifindex } => {
                if let Some(step) = self.network.dead.get_mut(ifindex) {
                    step.start();
                }
            }
            Action::PutServiceLink { .. } => {
                if let Some(device) = self.network.devices.get_mut(SERVICE_LINK) {
                    device.link.start();
                }
            }
            Action::AttachDevice { name, .. } => {
                if let Some(device) = self.network.devices.get_mut(name) {
                    device.programs.start();
                }
            }
            Action::PutRoute { route } | Action::DeleteRoute { route } => {
                self.network
                    .pending
                    .entry(route.destination)
                    .or_default()
                    .start();
            }
            // Done at once by the loop, which owns the maps; `Outcome` says how it went.
            Action::PutEndpoint { .. }
            | Action::DeleteEndpoint { .. }
            | Action::PutNetwork { .. }
            | Action::DeleteNetwork { .. }
            | Action::PutSourceRange { .. }
            | Action::DeleteSourceRange { .. }
            | Action::PutBackend { .. }
            | Action::DeleteBackend { .. }
            | Action::PutTable { .. }
            | Action::DeleteTable { .. }
            | Action::PutFrontend { .. }
            | Action::DeleteFrontend { .. } => {}
        }
    }
}

impl Pod {
    /// What a container was refused for has changed (its ConfigMap came, say): it is
    /// tried at once, and not when the back-off of the old error is over.
    fn forget_config_errors(&mut self, next: &v1::PodSpec) {
        fn of<'a>(spec: &'a v1::PodSpec, name: &str) -> Option<(&'a str, &'a [v1::EnvVar])> {
            let container = container_spec(spec, name)?;
            Some((&container.config_error, &container.env))
        }
        for (name, container) in &mut self.containers {
            let refused = matches!(
                container.life,
                Life::Refused { reason, .. } if reason == Refused::Config
            );
            if refused && of(&self.spec, name) != of(next, name) {
                container.life = Life::None;
                container.backoff = Backoff::default();
            }
        }
    }

    /// The image of a container that has yet to be made is another one now: what was
    /// found out about the one before does not count.
    fn forget_images(&mut self, next: &v1::PodSpec) {
        for (name, container) in &mut self.containers {
            let of = |spec, name| container_spec(spec, name).map(|c| c.image.clone());
            if of(&self.spec, name) == of(next, name) {
                continue;
            }
            let refused = matches!(container.life, Life::Refused { .. });
            if matches!(container.life, Life::None) || refused {
                container.life = Life::None;
                container.image = Image::Unknown;
                container.image_delay_ms = 0;
            }
            // Delays are those of a container as it was (GetBackoffKey in kubelet).
            container.backoff = Backoff::default();
        }
    }
}
