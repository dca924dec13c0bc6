//! The node's own status: facts, what pods may have of it, and conditions by what is
//! left of memory, disks and process numbers.
//!
//! Part of the loop. Measured on a thread that may block; what it means is decided in
//! `agent-plan` (`pressure.rs`).

use std::io;
use std::sync::Arc;

use agent_plan::pressure::{Amount, Measured, NodeNote, Pressures};
use agent_plan::time::{Moment, Monotonic};
use agent_sys::resources;
use proto::v1;

use crate::config::Config;
use crate::event::Event;
use crate::facts;
use crate::startup::Sys;

/// Between two measurements, as kubelet has it. Milliseconds.
const INTERVAL_MS: i64 = 10_000;

/// The node's status and what it follows from.
#[derive(Debug)]
pub(crate) struct Health {
    facts: v1::NodeStatus,
    pressures: Pressures,
    ready: v1::Condition,
    due: Monotonic,
    measuring: bool,
    notes: Vec<NodeNote>,
}

impl Health {
    /// Measures for the first time, so that the first status is true.
    pub(crate) fn new(config: &Config, sys: &Sys, now: Moment) -> Health {
        let (capacity, reserved) = (sys.settings.capacity, sys.settings.reserved);
        let offered = config.pressure.allocatable(capacity, reserved);
        let mut pressures = Pressures::new(config.pressure.thresholds(), now.wall);
        let before = pressures.clone();
        pressures.take(&measure(sys), now);
        let notes = pressures.notes(&before);
        Health {
            facts: facts::status(&sys.settings, offered, config.max_pods),
            pressures,
            ready: v1::Condition {
                r#type: "Ready".into(),
                status: "True".into(),
                reason: "KubeletReady".into(),
                message: "foil-agent is posting ready status".into(),
                last_transition_ms: now.wall.ms(),
            },
            due: now.monotonic + INTERVAL_MS,
            measuring: false,
            notes,
        }
    }

    /// The node's status.
    pub(crate) fn status(&self) -> v1::NodeStatus {
        let mut status = self.facts.clone();
        status.conditions = self.pressures.conditions();
        status.conditions.push(self.ready.clone());
        status
    }

    /// When to measure next.
    pub(crate) fn due(&self) -> Option<Monotonic> {
        (!self.measuring).then_some(self.due)
    }

    /// Measures; the result comes as an event.
    pub(crate) fn measure_if_due(&mut self, sys: &Arc<Sys>, now: Monotonic) {
        if self.due().is_none_or(|at| now < at) {
            return;
        }
        self.measuring = true;
        let sys = sys.clone();
        tokio::spawn(async move {
            let measured = sys.blocking(|sys| Ok(measure(sys))).await;
            sys.tell(Event::Measured(measured.unwrap_or_default()))
                .await;
        });
    }

    /// Records what was measured; the status, if it changed.
    pub(crate) fn measured(&mut self, measured: &Measured, now: Moment) -> Option<v1::NodeStatus> {
        self.measuring = false;
        self.due = now.monotonic + INTERVAL_MS;
        let before = self.pressures.clone();
        let changed = self.pressures.take(measured, now);
        self.notes.extend(self.pressures.notes(&before));
        changed.then(|| self.status())
    }

    /// Events since the last call: conditions that began to hold, or ceased to.
    pub(crate) fn notes(&mut self) -> Vec<NodeNote> {
        std::mem::take(&mut self.notes)
    }
}

fn measure(sys: &Sys) -> Measured {
    let amount = |a: resources::Amount| Amount {
        available: a.available,
        capacity: a.capacity,
    };
    let disk = |folder| known("disk", resources::disk(folder));
    let (root, images) = (disk(sys.layout.root()), disk(&sys.layout.images()));
    Measured {
        memory: known("memory", resources::memory()).map(amount),
        disk: root.map(|d| amount(d.bytes)),
        disk_inodes: root.and_then(|d| d.inodes).map(amount),
        images: images.map(|d| amount(d.bytes)),
        images_inodes: images.and_then(|d| d.inodes).map(amount),
        pids: known("process numbers", resources::pids()).map(amount),
    }
}

fn known<T>(what: &str, measured: io::Result<T>) -> Option<T> {
    measured
        .inspect_err(|error| tracing::warn!(what, %error, "cannot measure"))
        .ok()
}
