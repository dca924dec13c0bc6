//! Replica sets: as many pods as the set says, adopted, made or deleted; and
//! what the set's status says about them.
//!
//! Not the choice of victims (`victim.rs`). Called by [`crate::plan`].

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::action::{Notice, Plan, Severity, Write};
use crate::hash::{fnv64, letters};
use crate::index::{Indexes, add, sub};
use crate::object::{self, Key, Name};
use crate::registry::Object;
use crate::task::Task;
use crate::time::after;
use crate::watched::Watched;
use crate::world::World;
use crate::{select, victim};

/// Pods made in one plan at most; the next plan makes the rest, so that one
/// huge set does not hold up the others.
const BURST: usize = 500;
const COMPONENT: &str = "replicaset-controller";

impl Watched for ReplicaSet {
    fn reconcile(name: &Name) -> Option<Task> {
        Some(Task::ReplicaSet(name.clone()))
    }

    fn index(&self, name: &Name, indexes: &mut Indexes) {
        let selector = self.spec.as_ref().map(|s| &s.selector);
        if let Some(pair) = selector.and_then(|s| select::pair(&name.namespace, s)) {
            add(&mut indexes.sets_by_label, pair, name.clone());
        }
        if object::controller(&self.metadata).is_none() {
            indexes.orphan_sets.insert(name.clone());
        }
    }

    fn unindex(&self, name: &Name, indexes: &mut Indexes) {
        let selector = self.spec.as_ref().map(|s| &s.selector);
        if let Some(pair) = selector.and_then(|s| select::pair(&name.namespace, s)) {
            sub(&mut indexes.sets_by_label, &pair, name);
        }
        indexes.orphan_sets.remove(name);
    }
}

/// Brings the pods of one set to its count, and its status up to date.
pub fn plan(world: &World, name: &Name, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(set) = world.replica_sets.get(name) else {
        return plan;
    };
    let Some(spec) = &set.spec else { return plan };
    let deleting = object::deleting(&set.metadata);

    let mine = members(world, set, deleting, &mut plan);
    let active: Vec<&Arc<Pod>> = mine
        .into_iter()
        .filter(|p| !object::deleting(&p.metadata) && !object::pod_finished(p))
        .collect();

    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    let namespace_goes = world
        .namespaces
        .get(&name.namespace)
        .is_none_or(|n| object::deleting(&n.metadata));
    if !deleting {
        if active.len() < wanted && !namespace_goes {
            create(world, set, (wanted - active.len()).min(BURST), &mut plan);
        } else if active.len() > wanted {
            delete(set, &active, active.len() - wanted, now, &mut plan);
        }
    }

    let status = status(set, &active, now, &mut plan);
    if set.status.as_ref() != Some(&status) {
        let mut changed = ReplicaSet::clone(set);
        changed.status = Some(status);
        plan.put(Object::ReplicaSet(Arc::new(changed)));
    }
    plan
}

/// The set's pods. Orphans that it selects are adopted, pods that it does not
/// select any more are let go; either shows in the next plan as well.
fn members<'a>(
    world: &'a World,
    set: &ReplicaSet,
    deleting: bool,
    plan: &mut Plan,
) -> Vec<&'a Arc<Pod>> {
    let Some(spec) = &set.spec else {
        return Vec::new();
    };
    let uid = object::uid(&set.metadata);
    let namespace = set.metadata.namespace.as_deref().unwrap_or("");
    let owned = world.owned_by(uid).filter(|k| k.kind == "Pod");
    let mut pods = Vec::new();
    for pod in owned.filter_map(|k| world.pods.get(&k.name)) {
        if object::controller(&pod.metadata).is_none_or(|c| c.uid != uid) {
            continue;
        }
        if select::selects(&spec.selector, &pod.metadata) {
            pods.push(pod);
        } else if !object::deleting(&pod.metadata) && !deleting {
            let mut changed = Pod::clone(pod);
            if let Some(owners) = &mut changed.metadata.owner_references {
                owners.retain(|o| o.uid != uid);
            }
            plan.put(Object::Pod(Arc::new(changed)));
        }
    }
    if deleting {
        return pods;
    }
    for pod in select::candidates(world, namespace, &spec.selector) {
        let orphan = object::controller(&pod.metadata).is_none()
            && !object::deleting(&pod.metadata)
            && !object::pod_finished(pod);
        if orphan && select::selects(&spec.selector, &pod.metadata) {
            let mut changed = Pod::clone(pod);
            let owner = object::owned_by("apps/v1", "ReplicaSet", &set.metadata);
            changed
                .metadata
                .owner_references
                .get_or_insert_default()
                .push(owner);
            plan.put(Object::Pod(Arc::new(changed)));
            pods.push(pod);
        }
    }
    pods
}

