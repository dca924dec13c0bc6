//! The indexes of a [`World`], and which tasks a change makes due.
//!
//! Called by `world.rs` with each object before and after it changed.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use control_api::selector::Selector;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use crate::claim::ClaimKey;
use crate::endpointslice::SERVICE_LABEL;
use crate::object::{self, Key, Name, Object};
use crate::usage::Usage;
use crate::world::{Task, World, uid_of};
use crate::{gc, identity, schedule};

fn add<K: Hash + Eq, V: Ord>(index: &mut HashMap<K, BTreeSet<V>>, key: K, value: V) {
    index.entry(key).or_default().insert(value);
}

fn sub<K: Hash + Eq, V: Ord>(index: &mut HashMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = index.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            index.remove(key);
        }
    }
}

/// The label pair by which a service is indexed: any one of its selector's, as
/// a pod that it selects has them all.
fn service_pair(service: &Service) -> Option<(String, String, String)> {
    let (key, value) = service.spec.as_ref()?.selector.as_ref()?.iter().next()?;
    Some((
        service.metadata.namespace.clone().unwrap_or_default(),
        key.clone(),
        value.clone(),
    ))
}

/// The same for a label selector; `None` when it has no plain pair.
pub(crate) fn selector_pair(
    namespace: &str,
    selector: &LabelSelector,
) -> Option<(String, String, String)> {
    let (key, value) = selector.match_labels.as_ref()?.iter().next()?;
    Some((namespace.to_owned(), key.clone(), value.clone()))
}

fn slice_service(slice: &EndpointSlice) -> Option<Name> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?;
    Some(Name::new(
        slice.metadata.namespace.as_deref().unwrap_or(""),
        service,
    ))
}

fn spread_key(pod: &Pod) -> Option<(String, String)> {
    let owner = object::controller(&pod.metadata)?;
    Some((owner.uid.clone(), object::pod_node(pod)?.to_owned()))
}

fn holds_resources(pod: &Pod) -> bool {
    !object::pod_finished(pod)
}

/// The scheduler has something to do: no node, or (when somebody named the node
/// in the spec) no address there.
fn waits(pod: &Pod) -> bool {
    (object::pod_node(pod).is_none() || schedule::lacks_address(pod))
        && !object::deleting(&pod.metadata)
        && !object::pod_finished(pod)
        && pod
            .spec
            .as_ref()
            .is_some_and(|s| s.scheduling_gates.iter().flatten().next().is_none())
}

impl World {
    pub(crate) fn index(&mut self, object: &Object) {
        let key = object.key();
        let meta = object.meta();
        let namespace = key.name.namespace.clone();
        let uid = uid_of(object).to_owned();
        let holder = if matches!(object, Object::Node(_)) {
            &key.name.name
        } else {
            &uid
        };
        for claim in self.claims_by_owner.get(holder).into_iter().flatten() {
            self.orphan_claims.remove(claim);
        }
        self.by_uid.insert(uid, key.clone());
        for owner in meta.owner_references.iter().flatten() {
            add(&mut self.by_owner, owner.uid.clone(), key.clone());
        }
        if !namespace.is_empty() {
            add(&mut self.by_namespace, namespace.clone(), key.clone());
        }
        if let Object::Pod(pod) = object {
            for (label, value) in meta.labels.iter().flatten() {
                let index = (namespace.clone(), label.clone(), value.clone());
                add(&mut self.pods_by_label, index, key.name.clone());
            }
            self.index_pod(pod, &key.name);
        } else if let Object::Service(service) = object {
            if let Some(pair) = service_pair(service) {
                add(&mut self.services_by_label, pair, key.name);
            }
        } else if let Object::ReplicaSet(set) = object {
            let pair = set
                .spec
                .as_ref()
                .and_then(|s| selector_pair(&namespace, &s.selector));
            if let Some(pair) = pair {
                add(&mut self.sets_by_label, pair, key.name.clone());
            }
            if object::controller(meta).is_none() {
                self.orphan_sets.insert(key.name);
            }
        } else if let Object::Event(event) = object {
            self.events_by_time
                .insert((gc::event_time(event), key.name));
        } else if let Object::EndpointSlice(slice) = object
            && let Some(service) = slice_service(slice)
        {
            add(&mut self.slices_by_service, service, key.name);
        }
    }

