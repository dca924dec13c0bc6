//! What the controllers know: the store's objects by kind (`registry.rs`) with
//! their indexes (`index.rs`).
//!
//! Not a store: everything here was read from the
//! store, and a new process rebuilds it from there.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::action::{Notice, Plan};
use crate::claim::{Claim, ClaimKey};
use crate::index::{Indexes, add, labels, sub};
use crate::object::{self, Key, Name};
use crate::pool::{Claims, Pool};
use crate::refused;
use crate::registry::{self, Object, Tables};
use crate::settings::Settings;
use crate::task::Task;
use crate::time::after;

/// What is known of an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// It is there.
    Present(Key),
    /// It is not there, for sure: its kind is known, and all of it can be read.
    /// Or it is in another namespace, where it cannot be an owner.
    Absent,
    /// This version does not know its kind, or cannot read the object.
    Unknown,
}

/// Objects and indexes, at one revision of the store. Reads as its [`Tables`].
#[derive(Debug)]
pub struct World {
    /// The cluster's configuration.
    pub settings: Settings,
    heard_since: Timestamp,
    tables: Tables,
    pub(crate) indexes: Indexes,
}

impl Deref for World {
    type Target = Tables;

    fn deref(&self) -> &Tables {
        &self.tables
    }
}

impl World {
    /// An empty world.
    pub fn new(settings: Settings) -> Self {
        let mut indexes = Indexes::default();
        let ranges = Pool::NodeRanges(settings.pod_cidr, settings.node_prefix);
        indexes.claims.register(ranges);
        for range in &settings.load_balancer_pools {
            indexes.claims.register(Pool::LoadBalancers(*range));
        }
        indexes.terminated_most = settings.terminated_pods;
        Self {
            settings,
            heard_since: Timestamp::MIN,
            tables: Tables::default(),
            indexes,
        }
    }

    /// Takes what became due since the last call.
    pub fn take_due(&mut self) -> BTreeSet<Task> {
        std::mem::take(&mut self.indexes.due)
    }

    /// Makes a task due.
    pub fn make_due(&mut self, task: Task) {
        self.indexes.make_due(task);
    }

    /// Remembers what a plan found out and does not write. To be called with each
    /// plan, before the next one of its task.
    pub fn note(&mut self, plan: &Plan, now: Timestamp) {
        for tried in &plan.unschedulable {
            let queue = &mut self.indexes.queue;
            queue.park(&tried.pod, &tried.uid, now, tried.room);
        }
        for (pod, uid) in &plan.assumed {
            self.indexes.queue.assume(pod, uid);
        }
        if let Some(node) = &plan.absent
            && !self.nodes.contains_key(node)
            && self.indexes.pods_by_node.contains_key(node)
        {
            let absent = &mut self.indexes.absent_nodes;
            absent.entry(node.clone()).or_insert(now);
        }
    }

    /// A pod's binding could not be written: other pods have their turn first.
    pub fn binding_failed(&mut self, pod: &Name, uid: &str, now: Timestamp) {
        self.indexes.queue.failed(pod, uid, now);
        if self.indexes.queue.forget(pod) {
            self.indexes.wake_pods(true);
        }
        self.make_due(Task::Schedule);
    }

    /// Some bindings met other versions of their pods or claims than were planned
    /// with, and all are planned again: what they were to take may be free.
    pub fn bindings_conflicted(&mut self) {
        if self.indexes.queue.forget_all() {
            self.indexes.wake_pods(true);
        }
    }

    /// The pods of a replica set could not be made (or `deleted`), as `message` says. To
    /// be planned again. What is to be told of it; `None`: the set is gone.
    pub fn replicas_refused(&mut self, set: &Name, deleted: bool, message: &str) -> Option<Notice> {
        let set = self.tables.replica_sets.get(set)?;
        let failure = refused::remembered(deleted, message);
        let failures = &mut self.indexes.replica_failures;
        failures.insert(object::uid(&set.metadata).to_owned(), failure);
        Some(refused::told(set, deleted, message))
    }

