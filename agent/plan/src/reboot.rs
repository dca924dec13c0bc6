//! A pod that has lost its sandbox: by a reboot, or because the folder of what lives as
//! long as the machine is up was emptied. What the record says of ends and restarts is
//! its history, and the pod begins anew in a new sandbox, init containers first, as
//! kubelet has it (computePodActions in pkg/kubelet/kuberuntime).
//!
//! Called by `record.rs` for what was lost while there was no agent, and by `contact.rs`.

use crate::container::alive;
use crate::lost;
use crate::restart::{self, Backoff, Role};
use crate::step::Step;
use crate::time::Moment;
use crate::world::{Contact, Image, Life, Pod};

/// Makes a pod one that has yet to begin. What is left of its sandbox is to be
/// removed first.
pub fn begin_anew(pod: &mut Pod, now: Moment) {
    pod.record.touch();
    if pod.teardown.sandbox == Step::Ready {
        // It has ended, and was removed then.
        return;
    }
    pod.leftovers = Step::Absent;
    pod.contact = Contact::Heard;
    for c in pod.containers.values_mut() {
        if alive(c) {
            lost::end(c, now, "after its sandbox was lost");
        }
        c.image = Image::Unknown;
        c.remains.clear();
    }
    if pod.finished.is_some() || pod.stop.is_some() {
        return;
    }
    let ran = pod
        .containers
        .values()
        .any(|c| matches!(c.life, Life::Exited(_)));
    if pod.spec.restart_policy == "Never" && ran {
        // Not run a second time: what it has not come to, it does not come to any more.
        let rest = pod.containers.values_mut();
        for c in rest.filter(|c| !matches!(c.life, Life::Exited(_))) {
            lost::end(c, now, "after its sandbox was lost");
        }
        return;
    }
    let policy = pod.spec.restart_policy.clone();
    let over = |name: &str| match pod.containers.get(name).map(|c| &c.life) {
        Some(Life::Exited(exit)) => !restart::wanted(Role::Main, &policy, exit.code),
        Some(
            Life::None
            | Life::Creating
            | Life::Created
            | Life::Starting
            | Life::Running { .. }
            | Life::Refused { .. },
        )
        | None => false,
    };
    let mut containers = pod.spec.containers.iter();
    if containers.all(|c| over(&c.name)) {
        return;
    }
    for spec in &pod.spec.init_containers {
        let Some(c) = pod.containers.get_mut(&spec.name) else {
            continue;
        };
        c.passed = false;
        c.replace = false;
        c.backoff = Backoff::default();
        if let Life::Exited(exit) = std::mem::take(&mut c.life) {
            c.last = Some(exit);
            c.attempt += 1;
        }
    }
}
