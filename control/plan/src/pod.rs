//! Pods in the indexes, and what their changes make due.
//!
//! Not their making (`replicaset.rs`) and not their node (`schedule.rs`).

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::claim::ClaimKey;
use crate::hostport::host_ports;
use crate::index::{Indexes, Losses, add, labels, sub};
use crate::object::{self, Name};
use crate::task::Task;
use crate::usage::Usage;
use crate::watched::Watched;
use crate::{identity, podgc};

/// True when the pod has no address, and needs one of its own.
pub fn lacks_address(pod: &Pod) -> bool {
    let host = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
    let has = pod
        .status
        .as_ref()
        .and_then(|s| s.pod_ip.as_deref())
        .is_some_and(|ip| !ip.is_empty());
    !host && !has
}

/// The scheduler has something to do: no node, or (when the spec names the node)
/// no address there.
fn waits(pod: &Pod) -> bool {
    (object::pod_node(pod).is_none() || lacks_address(pod))
        && !object::deleting(&pod.metadata)
        && !object::pod_finished(pod)
        && pod
            .spec
            .as_ref()
            .is_some_and(|s| s.scheduling_gates.iter().flatten().next().is_none())
}

/// The node whose resources the pod holds.
fn holds(pod: &Pod) -> Option<&str> {
    object::pod_node(pod).filter(|_| !object::pod_finished(pod))
}

fn spread_key(pod: &Pod) -> Option<(String, String)> {
    let owner = object::controller(&pod.metadata)?;
    Some((owner.uid.clone(), object::pod_node(pod)?.to_owned()))
}

impl Watched for Pod {
    fn index(&self, name: &Name, indexes: &mut Indexes) {
        for label in labels(&name.namespace, &self.metadata) {
            add(&mut indexes.pods_by_label, label, name.clone());
        }
        if object::pod_finished(self) {
            let uid = object::uid(&self.metadata).to_owned();
            indexes.finished.insert(uid);
        }
        indexes.terminated.extend(podgc::terminated(self));
        let Some(node) = object::pod_node(self) else {
            return;
        };
        add(&mut indexes.pods_by_node, node.to_owned(), name.clone());
        let number = identity::of(self);
        *indexes.identity_users.entry(number).or_default() += 1;
        indexes.idle_identities.remove(&number);
        if holds(self).is_none() {
            return;
        }
        let usage = indexes.usage.entry(node.to_owned()).or_default();
        usage.add(&Usage::of(self));
        for port in host_ports(self) {
            let ports = indexes.host_ports.entry(node.to_owned()).or_default();
            ports.take(port);
        }
        if let Some(spread) = spread_key(self) {
            *indexes.spread.entry(spread).or_default() += 1;
        }
    }

    fn unindex(&self, name: &Name, indexes: &mut Indexes) {
        for label in labels(&name.namespace, &self.metadata) {
            sub(&mut indexes.pods_by_label, &label, name);
        }
        indexes.finished.remove(object::uid(&self.metadata));
        if let Some(entry) = podgc::terminated(self) {
            indexes.terminated.remove(&entry);
        }
        let Some(node) = object::pod_node(self) else {
            return;
        };
        sub(&mut indexes.pods_by_node, &node.to_owned(), name);
        release_identity(identity::of(self), indexes);
        if holds(self).is_none() {
            return;
        }
        if let Some(usage) = indexes.usage.get_mut(node) {
            usage.sub(&Usage::of(self));
        }
        if let Some(ports) = indexes.host_ports.get_mut(node) {
            host_ports(self).for_each(|port| ports.release(&port));
            if ports.is_empty() {
                indexes.host_ports.remove(node);
            }
        }
        if let Some(spread) = spread_key(self)
            && let Some(count) = indexes.spread.get_mut(&spread)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                indexes.spread.remove(&spread);
            }
        }
    }

    fn changed(name: &Name, old: Option<&Self>, new: Option<&Self>, indexes: &mut Indexes) {
        for pod in [old, new].into_iter().flatten() {
            due(pod, name, indexes);
        }
        let number = |pod: Option<&Self>| pod.map(identity::of);
        if number(old) != number(new) && !indexes.idle_identities.is_empty() {
            indexes.make_due(Task::Addresses);
        }
        queue(name, old, new, indexes);
        losses(old, new, indexes);
        if new.is_none()
            && let Some(node) = old.and_then(object::pod_node)
            && !indexes.pods_by_node.contains_key(node)
        {
            indexes.absent_nodes.remove(node);
        }
        podgc::check(indexes);
        // It left its node: another pod may fit there now.
        if old.and_then(holds).is_some() && new.and_then(holds).is_none() {
            indexes.wake_pods(true);
        }
    }
}

