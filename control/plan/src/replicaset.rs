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
use crate::{refused, select, victim};

/// Pods made in one plan at most; the next plan makes the rest, so that one
/// huge set does not hold up the others.
const BURST: usize = 500;
/// Seconds from the creation of a pod that went before it was ready to that of the
/// next one; doubles with each.
const FIRST_PAUSE: i64 = 1;
/// The same at most.
const LONGEST_PAUSE: i64 = 300;
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

    fn changed(_name: &Name, old: Option<&Self>, new: Option<&Self>, indexes: &mut Indexes) {
        if let (Some(old), None) = (old, new) {
            let uid = object::uid(&old.metadata);
            indexes.losses.remove(uid);
            indexes.replica_failures.remove(uid);
        }
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

    let wanted = usize::try_from(spec.replicas.unwrap_or_default()).unwrap_or(0);
    let namespace_goes = world
        .namespaces
        .get(&name.namespace)
        .is_none_or(|n| object::deleting(&n.metadata));
    if !deleting {
        if active.len() < wanted && !namespace_goes {
            match held_back(world, set).filter(|until| *until > now) {
                Some(until) => plan.again(until),
                None => create(world, set, (wanted - active.len()).min(BURST), &mut plan),
            }
        } else if active.len() > wanted {
            delete(set, &active, active.len() - wanted, now, &mut plan);
        }
    }

    let mut status = status(set, &active, now, &mut plan);
    let failure = world
        .indexes
        .replica_failures
        .get(object::uid(&set.metadata));
    refused::show(&mut status, failure, active.len() != wanted, now);
    if set.status.as_ref() != Some(&status) {
        let mut changed = ReplicaSet::clone(set);
        changed.status = Some(status);
        plan.put(Object::ReplicaSet(Arc::new(changed)));
    }
    plan
}