    fn index_pod(&mut self, pod: &Pod, name: &Name) {
        if waits(pod) {
            self.unbound.insert(name.clone());
        }
        let Some(node) = object::pod_node(pod) else {
            return;
        };
        add(&mut self.pods_by_node, node.to_owned(), name.clone());
        let number = identity::of(pod);
        *self.identity_users.entry(number).or_default() += 1;
        self.idle_identities.remove(&number);
        if holds_resources(pod) {
            self.usage
                .entry(node.to_owned())
                .or_default()
                .add(&Usage::of(pod));
            if let Some(spread) = spread_key(pod) {
                *self.spread.entry(spread).or_default() += 1;
            }
        }
    }

    pub(crate) fn unindex(&mut self, object: &Object) {
        let key = object.key();
        let meta = object.meta();
        let namespace = key.name.namespace.clone();
        self.by_uid.remove(uid_of(object));
        for owner in meta.owner_references.iter().flatten() {
            sub(&mut self.by_owner, &owner.uid, &key);
        }
        sub(&mut self.by_namespace, &namespace, &key);
        if let Object::Pod(pod) = object {
            for (label, value) in meta.labels.iter().flatten() {
                let index = (namespace.clone(), label.clone(), value.clone());
                sub(&mut self.pods_by_label, &index, &key.name);
            }
            self.unindex_pod(pod, &key.name);
        } else if let Object::Service(service) = object {
            if let Some(pair) = service_pair(service) {
                sub(&mut self.services_by_label, &pair, &key.name);
            }
        } else if let Object::ReplicaSet(set) = object {
            let pair = set
                .spec
                .as_ref()
                .and_then(|s| selector_pair(&namespace, &s.selector));
            if let Some(pair) = pair {
                sub(&mut self.sets_by_label, &pair, &key.name);
            }
            self.orphan_sets.remove(&key.name);
        } else if let Object::Event(event) = object {
            self.events_by_time
                .remove(&(gc::event_time(event), key.name));
        } else if let Object::EndpointSlice(slice) = object
            && let Some(service) = slice_service(slice)
        {
            sub(&mut self.slices_by_service, &service, &key.name);
        }
    }