    /// The writes of a replica set's plan were all carried out.
    pub fn replicas_written(&mut self, set: &Name) {
        if let Some(set) = self.tables.replica_sets.get(set) {
            let failures = &mut self.indexes.replica_failures;
            failures.remove(object::uid(&set.metadata));
        }
    }

    /// Nodes can be heard since then: the control plane has just started, or was
    /// cut off before.
    pub fn hear(&mut self, since: Timestamp) {
        self.heard_since = since;
    }

    /// The clock was set, and is `now`: times that were noted before are not after it, so
    /// that nothing waits for longer than its pause.
    pub fn clock_set(&mut self, now: Timestamp) {
        let indexes = &mut self.indexes;
        for losses in indexes.losses.values_mut() {
            losses.created = losses.created.min(now);
        }
        for found in indexes.absent_nodes.values_mut() {
            *found = now.min(*found);
        }
        if indexes.queue.release_all() {
            indexes.make_due(Task::Schedule);
        }
    }

    /// A node that counts as lost is believed to be lost from then on: until then
    /// it has had no time to come back.
    pub fn lost_since(&self) -> Timestamp {
        after(self.heard_since, self.settings.lost_seconds)
    }

    /// The keys of all objects.
    pub fn keys(&self) -> Vec<Key> {
        self.indexes.by_uid.values().cloned().collect()
    }

    /// The store has an object of this key that cannot be read. What was known of
    /// it before stays; nothing that may depend on it is deleted or released.
    pub fn mark_unreadable(&mut self, key: Key, uid: Option<String>) {
        let namespace = &key.name.namespace;
        if !namespace.is_empty() {
            let contents = &mut self.indexes.by_namespace;
            add(contents, namespace.clone(), key.clone());
        }
        self.indexes.unreadable.insert(key, uid);
    }

    /// The keys of the objects that cannot be read.
    pub fn unreadable(&self) -> impl Iterator<Item = &Key> {
        self.indexes.unreadable.keys()
    }

    /// The object can be read now, or is gone: what was kept for its sake is
    /// judged again.
    fn clear_unreadable(&mut self, key: &Key) {
        if self.indexes.unreadable.remove(key).is_none() {
            return;
        }
        sub(&mut self.indexes.by_namespace, &key.name.namespace, key);
        let indexes = &mut self.indexes;
        let known = &indexes.by_uid;
        let undecided = indexes.by_owner.iter();
        let undecided = undecided.filter(|(owner, _)| !known.contains_key(*owner));
        let tasks = undecided.flat_map(|(_, keys)| keys.iter().cloned().map(Task::Collect));
        let tasks: Vec<Task> = tasks.collect();
        indexes.due.extend(tasks);
        for owner in indexes.claims_by_owner.keys().cloned().collect::<Vec<_>>() {
            indexes.judge_claims(&owner);
        }
        if indexes.closing.contains(&key.name.namespace) {
            indexes.make_due(Task::Namespace(key.name.namespace.clone()));
        }
        if key.kind == "Node" && key.group.is_empty() {
            indexes.make_due(Task::Node(key.name.name.clone()));
        }
    }

    /// The object came to be, or changed.
    pub fn put(&mut self, object: Object) {
        let key = object.key();
        self.clear_unreadable(&key);
        let mut old = self.get(&key);
        let uid = object::uid(object.meta());
        if old.as_ref().is_some_and(|o| object::uid(o.meta()) != uid) {
            // Another object of the name: the deletion of the first was not seen.
            self.remove(&key);
            old = None;
        }
        if let Some(old) = &old {
            self.unindex(&key, old);
        }
        self.tables.insert(object.clone());
        self.index(&key, &object);
        self.changed(&key, old.as_ref(), Some(&object));
    }

