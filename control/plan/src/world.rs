//! What the controllers know: the store's objects with the indexes that keep a
//! plan's work proportional to what changed, and the tasks that a change makes due.
//!
//! Not a store and not a truth of its own: whatever is here was read from the
//! store, and a new process rebuilds it from there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::claim::{Claim, ClaimKey};
use crate::object::{self, Key, Name, Object};
use crate::usage::Usage;

/// What the cluster was configured with.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// All pods' addresses.
    pub pod_cidr: IpNet,
    /// Prefix length of one node's part of `pod_cidr`.
    pub node_prefix: u8,
    /// All services' addresses.
    pub service_cidr: IpNet,
    /// Seconds after which the pods of a lost node are deleted, unless they
    /// tolerate the taint for another time.
    pub eviction_seconds: i64,
    /// Seconds for which events are kept.
    pub event_seconds: i64,
}

/// One piece of work, due because something changed or a time has come.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// A Deployment's replica sets and status.
    Deployment(Name),
    /// A ReplicaSet's pods and status.
    ReplicaSet(Name),
    /// The slices of a Service.
    EndpointSlices(Name),
    /// All pods that have no node.
    Schedule,
    /// A Node's range, taints, and its pods when it is lost.
    Node(String),
    /// Claims whose owners are gone.
    Addresses,
    /// A Pod's identity number.
    Identity(Name),
    /// The contents of a Namespace that is being deleted.
    Namespace(String),
    /// An object whose owners or whose own deletion changed.
    Collect(Key),
    /// Events that are old.
    Events,
}

/// What services make of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointUse {
    /// It is in no slice.
    None,
    /// A slice has it as one that stays.
    Open,
    /// All slices that have it say that it terminates.
    Closed,
}

/// Objects and indexes, at one revision of the store.
#[derive(Debug)]
pub struct World {
    /// The cluster's configuration.
    pub settings: Settings,
    /// All pods.
    pub pods: BTreeMap<Name, Arc<Pod>>,
    /// All replica sets.
    pub replica_sets: BTreeMap<Name, Arc<ReplicaSet>>,
    /// All deployments.
    pub deployments: BTreeMap<Name, Arc<Deployment>>,
    /// All services.
    pub services: BTreeMap<Name, Arc<Service>>,
    /// All endpoint slices.
    pub slices: BTreeMap<Name, Arc<EndpointSlice>>,
    /// All nodes, by name.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// All namespaces, by name.
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    /// All config maps.
    pub config_maps: BTreeMap<Name, Arc<ConfigMap>>,
    /// All secrets.
    pub secrets: BTreeMap<Name, Arc<Secret>>,
    /// All events.
    pub events: BTreeMap<Name, Arc<Event>>,
    /// All claims.
    pub claims: BTreeMap<ClaimKey, Claim>,
    /// Kinds that no controller looks into.
    pub others: BTreeMap<Key, Arc<ObjectMeta>>,

    pub(crate) by_owner: HashMap<String, BTreeSet<Key>>,
    pub(crate) by_uid: HashMap<String, Key>,
    pub(crate) by_namespace: HashMap<String, BTreeSet<Key>>,
    pub(crate) pods_by_node: HashMap<String, BTreeSet<Name>>,
    pub(crate) pods_by_label: HashMap<(String, String, String), BTreeSet<Name>>,
    pub(crate) services_by_label: HashMap<(String, String, String), BTreeSet<Name>>,
    pub(crate) sets_by_label: HashMap<(String, String, String), BTreeSet<Name>>,
    pub(crate) orphan_sets: BTreeSet<Name>,
    pub(crate) slices_by_service: HashMap<Name, BTreeSet<Name>>,
    pub(crate) unbound: BTreeSet<Name>,
    pub(crate) events_by_time: BTreeSet<(Timestamp, Name)>,
    pub(crate) usage: HashMap<String, Usage>,
    pub(crate) spread: HashMap<(String, String), u32>,
    pub(crate) identities: HashMap<String, u32>,
    pub(crate) identity_users: HashMap<u32, u32>,
    pub(crate) idle_identities: BTreeSet<u32>,
    pub(crate) claims_by_owner: HashMap<String, BTreeSet<ClaimKey>>,
    pub(crate) orphan_claims: BTreeSet<ClaimKey>,
    due: BTreeSet<Task>,
}