/// Until when no pods are made, as those that were made last went before they were
/// ready: they are refused by their node, or it does not exist.
fn held_back(world: &World, set: &ReplicaSet) -> Option<Timestamp> {
    let losses = world.indexes.losses.get(object::uid(&set.metadata))?;
    let doubled = losses.count.saturating_sub(1).min(16);
    let pause = (FIRST_PAUSE << doubled).min(LONGEST_PAUSE);
    Some(after(losses.created, pause))
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
        plan.tell(notice(
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
            revision: None,
            grace_seconds: None,
            foreground: false,
        });
        plan.tell(notice(set, "SuccessfulDelete", message));
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
        write: None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::for_tests::{meta, node, now, put_node, put_pod, typed, world};
    use crate::task::Task;

    fn set(replicas: i32, node: &str) -> ReplicaSet {
        typed(json!({
            "metadata": meta("rs", &[]),
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"nodeName": node, "containers": [{"name": "main"}]},
                },
            },
        }))
    }

    /// Plans all that is due from `from` on, as the server does, for so many
    /// seconds. `meddle` sees each pod that is bound. How many were made.
    fn run(world: &mut World, seconds: i64, meddle: impl Fn(&mut Pod)) -> usize {
        let mut made = 0;
        let mut later: BTreeMap<Task, Timestamp> = BTreeMap::new();
        for second in 0..=seconds {
            let time = after(now(), second);
            let ripe: Vec<Task> = later
                .iter()
                .filter(|(_, at)| **at <= time)
                .map(|(task, _)| task.clone())
                .collect();
            for task in ripe {
                later.remove(&task);
                world.make_due(task);
            }
            let mut rounds = 0;
            loop {
                let due = world.take_due();
                rounds += 1;
                if due.is_empty() || rounds > 100 {
                    break;
                }
                for task in due {
                    let outcome = crate::plan(world, &task, time);
                    world.note(&outcome, time);
                    if let Some(at) = outcome.again_at {
                        later.insert(task, at);
                    }
                    for write in outcome.writes {
                        match write {
                            Write::Put { mut object, .. } => {
                                let fresh = object.revision() == 0;
                                let meta = object.meta_mut();
                                if fresh {
                                    made += 1;
                                    meta.uid.clone_from(&meta.name);
                                    let created = json!(time.to_string());
                                    meta.creation_timestamp = Some(typed(created));
                                    meta.resource_version = Some("1".to_owned());
                                }
                                if let (Object::Pod(pod), false) = (&mut object, fresh) {
                                    meddle(Arc::make_mut(pod));
                                }
                                world.put(object);
                            }
                            Write::Delete { key, .. } | Write::Remove { key, .. } => {
                                world.remove(&key);
                            }
                            Write::Claims(_) | Write::Unhook { .. } => {}
                        }
                    }
                }
            }
        }
        made
    }

    /// Ten minutes: each pod waits for its node for 40 s, and is then replaced.
    #[test]
    fn pods_of_an_absent_node_are_no_hot_loop() {
        let mut world = world();
        put_node(&mut world, node("n1", 1));
        world.put(Object::ReplicaSet(Arc::new(set(2, "absent"))));
        let made = run(&mut world, 600, |_| {});
        assert!((10..=32).contains(&made), "{made} pods in ten minutes");
    }

    /// Pods that fail as soon as they are made: a few at first, then one set of
    /// them in five minutes. One that becomes ready ends the back-off.
    #[test]
    fn pods_that_fail_at_once_are_replaced_more_and_more_rarely() {
        let mut world = world();
        put_node(&mut world, node("n1", 1));
        world.put(Object::ReplicaSet(Arc::new(set(3, "n1"))));
        let fail = |pod: &mut Pod| {
            pod.status.get_or_insert_default().phase = Some("Failed".to_owned());
        };
        let made = run(&mut world, 1200, fail);
        assert!(
            (3 * 9..=3 * 13).contains(&made),
            "{made} pods in 20 minutes"
        );
        let mut ready = Pod::clone(world.pods.values().next().unwrap());
        ready.status = Some(typed(json!({"phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}]})));
        put_pod(&mut world, ready);
        assert_eq!(
            held_back(&world, &world.replica_sets[&Name::new("default", "rs")]),
            None
        );
    }

    /// As in Kubernetes: True from the first refusal until the number of pods is right.
    #[test]
    fn a_set_whose_pods_are_refused_says_so() {
        let mut world = world();
        let name = Name::new("default", "rs");
        world.put(Object::ReplicaSet(Arc::new(set(1, "n1"))));
        let carry_out = |world: &mut World, time| {
            let outcome = plan(world, &name, time);
            for write in outcome.writes {
                if let Write::Put { object, .. } = write
                    && object.revision() != 0
                {
                    world.put(object);
                }
            }
            let said = refused::of(&world.replica_sets[&name]).cloned();
            said.map(|c| (c.status, c.reason.unwrap(), c.message.unwrap()))
        };
        assert_eq!(carry_out(&mut world, now()), None);
        let told = world.replicas_refused(&name, false, "no").unwrap();
        assert_eq!(
            (told.severity, told.reason),
            (Severity::Warning, "FailedCreate")
        );
        assert_eq!(told.message, "Error creating: no");
        let failed = Some((
            "True".to_owned(),
            "FailedCreate".to_owned(),
            "no".to_owned(),
        ));
        assert_eq!(carry_out(&mut world, now()), failed);
        // Refused again, in other words: that is no news, and writes nothing.
        world.replicas_refused(&name, false, "no again");
        let again = plan(&world, &name, after(now(), 5));
        assert!(
            again.writes.iter().all(|w| matches!(
                w,
                Write::Put {
                    object: Object::Pod(_),
                    ..
                }
            )),
            "{again:?}"
        );
        // Controllers that have just started know of no refusal: the set is short still.
        world.replicas_written(&name);
        assert_eq!(carry_out(&mut world, now()), failed);
        let mut made: Pod = crate::for_tests::pod("rs-1", "0", "rs");
        made.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
        put_pod(&mut world, made);
        assert_eq!(carry_out(&mut world, now()), None);
    }

    #[test]
    fn a_pod_that_was_ready_is_replaced_at_once() {
        let mut world = world();
        put_node(&mut world, node("n1", 1));
        world.put(Object::ReplicaSet(Arc::new(set(1, "n1"))));
        let ready = |pod: &mut Pod| {
            pod.status = Some(typed(json!({"phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}]})));
        };
        assert_eq!(run(&mut world, 0, ready), 1);
        for _ in 0..20 {
            let key = world.pods.keys().next().cloned().unwrap();
            world.remove(&Key::new("", "Pod", key));
            assert_eq!(run(&mut world, 0, ready), 1);
        }
    }
}
