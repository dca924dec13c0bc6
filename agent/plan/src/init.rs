//! The order of init containers: when those after one may begin.
//!
//! Called by `pod.rs` and `status.rs`.

use proto::v1;

use crate::restart::{Role, init_role};
use crate::world::{Container, Hook, Life, Pod};

/// True when those after an init container need not wait for it any more: it has ended
/// well, or, as a sidecar, runs and has started.
pub fn done(spec: &v1::ContainerSpec, container: &Container) -> bool {
    let of = (init_role(spec), &container.life);
    if let (Role::Sidecar, Life::Running { .. }) = of {
        let hooked = spec.post_start.is_none() || container.post_start == Hook::Done;
        hooked && container.kill.is_none() && container.probes.started(spec)
    } else if let (Role::Init | Role::Main, Life::Exited(exit)) = of {
        exit.code == 0 && !container.replace
    } else {
        false
    }
}

/// True once all init containers have done what the others wait for. A sidecar that
/// falls later does not take that back.
pub fn initialized(pod: &Pod) -> bool {
    let mut init = pod.spec.init_containers.iter();
    init.all(|spec| pod.containers.get(&spec.name).is_some_and(|c| c.passed))
}
