//! Instances that have ended without anything that could tell how, and sandboxes that
//! are there no more.
//!
//! Called by `contact.rs`, `take.rs` and `reboot.rs`.

use crate::container::alive;
use crate::probe::Probes;
use crate::step::Step;
use crate::time::{Moment, Wall};
use crate::world::{Contact, Container, Exit, Hook, Kill, Life, Pod, Why};

/// Records that a pod's sandbox is gone; only its folders are left.
pub fn sandbox(pod: &mut Pod, moment: Moment) {
    for step in [
        &mut pod.cgroup,
        &mut pod.namespaces,
        &mut pod.link,
        &mut pod.programs,
        &mut pod.shim,
        &mut pod.volumes,
    ] {
        *step = Step::Absent;
    }
    pod.ifindex = None;
    pod.contact = Contact::Heard;
    pod.leftovers = Step::Ready;
    for c in pod.containers.values_mut().filter(|c| alive(c)) {
        end(c, moment, "when its pod's sandbox was removed");
    }
    if pod.stop.is_none() {
        pod.record.touch();
    }
}

/// An instance that no shim knows any more has ended; how is not known.
pub fn end(c: &mut Container, moment: Moment, when: &str) {
    let started = match c.life {
        Life::Running { started } => started.wall,
        Life::None
        | Life::Creating
        | Life::Created
        | Life::Starting
        | Life::Exited(_)
        | Life::Refused { .. } => Wall::default(),
    };
    c.replace = to_be_replaced(c);
    c.kill = None;
    c.post_start = Hook::Waiting;
    c.probes = Probes::default();
    c.life = Life::Exited(Exit {
        code: 137,
        signal: 9,
        reason: "ContainerStatusUnknown".into(),
        message: format!("The container could not be located {when}"),
        started,
        finished: moment,
        attempt: c.attempt,
    });
}

/// An instance that ends now was being ended for the sake of another one.
pub fn to_be_replaced(container: &Container) -> bool {
    let image = |kill: &Kill| kill.why == Why::Image;
    container.replace || container.kill.as_ref().is_some_and(image)
}