fn create(world: &World, set: &ReplicaSet, count: usize, plan: &mut Plan) {
    let Some(template) = set.spec.as_ref().and_then(|s| s.template.as_ref()) else {
        return;
    };
    let set_name = Name::of(&set.metadata);
    let from = template.metadata.as_ref();
    let mut used = BTreeSet::new();
    let mut attempt: u64 = 0;
    while used.len() < count {
        // The revision makes it another name each time; the loop passes over
        // names that are taken.
        let revision = object::revision(&set.metadata);
        let seed = [revision.to_be_bytes(), attempt.to_be_bytes()].concat();
        attempt += 1;
        let tail = letters(fnv64(&[object::uid(&set.metadata).as_bytes(), &seed]), 5);
        let name = format!("{}-{tail}", short(&set_name.name));
        let key = Name::new(&set_name.namespace, &name);
        if world.pods.contains_key(&key) || !used.insert(name.clone()) {
            continue;
        }
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                generate_name: Some(format!("{}-", short(&set_name.name))),
                namespace: Some(set_name.namespace.clone()),
                labels: from.and_then(|m| m.labels.clone()),
                annotations: from.and_then(|m| m.annotations.clone()),
                finalizers: from.and_then(|m| m.finalizers.clone()),
                owner_references: Some(vec![object::owned_by(
                    "apps/v1",
                    "ReplicaSet",
                    &set.metadata,
                )]),
                ..ObjectMeta::default()
            },
            spec: template.spec.clone(),
            status: None,
        };
        plan.put(Object::Pod(Arc::new(pod)));
        plan.notices.push(notice(
            set,
            "SuccessfulCreate",
            format!("Created pod: {name}"),
        ));
    }
}

/// A pod's name and its hostname are at most 63 characters.
fn short(name: &str) -> &str {
    name.get(..57).unwrap_or(name).trim_end_matches(['-', '.'])
}

fn delete(set: &ReplicaSet, active: &[&Arc<Pod>], count: usize, now: Timestamp, plan: &mut Plan) {
    for pod in victim::choose(active, count, now) {
        let name = Name::of(&pod.metadata);
        let message = format!("Deleted pod: {}", name.name);
        plan.writes.push(Write::Delete {
            key: Key::new("", "Pod", name),
            uid: object::uid(&pod.metadata).to_owned(),
            grace_seconds: None,
            foreground: false,
        });
        plan.notices.push(notice(set, "SuccessfulDelete", message));
    }
}

/// A pod is available when it has been ready for `min_ready` seconds; else,
/// when it is ready, the time at which it will be.
fn available_at(pod: &Pod, min_ready: i32) -> Option<Timestamp> {
    let ready = object::pod_condition(pod, "Ready").filter(|c| c.status == "True")?;
    let since = ready
        .last_transition_time
        .as_ref()
        .map_or(Timestamp::MIN, |t| t.0);
    Some(after(since, i64::from(min_ready)))
}

fn status(
    set: &ReplicaSet,
    active: &[&Arc<Pod>],
    now: Timestamp,
    plan: &mut Plan,
) -> ReplicaSetStatus {
    let spec = set.spec.as_ref();
    let min_ready = spec.and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let template = spec
        .and_then(|s| s.template.as_ref())
        .and_then(|t| t.metadata.as_ref());
    let wanted = template.and_then(|m| m.labels.clone()).unwrap_or_default();
    let (mut ready, mut available, mut labelled) = (0, 0, 0);
    for pod in active {
        let has = |(k, v): (&String, &String)| {
            pod.metadata
                .labels
                .as_ref()
                .is_some_and(|l| l.get(k) == Some(v))
        };
        labelled += i32::from(wanted.iter().all(has));
        ready += i32::from(object::pod_ready(pod));
        match available_at(pod, min_ready) {
            Some(at) if min_ready == 0 || at <= now => available += 1,
            Some(at) => plan.again(at),
            None => {}
        }
    }
    ReplicaSetStatus {
        replicas: i32::try_from(active.len()).unwrap_or(i32::MAX),
        fully_labeled_replicas: Some(labelled).filter(|n| *n > 0),
        ready_replicas: Some(ready).filter(|n| *n > 0),
        available_replicas: Some(available).filter(|n| *n > 0),
        observed_generation: set.metadata.generation,
        conditions: set.status.as_ref().and_then(|s| s.conditions.clone()),
        terminating_replicas: None,
    }
}

fn notice(set: &ReplicaSet, reason: &'static str, message: String) -> Notice {
    Notice {
        about: Key::new("apps", "ReplicaSet", Name::of(&set.metadata)),
        uid: object::uid(&set.metadata).to_owned(),
        severity: Severity::Normal,
        reason,
        message,
        component: COMPONENT,
    }
}
