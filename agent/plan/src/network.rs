//! Outcomes of what was done, or seen, of links and routes, taken into `Observed`.
//!
//! Called by `take.rs`.

use crate::event::{self, Note};
use crate::link::Route;
use crate::seen::{Expected, Seen};
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
    pub(crate) fn seen(&mut self, expected: &Expected, seen: Seen, now: Monotonic) -> Vec<Note> {
        let broken = self.compare(expected, seen, now);
        let pods = broken.iter().filter_map(|uid| self.pods.get(uid));
        pods.map(|pod| event::link_changed(&pod.spec)).collect()
    }
}