    fn unindex_pod(&mut self, pod: &Pod, name: &Name) {
        self.unbound.remove(name);
        let Some(node) = object::pod_node(pod) else {
            return;
        };
        sub(&mut self.pods_by_node, &node.to_owned(), name);
        let number = identity::of(pod);
        if let Some(users) = self.identity_users.get_mut(&number) {
            *users = users.saturating_sub(1);
            if *users == 0 {
                self.identity_users.remove(&number);
                if self.claims.contains_key(&ClaimKey::Identity(number)) {
                    self.idle_identities.insert(number);
                }
            }
        }
        if holds_resources(pod) {
            if let Some(usage) = self.usage.get_mut(node) {
                usage.sub(&Usage::of(pod));
            }
            if let Some(spread) = spread_key(pod)
                && let Some(count) = self.spread.get_mut(&spread)
            {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.spread.remove(&spread);
                }
            }
        }
    }

    /// Makes due what may have to be done because of this change.
    pub(crate) fn changed(&mut self, key: &Key, old: Option<&Object>, new: Option<&Object>) {
        self.owners_due(old);
        self.owners_due(new);
        self.collection_due(key, old, new);
        for object in [old, new].into_iter().flatten() {
            match object {
                Object::Pod(pod) => self.pod_due(pod),
                Object::ReplicaSet(_) => self.make_due(Task::ReplicaSet(key.name.clone())),
                Object::Deployment(_) => self.make_due(Task::Deployment(key.name.clone())),
                Object::Service(_) => self.make_due(Task::EndpointSlices(key.name.clone())),
                Object::EndpointSlice(slice) => {
                    if let Some(service) = slice_service(slice) {
                        self.make_due(Task::EndpointSlices(service));
                    }
                }
                Object::Node(_) => {
                    self.make_due(Task::Node(key.name.name.clone()));
                    if !self.unbound.is_empty() {
                        self.make_due(Task::Schedule);
                    }
                }
                Object::Namespace(_) => self.make_due(Task::Namespace(key.name.name.clone())),
                Object::Event(_) => self.make_due(Task::Events),
                Object::ConfigMap(_) | Object::Secret(_) | Object::Other { .. } => {}
            }
        }
        if new.is_none() {
            self.removed(key, old);
        }
    }

    fn owners_due(&mut self, object: Option<&Object>) {
        let Some(object) = object else { return };
        let Some(owner) = object::controller(object.meta()) else {
            return;
        };
        let namespace = object.meta().namespace.as_deref().unwrap_or("");
        let name = Name::new(namespace, &owner.name);
        match owner.kind.as_str() {
            "ReplicaSet" => self.make_due(Task::ReplicaSet(name)),
            "Deployment" => self.make_due(Task::Deployment(name)),
            _ => {}
        }
    }

    fn collection_due(&mut self, key: &Key, old: Option<&Object>, new: Option<&Object>) {
        if let Some(new) = new {
            let meta = new.meta();
            let owners_changed =
                meta.owner_references != old.and_then(|o| o.meta().owner_references.clone());
            let owned = meta.owner_references.iter().flatten().next().is_some();
            if object::deleting(meta) || (owned && owners_changed) {
                self.make_due(Task::Collect(key.clone()));
            }
        }
    }

    fn pod_due(&mut self, pod: &Arc<Pod>) {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let mut tasks = Vec::new();
        for (label, value) in pod.metadata.labels.iter().flatten() {
            let index = (namespace.clone(), label.clone(), value.clone());
            let services = self.services_by_label.get(&index).into_iter().flatten();
            tasks.extend(services.cloned().map(Task::EndpointSlices));
            if object::controller(&pod.metadata).is_none() {
                let sets = self.sets_by_label.get(&index).into_iter().flatten();
                tasks.extend(sets.cloned().map(Task::ReplicaSet));
            }
        }
        if !self.unbound.is_empty() {
            tasks.push(Task::Schedule);
        }
        if let Some(node) = object::pod_node(pod) {
            tasks.push(Task::Identity(Name::of(&pod.metadata)));
            if self.node_is_lost(node) {
                tasks.push(Task::Node(node.to_owned()));
            }
        }
        for task in tasks {
            self.make_due(task);
        }
    }

    /// The node does not exist, or is tainted: its pods may have to go.
    fn node_is_lost(&self, node: &str) -> bool {
        self.nodes
            .get(node)
            .and_then(|n| n.spec.as_ref())
            .is_none_or(|s| s.taints.iter().flatten().any(|t| t.effect == "NoExecute"))
    }

    fn removed(&mut self, key: &Key, old: Option<&Object>) {
        let Some(old) = old else { return };
        let uid = uid_of(old).to_owned();
        let dependents: Vec<Key> = self.owned_by(&uid).cloned().collect();
        for dependent in dependents {
            self.make_due(Task::Collect(dependent));
        }
        // An owner that waits for its dependents (foreground deletion).
        let owners: Vec<Key> = (old.meta().owner_references.iter().flatten())
            .filter_map(|o| self.by_uid.get(&o.uid).cloned())
            .collect();
        for owner in owners {
            self.make_due(Task::Collect(owner));
        }
        let holder = if matches!(old, Object::Node(_)) {
            &key.name.name
        } else {
            &uid
        };
        if let Some(keys) = self.claims_by_owner.get(holder) {
            self.orphan_claims.extend(keys.iter().cloned());
            self.make_due(Task::Addresses);
        }
        let namespace = &key.name.namespace;
        if self
            .namespaces
            .get(namespace)
            .is_some_and(|n| object::deleting(&n.metadata))
        {
            self.make_due(Task::Namespace(namespace.clone()));
        }
    }
}

/// Pods that a label selector may select: those with its first plain pair, or
/// all pods of the namespace when it has none.
pub(crate) fn candidates<'a>(
    world: &'a World,
    namespace: &str,
    selector: &LabelSelector,
) -> Vec<&'a Arc<Pod>> {
    match selector_pair(namespace, selector) {
        Some((_, key, value)) => world.pods_labelled(namespace, &key, &value).collect(),
        None => (world.in_namespace(namespace))
            .filter(|k| k.kind == "Pod" && k.group.is_empty())
            .filter_map(|k| world.pods.get(&k.name))
            .collect(),
    }
}

/// True when the selector selects an object with this metadata.
pub(crate) fn selects(selector: &LabelSelector, meta: &ObjectMeta) -> bool {
    let label = |key: &str| {
        meta.labels
            .as_ref()
            .and_then(|l| l.get(key))
            .map(String::as_str)
    };
    Selector::from_label_selector(selector).matches_by(label)
}