impl World {
    /// An empty world.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            pods: BTreeMap::new(),
            replica_sets: BTreeMap::new(),
            deployments: BTreeMap::new(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            nodes: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            config_maps: BTreeMap::new(),
            secrets: BTreeMap::new(),
            events: BTreeMap::new(),
            claims: BTreeMap::new(),
            others: BTreeMap::new(),
            by_owner: HashMap::new(),
            by_uid: HashMap::new(),
            by_namespace: HashMap::new(),
            pods_by_node: HashMap::new(),
            pods_by_label: HashMap::new(),
            services_by_label: HashMap::new(),
            sets_by_label: HashMap::new(),
            orphan_sets: BTreeSet::new(),
            slices_by_service: HashMap::new(),
            unbound: BTreeSet::new(),
            events_by_time: BTreeSet::new(),
            usage: HashMap::new(),
            spread: HashMap::new(),
            identities: HashMap::new(),
            identity_users: HashMap::new(),
            idle_identities: BTreeSet::new(),
            claims_by_owner: HashMap::new(),
            orphan_claims: BTreeSet::new(),
            due: BTreeSet::new(),
        }
    }

    /// Takes what became due since the last call.
    pub fn take_due(&mut self) -> BTreeSet<Task> {
        std::mem::take(&mut self.due)
    }

    /// Makes a task due.
    pub fn make_due(&mut self, task: Task) {
        self.due.insert(task);
    }

    /// The object of this key.
    pub fn get(&self, key: &Key) -> Option<Object> {
        let name = &key.name;
        match (key.group.as_str(), key.kind.as_str()) {
            ("", "Pod") => self.pods.get(name).cloned().map(Object::Pod),
            ("apps", "ReplicaSet") => self.replica_sets.get(name).cloned().map(Object::ReplicaSet),
            ("apps", "Deployment") => self.deployments.get(name).cloned().map(Object::Deployment),
            ("", "Service") => self.services.get(name).cloned().map(Object::Service),
            ("discovery.k8s.io", "EndpointSlice") => {
                self.slices.get(name).cloned().map(Object::EndpointSlice)
            }
            ("", "Node") => self.nodes.get(&name.name).cloned().map(Object::Node),
            ("", "Namespace") => self
                .namespaces
                .get(&name.name)
                .cloned()
                .map(Object::Namespace),
            ("", "ConfigMap") => self.config_maps.get(name).cloned().map(Object::ConfigMap),
            ("", "Secret") => self.secrets.get(name).cloned().map(Object::Secret),
            ("", "Event") => self.events.get(name).cloned().map(Object::Event),
            (group, kind) => self.others.get(key).map(|meta| Object::Other {
                group: group.to_owned(),
                kind: kind.to_owned(),
                meta: meta.clone(),
            }),
        }
    }

    /// The keys of all objects.
    pub fn keys(&self) -> Vec<Key> {
        self.by_uid.values().cloned().collect()
    }

    /// The object came to be, or changed.
    pub fn put(&mut self, object: Object) {
        let key = object.key();
        let old = self.get(&key);
        if let Some(old) = &old {
            self.unindex(old);
        }
        self.insert(object.clone());
        self.index(&object);
        self.changed(&key, old.as_ref(), Some(&object));
    }

    /// The object is gone.
    pub fn remove(&mut self, key: &Key) {
        let Some(old) = self.get(key) else { return };
        self.unindex(&old);
        self.take_out(key);
        self.changed(key, Some(&old), None);
    }

    /// The claim changed (`Some`), or its record is gone.
    pub fn put_claim(&mut self, key: ClaimKey, claim: Option<Claim>) {
        if let Some(old) = self.claims.remove(&key) {
            if let Some(keys) = self.claims_by_owner.get_mut(&old.owner) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.claims_by_owner.remove(&old.owner);
                }
            }
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
        let Some(claim) = claim else { return };
        if !claim.owner.is_empty() {
            self.claims_by_owner
                .entry(claim.owner.clone())
                .or_default()
                .insert(key.clone());
            if let ClaimKey::Identity(number) = key {
                self.identities.entry(claim.owner.clone()).or_insert(number);
                // The one that was highest until now may go, if nobody has it.
                if !self.idle_identities.is_empty() {
                    self.due.insert(Task::Addresses);
                }
                if !self.identity_users.contains_key(&number) {
                    self.idle_identities.insert(number);
                }
            } else if !self.owner_exists(&key, &claim.owner) {
                self.orphan_claims.insert(key.clone());
                self.due.insert(Task::Addresses);
            }
        }
        self.claims.insert(key, claim);
    }

    /// True when the object that has this claim is there.
    pub(crate) fn owner_exists(&self, key: &ClaimKey, owner: &str) -> bool {
        match key {
            ClaimKey::PodAddress(_)
            | ClaimKey::ServiceAddress(_)
            | ClaimKey::ServiceId(_)
            | ClaimKey::PortId(_) => self.by_uid.contains_key(owner),
            ClaimKey::NodeRange(_) => self.nodes.contains_key(owner),
            ClaimKey::Identity(_) => true,
        }
    }

    /// Pods of this node, terminating and finished ones as well.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods_by_node
            .get(node)
            .into_iter()
            .flatten()
            .filter_map(|n| self.pods.get(n))
    }

    /// Objects that name this uid as an owner.
    pub fn owned_by(&self, uid: &str) -> impl Iterator<Item = &Key> {
        self.by_owner.get(uid).into_iter().flatten()
    }

    /// Objects of this namespace.
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Key> {
        self.by_namespace.get(namespace).into_iter().flatten()
    }

    /// Slices of this service.
    pub fn slices_of(&self, service: &Name) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.slices_by_service
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
        self.pods_by_label
            .get(&index)
            .into_iter()
            .flatten()
            .filter_map(|n| self.pods.get(n))
    }

    /// Who has this claim, if somebody has.
    pub fn claim_owner(&self, key: &ClaimKey) -> Option<&str> {
        self.claims
            .get(key)
            .map(|c| c.owner.as_str())
            .filter(|o| !o.is_empty())
    }

    /// The pod that has this address.
    pub fn pod_at(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        let uid = self.claim_owner(&ClaimKey::PodAddress(address))?;
        self.pods.get(&self.by_uid.get(uid)?.name)
    }

    /// Whether a pod is in a slice, and whether all slices say that it terminates.
    pub fn endpoint_use(&self, pod: &Pod) -> EndpointUse {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        let uid = object::uid(&pod.metadata);
        let mut found = EndpointUse::None;
        for (label, value) in pod.metadata.labels.iter().flatten() {
            let index = (namespace.to_owned(), label.clone(), value.clone());
            let services = self.services_by_label.get(&index).into_iter().flatten();
            for endpoint in services
                .flat_map(|s| self.slices_of(s))
                .flat_map(|s| &s.endpoints)
            {
                if endpoint.target_ref.as_ref().and_then(|r| r.uid.as_deref()) != Some(uid) {
                    continue;
                }
                let terminating = endpoint.conditions.as_ref().and_then(|c| c.terminating);
                if terminating != Some(true) {
                    return EndpointUse::Open;
                }
                found = EndpointUse::Closed;
            }
        }
        found
    }

    /// uid is in use by an object.
    pub fn has_uid(&self, uid: &str) -> bool {
        self.by_uid.contains_key(uid)
    }

    fn insert(&mut self, object: Object) {
        let key = object.key();
        match object {
            Object::Pod(o) => drop(self.pods.insert(key.name, o)),
            Object::ReplicaSet(o) => drop(self.replica_sets.insert(key.name, o)),
            Object::Deployment(o) => drop(self.deployments.insert(key.name, o)),
            Object::Service(o) => drop(self.services.insert(key.name, o)),
            Object::EndpointSlice(o) => drop(self.slices.insert(key.name, o)),
            Object::Node(o) => drop(self.nodes.insert(key.name.name, o)),
            Object::Namespace(o) => drop(self.namespaces.insert(key.name.name, o)),
            Object::ConfigMap(o) => drop(self.config_maps.insert(key.name, o)),
            Object::Secret(o) => drop(self.secrets.insert(key.name, o)),
            Object::Event(o) => drop(self.events.insert(key.name, o)),
            Object::Other { meta, .. } => drop(self.others.insert(key, meta)),
        }
    }

    fn take_out(&mut self, key: &Key) {
        let name = &key.name;
        match (key.group.as_str(), key.kind.as_str()) {
            ("", "Pod") => drop(self.pods.remove(name)),
            ("apps", "ReplicaSet") => drop(self.replica_sets.remove(name)),
            ("apps", "Deployment") => drop(self.deployments.remove(name)),
            ("", "Service") => drop(self.services.remove(name)),
            ("discovery.k8s.io", "EndpointSlice") => drop(self.slices.remove(name)),
            ("", "Node") => drop(self.nodes.remove(&name.name)),
            ("", "Namespace") => drop(self.namespaces.remove(&name.name)),
            ("", "ConfigMap") => drop(self.config_maps.remove(name)),
            ("", "Secret") => drop(self.secrets.remove(name)),
            ("", "Event") => drop(self.events.remove(name)),
            _ => drop(self.others.remove(key)),
        }
    }
}

/// uid, or a word that no object has as its uid.
pub(crate) fn uid_of(object: &Object) -> &str {
    object::uid(object.meta())
}