    /// The object is gone.
    pub fn remove(&mut self, key: &Key) {
        self.clear_unreadable(key);
        let Some(old) = self.get(key) else { return };
        self.unindex(key, &old);
        self.tables.remove(key);
        self.changed(key, Some(&old), None);
    }

    fn index(&mut self, key: &Key, object: &Object) {
        let indexes = &mut self.indexes;
        let uid = object::uid(object.meta()).to_owned();
        indexes.by_uid.insert(uid, key.clone());
        for owner in object.meta().owner_references.iter().flatten() {
            add(&mut indexes.by_owner, owner.uid.clone(), key.clone());
        }
        let namespace = &key.name.namespace;
        if !namespace.is_empty() {
            add(&mut indexes.by_namespace, namespace.clone(), key.clone());
        }
        object.index(&key.name, indexes);
        indexes.judge_claims(holder(key, object));
    }

    fn unindex(&mut self, key: &Key, object: &Object) {
        let indexes = &mut self.indexes;
        indexes.by_uid.remove(object::uid(object.meta()));
        for owner in object.meta().owner_references.iter().flatten() {
            sub(&mut indexes.by_owner, &owner.uid, key);
        }
        sub(&mut indexes.by_namespace, &key.name.namespace, key);
        object.unindex(&key.name, indexes);
    }

    /// Makes due what may have to be done because of this change.
    fn changed(&mut self, key: &Key, old: Option<&Object>, new: Option<&Object>) {
        let tasks = registry::reconcile(&key.group, &key.kind, &key.name);
        self.indexes.due.extend(tasks);
        for object in [old, new].into_iter().flatten() {
            self.controller_due(object.meta());
        }
        if let Some(new) = new {
            self.collection_due(key, old, new);
        }
        registry::changed(key, old, new, &mut self.indexes);
        let zone = |node: Option<&Object>| match node {
            Some(Object::Node(node)) => Some(object::zone(node).1),
            Some(_) | None => None,
        };
        if zone(old) != zone(new) {
            self.endpoints_due(&key.name.name);
        }
        if let (Some(old), None) = (old, new) {
            self.removed(key, old);
        }
    }

    fn controller_due(&mut self, meta: &ObjectMeta) {
        let Some(owner) = object::controller(meta) else {
            return;
        };
        let (group, _version) = object::group_version(&owner.api_version);
        let namespace = meta.namespace.as_deref().unwrap_or("");
        let name = Name::new(namespace, &owner.name);
        let task = registry::reconcile(group, &owner.kind, &name);
        self.indexes.due.extend(task);
    }

    fn collection_due(&mut self, key: &Key, old: Option<&Object>, new: &Object) {
        let meta = new.meta();
        let before = old.and_then(|o| o.meta().owner_references.as_ref());
        let owned = meta.owner_references.iter().flatten().next().is_some();
        let owners_changed = meta.owner_references.as_ref() != before;
        if object::deleting(meta) || (owned && owners_changed) {
            self.make_due(Task::Collect(key.clone()));
        }
    }

    /// A node came to be, is gone or moved to another zone: its pods are endpoints, are
    /// none any more, or are preferred by other nodes.
    fn endpoints_due(&mut self, node: &str) {
        let pods = self.pods_on(node);
        let labels = pods.flat_map(|pod| {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
            labels(namespace, &pod.metadata)
        });
        let services = labels.filter_map(|label| self.indexes.services_by_label.get(&label));
        let tasks = services.flatten().cloned().map(Task::EndpointSlices);
        let tasks: BTreeSet<Task> = tasks.collect();
        self.indexes.due.extend(tasks);
    }

