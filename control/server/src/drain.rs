//! The order in which a pod is stopped: first all nodes learn that it is
//! terminating and open no more connections to it, then it is told to stop.
//!
//! Waits for the acknowledgements of the connected nodes, and not for longer
//! than [`PATIENCE`]. Called by `run.rs`.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use control_plan::endpoint_use::{EndpointUse, EndpointUses};
use control_plan::{Name, Object, World, object};
use tokio::time::Instant;

use crate::hub::Hub;

/// A node that does not acknowledge for this long is not waited for any more.
const PATIENCE: Duration = Duration::from_secs(2);

struct Waiting {
    uid: String,
    since: Instant,
    /// Revision from which the nodes' services say that it is terminating.
    shown: Option<u64>,
    /// What the services made of it in the last turn.
    using: EndpointUse,
}

/// Pods that are to stop, but not yet.
#[derive(Default)]
pub struct Drain {
    waiting: HashMap<Name, Waiting>,
    /// Pods that were told already, by name, with their uid.
    told: HashMap<Name, String>,
}

impl Drain {
    /// An object was written: a pod that is being deleted starts to wait.
    pub fn seen(&mut self, object: &Object, now: Instant) {
        let Object::Pod(pod) = object else { return };
        if !object::deleting(&pod.metadata) || object::pod_node(pod).is_none() {
            return;
        }
        let name = Name::of(&pod.metadata);
        let uid = object::uid(&pod.metadata);
        if self.told.get(&name).is_some_and(|told| told == uid) {
            return;
        }
        let waiting = Waiting {
            uid: uid.to_owned(),
            since: now,
            shown: None,
            using: EndpointUse::None,
        };
        // A pod of the same name, but another one, waits anew.
        if self.waiting.get(&name).is_none_or(|old| old.uid != uid) {
            self.waiting.insert(name, waiting);
        }
    }

    /// An object is gone from the store.
    pub fn gone(&mut self, object: &Object) {
        if let Object::Pod(pod) = object {
            let name = Name::of(&pod.metadata);
            self.waiting.remove(&name);
            self.told.remove(&name);
        }
    }

    /// When the first of the waits is over.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.waiting.values().map(|w| w.since + PATIENCE).min()
    }

    /// Name and uid of pods that are to stop now.
    pub fn released(&mut self, world: &World, hub: &Hub, now: Instant) -> Vec<(Name, String)> {
        let newest = hub.revision();
        let mut uses = EndpointUses::new(world);
        self.waiting.retain(|name, waiting| {
            let Some(pod) = world.pods.get(name) else {
                return false;
            };
            waiting.using = uses.of(pod);
            if waiting.using == EndpointUse::Closed {
                waiting.shown.get_or_insert(newest);
            }
            true
        });
        let acked = self.acked(hub);
        let mut released = Vec::new();
        self.waiting.retain(|name, waiting| {
            let go = match waiting.using {
                // Nodes go on sending to the last one: there is nothing to wait for.
                EndpointUse::None | EndpointUse::Last => true,
                EndpointUse::Open => false,
                EndpointUse::Closed => waiting.shown.is_some_and(|shown| shown <= acked),
            };
            if go || now >= waiting.since + PATIENCE {
                released.push((name.clone(), waiting.uid.clone()));
                return false;
            }
            true
        });
        self.told.extend(released.iter().cloned());
        released
    }

    /// The newest revision that is waited for and all nodes have, 0 if there is
    /// none. The hub tells when they have the next one.
    fn acked(&self, hub: &Hub) -> u64 {
        let shown: BTreeSet<u64> = self.waiting.values().filter_map(|w| w.shown).collect();
        let mut had = shown.into_iter().take_while(|shown| hub.all_have(*shown));
        had.by_ref().last().unwrap_or(0)
    }
}
