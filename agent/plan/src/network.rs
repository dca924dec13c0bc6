//! Outcomes of what was done, or seen, of links and routes, taken into `Observed`.
//!
//! Called by `take.rs`.

use crate::device;
use crate::event::{self, Note};
use crate::link::{Route, SERVICE_LINK};
use crate::outcome::LinkRefusal;
use crate::seen::{Expected, Seen};
use crate::settings::Settings;
use crate::step::Step;
use crate::time::Monotonic;
use crate::world::Observed;

impl Observed {
    /// A pod's link was made, or not: interface index of the host's end.
    pub(crate) fn linked(
        &mut self,
        uid: &str,
        result: Result<u32, String>,
        now: Monotonic,
    ) -> Option<Note> {
        let pod = self.pods.get_mut(uid)?;
        let failed = result.as_ref().err();
        let note = failed.map(|message| event::sandbox_failed(&pod.spec, message));
        let ifindex = result.as_ref().ok().copied();
        if ifindex != pod.ifindex {
            // Made anew: programs are attached to the one before, if at all.
            pod.programs = Step::Absent;
            if let (Some(before), Some(after)) = (pod.ifindex, ifindex) {
                self.network.dead.insert(before, Step::Absent);
                self.network.dead.remove(&after);
            }
        }
        pod.ifindex = ifindex;
        pod.link.end(result.map(drop), now);
        note
    }

    /// A route was put or deleted, or not.
    pub(crate) fn routed(
        &mut self,
        route: Route,
        deleted: bool,
        result: Result<(), String>,
        now: Monotonic,
    ) {
        let network = &mut self.network;
        let done = result.is_ok();
        let before = network.pending.remove(&route.destination);
        let mut step = before.unwrap_or_default();
        step.end(result, now);
        if !done {
            network.pending.insert(route.destination, step);
        } else if deleted {
            network.routes.remove(&route.destination);
        } else {
            network.routes.insert(route.destination, route);
        }
    }

    /// A link that no pod has was deleted, or not.
    pub(crate) fn link_deleted(&mut self, name: &str, result: Result<(), String>, now: Monotonic) {
        if result.is_ok() {
            self.network.strays.remove(name);
        } else if let Some(step) = self.network.strays.get_mut(name) {
            step.end(result, now);
        }
    }

    /// What was pinned for an interface that is gone was removed, or not.
    pub(crate) fn detached(&mut self, ifindex: u32, result: Result<(), String>, now: Monotonic) {
        if result.is_ok() {
            self.network.dead.remove(&ifindex);
        } else if let Some(step) = self.network.dead.get_mut(&ifindex) {
            step.end(result, now);
        }
    }

    /// The kernel was asked what there is.
    pub(crate) fn seen(
        &mut self,
        expected: &Expected,
        seen: Seen,
        settings: &Settings,
        now: Monotonic,
    ) -> Vec<Note> {
        let devices = &seen.devices;
        let mut notes = device::compare(&mut self.network, &expected.devices, devices, settings);
        if seen.addresses != self.network.addresses {
            self.network.addresses.clone_from(&seen.addresses);
        }
        if let Some(sockets) = &seen.sockets {
            self.network.sockets.clone_from(sockets);
        }
        if seen.without_address != self.network.without_address {
            self.network.without_address = seen.without_address;
            notes.push(event::address_changed(settings, !seen.without_address));
        }
        let broken = self.compare(expected, seen, settings, now);
        let pods = broken.iter().filter_map(|uid| self.pods.get(uid));
        notes.extend(pods.map(|pod| event::link_changed(&pod.spec)));
        notes
    }

    /// `foil0` was made whole, or not.
    pub(crate) fn service_link_put(
        &mut self,
        result: Result<(), LinkRefusal>,
        settings: &Settings,
        now: Monotonic,
    ) -> Option<Note> {
        let device = self.network.devices.get_mut(SERVICE_LINK)?;
        let result = result.map_err(|refusal| match refusal {
            LinkRefusal::IndexInUse => "another link has its interface index".to_owned(),
            LinkRefusal::Refused(message) => message,
        });
        let note = result.as_ref().err();
        let note = note.map(|message| event::device_failed(settings, SERVICE_LINK, message));
        if result.is_ok() {
            device.ifindex = Some(settings.service.ifindex);
            // Of the one before, if it is another one.
            device.programs.touch();
        }
        device.link.end(result, now);
        note
    }

    /// The programs were attached to a device, or not.
    pub(crate) fn device_attached(
        &mut self,
        name: &str,
        result: Result<(), String>,
        settings: &Settings,
        now: Monotonic,
    ) -> Option<Note> {
        let device = self.network.devices.get_mut(name)?;
        let failed = result.as_ref().err().cloned();
        device.programs.end(result, now);
        match failed {
            // Attached to the device before this one, or the device is gone.
            _ if device.programs == Step::Absent => None,
            Some(message) => Some(event::device_failed(settings, name, &message)),
            None => Some(event::device_back(settings, name)),
        }
    }
}
