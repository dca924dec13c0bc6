//! The indexes of a [`World`](crate::World): what keeps the work of a plan
//! proportional to what changed, and the tasks that are due.
//!
//! Kinds add themselves (`watched.rs`); `world.rs` adds what all kinds have.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::claim::{Claim, ClaimKey};
use crate::hostport::HostPorts;
use crate::object::{Key, Name};
use crate::pool::Claims;
use crate::queue::Queue;
use crate::task::Task;
use crate::usage::Usage;

/// What a node is to its pods.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Offer {
    /// It has a taint with effect NoExecute.
    pub(crate) evicts: bool,
    pub(crate) ready: bool,
    /// What it offers to pods.
    pub(crate) allocatable: Usage,
}

/// Pods of one owner that went before they ever were ready, one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Losses {
    pub(crate) count: u32,
    /// When the last one of them was created.
    pub(crate) created: Timestamp,
}

/// Why the pods of a replica set could not be made or deleted when that was tried last.
#[derive(Clone, Debug)]
pub(crate) struct ReplicaFailure {
    /// "FailedCreate" or "FailedDelete".
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Region and zone of a node.
pub(crate) type Zone = (String, String);

/// How many nodes of a zone are ready, and how many are not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Health {
    pub(crate) ready: u32,
    pub(crate) lost: u32,
}

impl Health {
    pub(crate) fn of(&mut self, ready: bool) -> &mut u32 {
        if ready {
            &mut self.ready
        } else {
            &mut self.lost
        }
    }
}

/// A finished pod: whether it was not evicted, when it was created, its name.
pub(crate) type Terminated = (bool, Timestamp, Name);

/// Namespace, key and value of a label.
pub(crate) type Label = (String, String, String);

pub(crate) fn add<K: Hash + Eq, V: Ord>(index: &mut HashMap<K, BTreeSet<V>>, key: K, value: V) {
    index.entry(key).or_default().insert(value);
}

pub(crate) fn sub<K: Hash + Eq, V: Ord>(index: &mut HashMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = index.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            index.remove(key);
        }
    }
}

/// The labels of an object as keys of an index.
pub(crate) fn labels<'a>(
    namespace: &'a str,
    meta: &'a ObjectMeta,
) -> impl Iterator<Item = Label> + 'a {
    let labels = meta.labels.iter().flatten();
    labels.map(move |(key, value)| (namespace.to_owned(), key.clone(), value.clone()))
}

/// See the fields.
#[derive(Debug, Default)]
pub struct Indexes {
    /// Objects that name a uid as an owner.
    pub(crate) by_owner: HashMap<String, BTreeSet<Key>>,
    pub(crate) by_uid: HashMap<String, Key>,
    pub(crate) by_namespace: HashMap<String, BTreeSet<Key>>,
    pub(crate) pods_by_node: HashMap<String, BTreeSet<Name>>,
    pub(crate) pods_by_label: HashMap<Label, BTreeSet<Name>>,
    /// Services, by one pair of their selectors.
    pub(crate) services_by_label: HashMap<Label, BTreeSet<Name>>,
    /// Replica sets, by one pair of their selectors.
    pub(crate) sets_by_label: HashMap<Label, BTreeSet<Name>>,
    /// Replica sets that nothing controls.
    pub(crate) orphan_sets: BTreeSet<Name>,
    /// Services that wait for an address of their load balancer.
    pub(crate) waiting_balancers: BTreeSet<Name>,
    pub(crate) slices_by_service: HashMap<Name, BTreeSet<Name>>,
    /// Pods that wait for a node or an address.
    pub(crate) queue: Queue,
    pub(crate) events_by_time: BTreeSet<(Timestamp, Name)>,
    /// What the pods of a node ask for.
    pub(crate) usage: HashMap<String, Usage>,
    /// Ports that the pods of a node take.
    pub(crate) host_ports: HashMap<String, HostPorts>,
    /// Pods by (uid of their controller, node).
    pub(crate) spread: HashMap<(String, String), u32>,
    /// Namespaces that are being deleted.
    pub(crate) closing: BTreeSet<String>,
    pub(crate) nodes: BTreeMap<String, Offer>,
    /// Nodes that do not exist and have pods, and when that was found.
    pub(crate) absent_nodes: BTreeMap<String, Timestamp>,
    pub(crate) zones: BTreeMap<Zone, Health>,
    /// Nodes that are not ready, or have a taint for that.
    pub(crate) troubled: BTreeMap<Zone, BTreeSet<String>>,
    /// No node was ready before the last change.
    pub(crate) were_all_lost: bool,
    pub(crate) identities: HashMap<String, u32>,
    pub(crate) identity_users: HashMap<u32, u32>,
    pub(crate) idle_identities: BTreeSet<u32>,
    pub(crate) claims: Claims,
    pub(crate) claims_by_owner: HashMap<String, BTreeSet<ClaimKey>>,
    pub(crate) orphan_claims: BTreeSet<ClaimKey>,
    /// uids of pods that hold no address any more, as they have finished.
    pub(crate) finished: HashSet<String>,
    /// Finished pods that are not being deleted, in the order in which they go.
    pub(crate) terminated: BTreeSet<Terminated>,
    /// How many of them are kept; 0: all.
    pub(crate) terminated_most: usize,
    /// What became of the pods of replica sets, by the sets' uids.
    pub(crate) losses: HashMap<String, Losses>,
    /// Replica sets whose last writes were refused, by their uids.
    pub(crate) replica_failures: HashMap<String, ReplicaFailure>,
    /// Objects of the store that cannot be read, with their uids where these can.
    pub(crate) unreadable: BTreeMap<Key, Option<String>>,
    pub(crate) due: BTreeSet<Task>,
}

