//! One container's next step: image, create, start, hooks, probes, restart, end.
//!
//! It knows nothing of the order among a pod's containers: `pod.rs` does, and
//! calls [`plan`] for those that may run. Those that shall not are `kill.rs`'s.

use std::collections::BTreeMap;

use proto::v1;

use crate::action::{Action, HookKind, Instance};
use crate::create;
use crate::environment;
use crate::image;
use crate::kill::killing;
use crate::probe::Kind;
use crate::probing;
use crate::restart::{self, Backoff, Restart};
use crate::settings::Settings;
use crate::steps::{Steps, instance};
use crate::time::Monotonic;
use crate::user;
use crate::volume;
use crate::world::{Container, Hook, Image, Life, Pod, Why};

/// How far the sandbox is, and what else containers are made of.
#[derive(Debug, Clone, Copy)]
pub struct Ready<'a> {
    /// Containers can be made in it.
    pub create: bool,
    /// Its address is live: containers may run.
    pub start: bool,
    /// The services of the cluster, by "namespace/name": variables name them.
    pub services: &'a BTreeMap<String, v1::Service>,
}

/// The next step of a container that may run.
pub fn plan(
    pod: &Pod,
    spec: &v1::ContainerSpec,
    container: &Container,
    ready: Ready<'_>,
    settings: &Settings,
    now: Monotonic,
    steps: &mut Steps,
) {
    let this = || instance(pod, &spec.name, container);
    match &container.life {
        Life::None => create(pod, spec, container, ready, settings, now, steps),
        Life::Creating | Life::Starting => {}
        Life::Created => match &container.kill {
            Some(kill) => killing(pod, spec, container, (kill, true), settings, now, steps),
            // Made while its image was changed: it is not worth its grace.
            None if is_outdated(spec, container) => steps.actions.push(Action::BeginKill {
                instance: this(),
                why: Why::Image,
                since: now,
                deadline: now,
            }),
            None if ready.start => steps
                .actions
                .push(Action::StartContainer { instance: this() }),
            None => {}
        },
        Life::Running { started } => {
            running(
                pod,
                spec,
                container,
                started.monotonic,
                settings,
                now,
                steps,
            );
        }
        Life::Exited(exit) => {
            let mut next = this();
            next.attempt += 1;
            if container.replace {
                let backoff = Backoff::default();
                let instance = next;
                steps.actions.push(Action::Restart { instance, backoff });
                return;
            }
            let role = create::role(&pod.spec, &spec.name);
            if !restart::wanted(role, &pod.spec.restart_policy, exit.code) {
                return;
            }
            again(
                next,
                container.backoff,
                exit.finished.monotonic,
                settings,
                now,
                steps,
            );
        }
        Life::Refused { at, .. } => {
            again(this(), container.backoff, *at, settings, now, steps);
        }
    }
}

/// True when an instance was made from another image than the spec names now.
fn is_outdated(spec: &v1::ContainerSpec, container: &Container) -> bool {
    !container.made_from.is_empty() && container.made_from != spec.image
}

fn again(
    instance: Instance,
    backoff: Backoff,
    ended: Monotonic,
    settings: &Settings,
    now: Monotonic,
    steps: &mut Steps,
) {
    match next_backoff(backoff, ended, settings, now) {
        Restart::Now(backoff) => steps.actions.push(Action::Restart { instance, backoff }),
        Restart::At(due) => steps.wake(due),
    }
}

/// The back-off of a container that ended then, under the node's settings.
pub fn next_backoff(
    backoff: Backoff,
    ended: Monotonic,
    settings: &Settings,
    now: Monotonic,
) -> Restart {
    let (base, max) = (
        settings.restart_backoff_base_ms,
        settings.restart_backoff_max_ms,
    );
    restart::after(backoff, ended, base, max, now)
}

