//! What a node does next, as a function of what is wanted and what is: no I/O, no
//! clock, no randomness, and nothing that can fail.
//!
//! Reading order: `settings` and `world` (the arguments), with the values in `time`,
//! `step`, `link`, `endpoint`, `maps`; `action` (the answer) and `steps`; `pod` with
//! `container`, `init`, `restart`, `image`, `probe`, `probing`, `contact`, `lost`, its
//! end in `ending` and `kill`, then `create` with `environment` (`expand`),
//! `capability` and `mount`, `user`, `volume`, `cgroup`, `route`, `service` with
//! `choice` and `batch`, `device`; `begin`, `outcome` and `take` take in what came of it, `seen` what others
//! did, `status` and `event` say so, `pressure` speaks of the node, `record` and
//! `reboot` remember it (`withhold`: not on a disk). Values depend on no plan, plans on
//! values, `world` and `action`. The daemon plans by parts (a pod, a service, the network) what has
//! changed; [`plan`] is all of them.

#![forbid(unsafe_code)]

pub mod action;
pub mod batch;
pub mod begin;
pub mod capability;
pub mod cgroup;
pub mod choice;
pub mod conflict;
pub mod contact;
pub mod container;
pub mod create;
pub mod device;
pub mod ending;
pub mod endpoint;
pub mod environment;
pub mod event;
pub mod expand;
mod frontend;
pub mod hostport;
pub mod image;
pub mod init;
pub mod kill;
pub mod link;
pub mod lost;
mod maglev;
pub mod maps;
pub mod mount;
mod network;
pub mod outcome;
pub mod pod;
pub mod pressure;
pub mod probe;
pub mod probing;
pub mod reboot;
pub mod record;
pub mod restart;
pub mod route;
pub mod seen;
pub mod service;
pub mod settings;
pub mod simulate;
pub mod status;
pub mod step;
pub mod steps;
pub mod stray;
mod table;
pub mod take;
pub mod time;
pub mod user;
pub mod volume;
pub mod withhold;
pub mod world;

use std::collections::BTreeSet;

use action::{Action, Problem};
use choice::Place;
use hostport::Owners;
use settings::Settings;
use time::Moment;
use world::{Desired, Observed};

/// The next steps of the whole node. Empty when it is as desired, or when
/// everything that is missing waits for an outcome or for time to pass.
pub fn plan(
    desired: &Desired,
    observed: &Observed,
    settings: &Settings,
    now: Moment,
) -> (Vec<Action>, Vec<Problem>) {
    let (mut actions, mut problems) =
        route::plan(desired, &observed.network, settings, now.monotonic);
    actions.extend(device::plan(&observed.network, settings, now.monotonic));
    actions.extend(stray::plan(desired, observed, now.monotonic));
    let place = Place::of(settings, desired);
    for service in desired.services.values() {
        let (more, bad) = service::plan(service.id, Some(service), place, &observed.maps);
        problems.extend(bad);
        if !more.is_empty() {
            // Numbers are given out from what is observed: one service at a time.
            actions.extend(more);
            return (actions, problems);
        }
    }
    if desired.complete {
        actions.extend(service::sweep(
            desired,
            &Owners::of(observed),
            &observed.maps,
        ));
    }
    let uids: BTreeSet<&String> = desired
        .pods
        .keys()
        .chain(observed.pods.keys())
        .chain(&observed.gone)
        .collect();
    for uid in uids {
        let plan = pod::plan(uid, desired, observed, settings, now);
        problems.extend(plan.problems);
        if !plan.actions.is_empty() {
            // The same holds for endpoint ids.
            actions.extend(plan.actions);
            return (actions, problems);
        }
    }
    (actions, problems)
}

#[cfg(test)]
mod tests;