/// Puts the pod into the scheduler's queue, or takes it out.
fn queue(name: &Name, old: Option<&Pod>, new: Option<&Pod>, indexes: &mut Indexes) {
    let Some(pod) = new.filter(|pod| waits(pod)) else {
        let assumed = indexes.queue.remove(name);
        let bound = new.is_some_and(|pod| object::pod_node(pod).is_some() && !lacks_address(pod));
        if assumed && !bound {
            // What its binding was to take is free.
            indexes.wake_pods(true);
        }
        return;
    };
    let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
    let uid = object::uid(&pod.metadata);
    let asks_anew =
        old.is_some_and(|old| old.spec != pod.spec || old.metadata.labels != pod.metadata.labels);
    let fresh = indexes.queue.put(name, uid, priority);
    if fresh || (asks_anew && indexes.queue.wake(name)) {
        indexes.make_due(Task::Schedule);
    }
}

/// True when the pod counts as one of its owner's.
fn is_active(pod: &Pod) -> bool {
    !object::deleting(&pod.metadata) && !object::pod_finished(pod)
}

/// Counts the pods of an owner that went before they were ready; those that were
/// created together count once. A pod that becomes ready ends the count.
fn losses(old: Option<&Pod>, new: Option<&Pod>, indexes: &mut Indexes) {
    let of = |pod: &Pod| object::controller(&pod.metadata).map(|owner| owner.uid.clone());
    if let Some(owner) = new.filter(|new| object::pod_ready(new)).and_then(of) {
        indexes.losses.remove(&owner);
    }
    let Some(old) = old.filter(|old| is_active(old) && !object::pod_ready(old)) else {
        return;
    };
    let (false, Some(owner)) = (new.is_some_and(is_active), of(old)) else {
        return;
    };
    if !indexes.by_uid.contains_key(&owner) {
        return;
    }
    let created = old.metadata.creation_timestamp.as_ref();
    let created = created.map_or(Timestamp::MIN, |t| t.0);
    let first = Losses { count: 1, created };
    let entry = indexes.losses.entry(owner).or_insert(first);
    if created > entry.created {
        entry.count = entry.count.saturating_add(1);
        entry.created = created;
    }
}

fn release_identity(number: u32, indexes: &mut Indexes) {
    if let Some(users) = indexes.identity_users.get_mut(&number) {
        *users = users.saturating_sub(1);
        if *users == 0 {
            indexes.identity_users.remove(&number);
            if indexes.claims.get(&ClaimKey::Identity(number)).is_some() {
                indexes.idle_identities.insert(number);
            }
        }
    }
}

fn due(pod: &Pod, name: &Name, indexes: &mut Indexes) {
    let mut tasks = Vec::new();
    for label in labels(&name.namespace, &pod.metadata) {
        let services = indexes.services_by_label.get(&label).into_iter().flatten();
        tasks.extend(services.cloned().map(Task::EndpointSlices));
        if object::controller(&pod.metadata).is_none() {
            let sets = indexes.sets_by_label.get(&label).into_iter().flatten();
            tasks.extend(sets.cloned().map(Task::ReplicaSet));
        }
    }
    if let Some(node) = object::pod_node(pod) {
        tasks.push(Task::Identity(name.clone()));
        // The node does not exist, or evicts: its pods may have to go.
        if indexes.nodes.get(node).is_none_or(|offer| offer.evicts) {
            tasks.push(Task::Node(node.to_owned()));
        }
    }
    indexes.due.extend(tasks);
}