fn create(
    pod: &Pod,
    spec: &v1::ContainerSpec,
    container: &Container,
    ready: Ready<'_>,
    settings: &Settings,
    now: Monotonic,
    steps: &mut Steps,
) {
    let this = instance(pod, &spec.name, container);
    if !spec.config_error.is_empty() {
        let message = spec.config_error.clone();
        steps.actions.push(Action::RefuseConfig {
            instance: this,
            message,
            now,
        });
        return;
    }
    let image = spec.image.clone();
    match image::next(&container.image, &spec.image_pull_policy, now) {
        image::Next::Find => steps.actions.push(Action::FindImage {
            instance: this,
            image,
        }),
        image::Next::Pull => steps.actions.push(Action::PullImage {
            instance: this,
            image,
            secrets: pod.spec.pull_secrets.clone(),
        }),
        image::Next::Refuse => steps.actions.push(Action::RefuseImage {
            instance: this,
            now,
        }),
        image::Next::Wait => {}
        image::Next::WaitUntil(due) => {
            if let Image::Failed { at, delay_ms, .. } = container.image {
                // The reason shown changes before the next try.
                let turn = image::backoff(at, delay_ms);
                steps.wake(if now < turn { turn } else { due });
            }
        }
        image::Next::Go => {
            let Image::Ready(facts) = &container.image else {
                return;
            };
            // What is left of an earlier try goes first, also if it is still on its way.
            if !ready.create
                || container.making.is_some()
                || container.remains.contains_key(&container.attempt)
            {
                return;
            }
            let made = environment::resolve(&pod.spec, spec, ready.services).and_then(|spec| {
                let attempt = container.attempt;
                let create = create::create(&pod.spec, &spec, attempt, facts, settings)?;
                Ok((create, volume::mounts(&pod.spec, &spec)))
            });
            match made {
                Ok((create, mounts)) => steps.actions.push(Action::CreateContainer {
                    instance: this,
                    image: facts.clone(),
                    create: Box::new(create),
                    user: user::wanted(&pod.spec, spec, facts),
                    mounts,
                    oldest_log: create::oldest_log(container.attempt),
                }),
                Err(create::ConfigError(message)) => {
                    steps.actions.push(Action::RefuseConfig {
                        instance: this,
                        message,
                        now,
                    });
                }
            }
        }
    }
}

fn running(
    pod: &Pod,
    spec: &v1::ContainerSpec,
    container: &Container,
    since: Monotonic,
    settings: &Settings,
    now: Monotonic,
    steps: &mut Steps,
) {
    let this = || instance(pod, &spec.name, container);
    if let Some(kill) = &container.kill {
        killing(pod, spec, container, (kill, true), settings, now, steps);
        return;
    }
    let until = |grace_s: i64| now + grace_s.max(0).saturating_mul(1000);
    if is_outdated(spec, container) {
        steps.actions.push(Action::BeginKill {
            instance: this(),
            why: Why::Image,
            since: now,
            deadline: until(pod.spec.termination_grace_period_seconds),
        });
        return;
    }
    let address = pod.address().unwrap_or(settings.node_ip);
    if let (Some(handler), Hook::Waiting) = (&spec.post_start, container.post_start) {
        let timeout_ms = i64::MAX;
        let (handler, kind) = (handler.clone(), HookKind::PostStart);
        steps.actions.push(Action::RunHook {
            instance: this(),
            kind,
            handler,
            address,
            timeout_ms,
        });
    }
    if spec.post_start.is_some() && container.post_start != Hook::Done {
        return;
    }
    let failed = |kind: Kind| container.probes.get(kind).failing;
    if failed(Kind::Startup) || failed(Kind::Liveness) {
        let probe = if failed(Kind::Startup) {
            &spec.startup
        } else {
            &spec.liveness
        };
        let own = probe
            .as_ref()
            .and_then(|p| p.termination_grace_period_seconds);
        let grace = own.unwrap_or(pod.spec.termination_grace_period_seconds);
        steps.actions.push(Action::BeginKill {
            instance: this(),
            why: Why::Probe,
            since: now,
            deadline: until(grace),
        });
        return;
    }
    let of = (container, &Kind::ALL[..]);
    probing::due(pod, spec, of, since, settings, now, steps);
}

/// True while an instance is, or may become, a process.
pub fn alive(container: &Container) -> bool {
    match container.life {
        Life::Creating | Life::Created | Life::Starting | Life::Running { .. } => true,
        Life::None | Life::Exited(_) | Life::Refused { .. } => false,
    }
}