impl Indexes {
    /// Makes a task due.
    pub(crate) fn make_due(&mut self, task: Task) {
        self.due.insert(task);
    }

    /// How many more finished pods there are than are to be kept.
    pub(crate) fn surplus(&self) -> usize {
        match self.terminated_most {
            0 => 0,
            most => self.terminated.len().saturating_sub(most),
        }
    }

    /// True when there are nodes, and none of them is ready: it is more likely that
    /// the control plane was cut off than that all were lost.
    pub(crate) fn all_lost(&self) -> bool {
        !self.zones.is_empty() && self.zones.values().all(|zone| zone.ready == 0)
    }

    /// Something happened that could help pods that fit nowhere; with `room`:
    /// those for which a node had too little left.
    pub(crate) fn wake_pods(&mut self, room: bool) {
        if self.queue.wake_all(room) {
            self.make_due(Task::Schedule);
        }
    }

    /// The claim changed (`Some`), or its record is gone.
    pub(crate) fn put_claim(&mut self, key: ClaimKey, claim: Option<Claim>) {
        let old = self.claims.put(&key, claim.clone());
        if let Some(old) = old.filter(|old| !old.owner.is_empty()) {
            let released = claim.as_ref().is_none_or(|c| c.owner.is_empty());
            if released && matches!(key, ClaimKey::PodAddress(_)) {
                self.wake_pods(true);
            }
            if released && matches!(key, ClaimKey::LoadBalancerAddress(_)) {
                let waiting = self.waiting_balancers.iter().cloned();
                self.due.extend(waiting.map(Task::LoadBalancer));
                self.make_due(Task::LoadBalancers);
            }
            sub(&mut self.claims_by_owner, &old.owner, &key);
            if let ClaimKey::Identity(number) = key
                && self.identities.get(&old.owner) == Some(&number)
            {
                self.identities.remove(&old.owner);
            }
        }
        self.orphan_claims.remove(&key);
        if let ClaimKey::Identity(number) = key {
            self.idle_identities.remove(&number);
        }
        let Some(owner) = claim.map(|c| c.owner).filter(|o| !o.is_empty()) else {
            return;
        };
        add(&mut self.claims_by_owner, owner.clone(), key.clone());
        if let ClaimKey::Identity(number) = key {
            self.identities.entry(owner).or_insert(number);
            // The one that was highest until now may go, if no pod has it.
            if !self.idle_identities.is_empty() {
                self.make_due(Task::Addresses);
            }
            if !self.identity_users.contains_key(&number) {
                self.idle_identities.insert(number);
            }
        } else if !self.owner_exists(&key, &owner) {
            self.orphan_claims.insert(key);
            self.make_due(Task::Addresses);
        }
    }

    /// True when the object that has this claim is there and still needs it, or
    /// may be one that cannot be read.
    pub(crate) fn owner_exists(&self, key: &ClaimKey, owner: &str) -> bool {
        let is_there = || self.by_uid.contains_key(owner) || self.may_be_unreadable(owner);
        match key {
            ClaimKey::PodAddress(_) => is_there() && !self.finished.contains(owner),
            ClaimKey::ServiceAddress(_)
            | ClaimKey::ServiceId(_)
            | ClaimKey::PortId(_)
            | ClaimKey::NodePort(_)
            | ClaimKey::LoadBalancerAddress(_) => is_there(),
            ClaimKey::NodeRange(_) => self.nodes.contains_key(owner) || self.hides_node(owner),
            ClaimKey::Identity(_) => true,
        }
    }

    /// True when an object that cannot be read has this uid, or may have it.
    pub(crate) fn may_be_unreadable(&self, uid: &str) -> bool {
        let mut uids = self.unreadable.values();
        uids.any(|known| known.as_deref().is_none_or(|known| known == uid))
    }

    /// True when there is a Node of this name that cannot be read.
    pub(crate) fn hides_node(&self, name: &str) -> bool {
        let key = Key::new("", "Node", Name::new("", name));
        self.unreadable.contains_key(&key)
    }

    /// Judges anew whether the claims of this owner have one.
    pub(crate) fn judge_claims(&mut self, owner: &str) {
        let claims = self.claims_by_owner.get(owner).into_iter().flatten();
        for key in claims.cloned().collect::<Vec<_>>() {
            if self.owner_exists(&key, owner) {
                self.orphan_claims.remove(&key);
            } else {
                self.orphan_claims.insert(key);
                self.make_due(Task::Addresses);
            }
        }
    }
}