    fn removed(&mut self, key: &Key, old: &Object) {
        let uid = object::uid(old.meta());
        let dependents = self.owned_by(uid).cloned();
        // An owner that waits for its dependents (foreground deletion).
        let owners = old.meta().owner_references.iter().flatten();
        let owners = owners.filter_map(|o| self.indexes.by_uid.get(&o.uid).cloned());
        let tasks: Vec<Task> = dependents.chain(owners).map(Task::Collect).collect();
        self.indexes.due.extend(tasks);
        self.indexes.judge_claims(holder(key, old));
        let namespace = &key.name.namespace;
        if self.indexes.closing.contains(namespace) {
            self.make_due(Task::Namespace(namespace.clone()));
        }
    }

    /// All claims.
    pub fn claims(&self) -> &Claims {
        &self.indexes.claims
    }

    /// The claim changed (`Some`), or its record is gone.
    pub fn put_claim(&mut self, key: ClaimKey, claim: Option<Claim>) {
        self.indexes.put_claim(key, claim);
    }

    /// True when the node is there, or may be: it cannot be read.
    pub fn may_have_node(&self, name: &str) -> bool {
        self.nodes.contains_key(name) || self.indexes.hides_node(name)
    }

    /// Pods of this node, terminating and finished ones as well.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = &Arc<Pod>> {
        self.indexes
            .pods_by_node
            .get(node)
            .into_iter()
            .flatten()
            .filter_map(|n| self.pods.get(n))
    }

    /// Objects that name this uid as an owner.
    pub fn owned_by(&self, uid: &str) -> impl Iterator<Item = &Key> {
        self.indexes.by_owner.get(uid).into_iter().flatten()
    }

    /// Objects of this namespace.
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Key> {
        self.indexes
            .by_namespace
            .get(namespace)
            .into_iter()
            .flatten()
    }

    /// Slices of this service.
    pub fn slices_of(&self, service: &Name) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.indexes
            .slices_by_service
            .get(service)
            .into_iter()
            .flatten()
            .filter_map(|n| self.slices.get(n))
    }

    /// Pods in `namespace` with label `key=value`.
    pub fn pods_labelled(
        &self,
        namespace: &str,
        key: &str,
        value: &str,
    ) -> impl Iterator<Item = &Arc<Pod>> {
        let index = (namespace.to_owned(), key.to_owned(), value.to_owned());
        self.indexes
            .pods_by_label
            .get(&index)
            .into_iter()
            .flatten()
            .filter_map(|n| self.pods.get(n))
    }

    /// Owner of this claim, if it has one.
    pub fn claim_owner(&self, key: &ClaimKey) -> Option<&str> {
        self.claims()
            .get(key)
            .map(|c| c.owner.as_str())
            .filter(|o| !o.is_empty())
    }

    /// The pod that has this address.
    pub fn pod_at(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        let uid = self.claim_owner(&ClaimKey::PodAddress(address))?;
        self.pods.get(&self.indexes.by_uid.get(uid)?.name)
    }

    /// What is known of an owner that an object of this namespace ("": a
    /// cluster-wide one) names.
    pub fn owner(&self, owner: &OwnerReference, namespace: &str) -> Owner {
        let reach = |found: &str| found.is_empty() || found == namespace;
        if let Some(key) = self.indexes.by_uid.get(&owner.uid)
            && reach(&key.name.namespace)
        {
            return Owner::Present(key.clone());
        }
        let (group, version) = object::group_version(&owner.api_version);
        let Some(kind) = control_api::find(group, version, &owner.kind) else {
            return Owner::Unknown;
        };
        if kind.namespaced && namespace.is_empty() {
            return Owner::Unknown;
        }
        let within = if kind.namespaced { namespace } else { "" };
        let key = Key::new(group, &owner.kind, Name::new(within, &owner.name));
        let hidden = self.indexes.unreadable.contains_key(&key);
        if hidden || self.indexes.may_be_unreadable(&owner.uid) {
            return Owner::Unknown;
        }
        Owner::Absent
    }
}

/// What claims name this object by.
fn holder<'a>(key: &'a Key, object: &'a Object) -> &'a str {
    if object.claims_by_name() {
        &key.name.name
    } else {
        object::uid(object.meta())
    }
}
