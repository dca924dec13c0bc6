//! The probes of a running instance that are due, as actions.
//!
//! When one is due and what a result means is `probe.rs`. Called by `container.rs`,
//! and by `kill.rs` for an instance that ends.

use proto::v1;

use crate::action::Action;
use crate::probe::{self, Kind};
use crate::settings::Settings;
use crate::steps::{Steps, instance};
use crate::time::Monotonic;
use crate::world::{Container, Pod};

/// Those of `kinds` that are due, for an instance that runs `since` then.
pub fn due(
    pod: &Pod,
    spec: &v1::ContainerSpec,
    (container, kinds): (&Container, &[Kind]),
    since: Monotonic,
    settings: &Settings,
    now: Monotonic,
    steps: &mut Steps,
) {
    for &kind in kinds {
        probe(pod, spec, (container, kind), since, settings, now, steps);
    }
}

fn probe(
    pod: &Pod,
    spec: &v1::ContainerSpec,
    (container, kind): (&Container, Kind),
    since: Monotonic,
    settings: &Settings,
    now: Monotonic,
    steps: &mut Steps,
) {
    let Some(wanted) = kind.of(spec) else {
        return;
    };
    // Startup ends with its success; the others wait for it.
    let started = container.probes.started(spec);
    let probe = container.probes.get(kind);
    if started == (kind == Kind::Startup) || probe.running {
        return;
    }
    let due = probe::due(kind, wanted, probe, since);
    if now < due {
        steps.wake(due);
        return;
    }
    steps.actions.push(Action::Probe {
        instance: instance(pod, &spec.name, container),
        kind,
        handler: wanted.handler.clone().unwrap_or_default(),
        address: pod.address().unwrap_or(settings.node_ip),
        timeout_ms: i64::from(wanted.timeout_seconds.max(1)) * 1000,
    });
}
