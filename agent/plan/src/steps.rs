//! What the plan of one pod has gathered so far.
//!
//! Filled by `pod.rs` and the plans that it calls.

use crate::action::{Action, Instance};
use crate::time::Monotonic;
use crate::world::{Container, Pod};

/// What a plan has gathered: actions, and when time alone makes more of them due.
#[derive(Debug, Default)]
pub struct Steps {
    /// In the order in which they are to be begun.
    pub actions: Vec<Action>,
    /// The soonest.
    pub wake: Option<Monotonic>,
}

impl Steps {
    /// Nothing before that, but then.
    pub fn wake(&mut self, at: Monotonic) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }

    /// As [`Steps::wake`] for what may be waiting.
    pub fn wake_if(&mut self, at: Option<Monotonic>) {
        if let Some(at) = at {
            self.wake(at);
        }
    }
}

/// The instance that a container is at.
pub fn instance(pod: &Pod, name: &str, container: &Container) -> Instance {
    Instance {
        uid: pod.spec.uid.clone(),
        container: name.into(),
        attempt: container.attempt,
    }
}
