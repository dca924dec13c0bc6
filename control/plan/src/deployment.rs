//! Deployments: which replica sets there are, and how many pods each has while the
//! template is rolled out. And the status.
//!
//! The arithmetic of one step is in `rollout.rs`. Called by [`crate::plan`].

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::action::{Notice, Plan, Severity, Write};
use crate::hash::{fnv64, letters};
use crate::member::{DESIRED, MAXIMUM, Member, REVISION};
use crate::object::{self, Key, Name};
use crate::registry::Object;
use crate::rollout::{self, Limits};
use crate::task::Task;
use crate::watched::Watched;
use crate::world::World;
use crate::{progress, select};

/// Label that tells the pods of one template from those of another.
pub const HASH_LABEL: &str = "pod-template-hash";
/// Earlier revisions of the same template, comma-separated.
pub const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const COMPONENT: &str = "deployment-controller";

impl Watched for Deployment {
    fn reconcile(name: &Name) -> Option<Task> {
        Some(Task::Deployment(name.clone()))
    }
}

/// One step of the rollout, and the status.
pub fn plan(world: &World, name: &Name, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(deployment) = world.deployments.get(name) else {
        return plan;
    };
    let Some(spec) = &deployment.spec else {
        return plan;
    };
    let deleting = object::deleting(&deployment.metadata);

    let (new, old) = sets(world, deployment, deleting, &mut plan);
    if deleting {
        progress::write_status(deployment, new.as_ref(), &old, None, now, &mut plan);
        return plan;
    }
    let paused = spec.paused == Some(true);
    let mut limits = Limits::of(spec);
    limits.held = limits.recreate && leaves_pods(world, deployment);
    let mut collision = None;
    let mut wanted: BTreeMap<String, i32> = BTreeMap::new();

    match &new {
        None if !paused => collision = create(world, deployment, &old, &limits, &mut plan),
        _ => {
            let scaled = rollout::rescale(&limits, new.as_ref(), &old);
            wanted = match (scaled, &new) {
                (Some(scaled), _) => scaled,
                (None, Some(new)) if !paused => rollout::step(&limits, new, &old),
                (None, _) => BTreeMap::new(),
            };
        }
    }
    let revision = revision_for(new.as_ref(), &old);
    for member in new.iter().chain(&old) {
        let is_new = new
            .as_ref()
            .is_some_and(|n| Arc::ptr_eq(&n.set, &member.set));
        let replicas = wanted
            .get(member.name())
            .copied()
            .unwrap_or(member.replicas);
        let revision = if is_new && !paused {
            revision.as_deref()
        } else {
            None
        };
        update(deployment, member, replicas, revision, &limits, &mut plan);
    }
    if new
        .as_ref()
        .is_some_and(|n| rollout::complete(&limits, n, &old))
    {
        let limit = spec.revision_history_limit.unwrap_or_default();
        forget_old(limit, &old, &mut plan);
    }
    let revision = if paused { None } else { revision };
    let shown = progress::Shown {
        collision,
        revision,
    };
    progress::write_status(deployment, new.as_ref(), &old, Some(shown), now, &mut plan);
    plan
}

/// The set of the present template (the oldest, if several), and the others,
/// oldest first. Orphans that the Deployment selects are adopted.
fn sets(
    world: &World,
    deployment: &Deployment,
    deleting: bool,
    plan: &mut Plan,
) -> (Option<Member>, Vec<Member>) {
    let uid = object::uid(&deployment.metadata);
    let Some(spec) = &deployment.spec else {
        return (None, Vec::new());
    };
    let mut all: Vec<&Arc<ReplicaSet>> = (world.owned_by(uid))
        .filter(|k| k.kind == "ReplicaSet")
        .filter_map(|k| world.replica_sets.get(&k.name))
        .filter(|s| object::controller(&s.metadata).is_some_and(|c| c.uid == uid))
        .filter(|s| !object::deleting(&s.metadata))
        .collect();
    if !deleting {
        for orphan in world
            .indexes
            .orphan_sets
            .iter()
            .filter_map(|n| world.replica_sets.get(n))
        {
            let mine = orphan.metadata.namespace == deployment.metadata.namespace
                && !object::deleting(&orphan.metadata)
                && select::selects(&spec.selector, &orphan.metadata);
            if mine {
                let mut changed = ReplicaSet::clone(orphan);
                let owner = object::owned_by("apps/v1", "Deployment", &deployment.metadata);
                changed
                    .metadata
                    .owner_references
                    .get_or_insert_default()
                    .push(owner);
                plan.put(Object::ReplicaSet(Arc::new(changed)));
            }
        }
    }
    all.sort_by_key(|s| {
        let created = s
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(Timestamp::MIN, |t| t.0);
        (created, s.metadata.name.clone())
    });
    let new = all.iter().position(|s| {
        let template = s.spec.as_ref().and_then(|s| s.template.as_ref());
        template.is_some_and(|t| same_template(t, &spec.template))
    });
    let new = new.map(|at| Member::of(world, all.remove(at)));
    (new, all.into_iter().map(|s| Member::of(world, s)).collect())
}

/// True when there are still pods of sets of this Deployment that were deleted, or
/// are being deleted.
fn leaves_pods(world: &World, deployment: &Deployment) -> bool {
    let Some(spec) = &deployment.spec else {
        return false;
    };
    let namespace = deployment.metadata.namespace.as_deref().unwrap_or("");
    let mut pods = select::candidates(world, namespace, &spec.selector).into_iter();
    pods.any(|pod| {
        let Some(owner) = object::controller(&pod.metadata) else {
            return false;
        };
        let set = world.replica_sets.get(&Name::new(namespace, &owner.name));
        let set = set.filter(|set| object::uid(&set.metadata) == owner.uid);
        owner.kind == "ReplicaSet"
            && set.is_none_or(|set| object::deleting(&set.metadata))
            && !object::pod_finished(pod)
            && select::selects(&spec.selector, &pod.metadata)
    })
}

/// Equal, except the hash label that the replica set's copy bears.
fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    a.spec == b.spec && plain(a.metadata.as_ref()) == plain(b.metadata.as_ref())
}

fn plain(meta: Option<&ObjectMeta>) -> ObjectMeta {
    let mut meta = meta.cloned().unwrap_or_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH_LABEL);
    }
    meta.labels = meta.labels.filter(|l| !l.is_empty());
    meta.annotations = meta.annotations.filter(|l| !l.is_empty());
    meta
}

fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    // Serialising these types cannot fail; if it did, all templates would
    // collide, which the collision count resolves.
    let json = serde_json::to_vec(template).unwrap_or_default();
    letters(fnv64(&[&json, &collisions.to_be_bytes()]), 10)
}

/// Makes the set of the present template. `Some`: its name is taken by
/// another, and this is the collision count to try next.
fn create(
    world: &World,
    deployment: &Deployment,
    old: &[Member],
    limits: &Limits,
    plan: &mut Plan,
) -> Option<i32> {
    let spec = deployment.spec.as_ref()?;
    let name = Name::of(&deployment.metadata);
    let collisions = deployment
        .status
        .as_ref()
        .and_then(|s| s.collision_count)
        .unwrap_or(0);
    let hash = template_hash(&spec.template, collisions);
    let set = format!("{}-{hash}", name.name);
    if world
        .replica_sets
        .contains_key(&Name::new(&name.namespace, &set))
    {
        return Some(collisions + 1);
    }
    let mut template = spec.template.clone();
    let meta = template.metadata.get_or_insert_default();
    meta.labels
        .get_or_insert_default()
        .insert(HASH_LABEL.to_owned(), hash.clone());
    let labels = meta.labels.clone();
    let mut selector = spec.selector.clone();
    selector
        .match_labels
        .get_or_insert_default()
        .insert(HASH_LABEL.to_owned(), hash);
    let replicas = rollout::first(limits, old);
    let revision = revision_for(None, old).unwrap_or_default();
    let mut annotations = inherited(deployment);
    annotations.insert(REVISION.to_owned(), revision);
    annotations.insert(DESIRED.to_owned(), limits.replicas.to_string());
    annotations.insert(MAXIMUM.to_owned(), limits.most().to_string());
    plan.put(Object::ReplicaSet(Arc::new(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(set.clone()),
            namespace: Some(name.namespace),
            labels,
            annotations: Some(annotations),
            owner_references: Some(vec![object::owned_by(
                "apps/v1",
                "Deployment",
                &deployment.metadata,
            )]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: Some(replicas),
            selector,
            template: Some(template),
        }),
        status: None,
    })));
    plan.tell(scaled(deployment, &set, 0, replicas));
    None
}

/// Annotations that a set takes over from its Deployment.
fn inherited(deployment: &Deployment) -> BTreeMap<String, String> {
    let own = [REVISION, HISTORY, DESIRED, MAXIMUM, LAST_APPLIED];
    let all = deployment.metadata.annotations.iter().flatten();
    all.filter(|(k, _)| !own.contains(&k.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// The number that the new set has, or gets: one above all old ones.
fn revision_for(new: Option<&Member>, old: &[Member]) -> Option<String> {
    let above = old.iter().map(Member::revision).max().unwrap_or(0) + 1;
    Some(new.map_or(0, Member::revision).max(above).to_string())
}

/// Writes what differs: replicas, the limits they were reckoned with, revision.
fn update(
    deployment: &Deployment,
    member: &Member,
    replicas: i32,
    revision: Option<&str>,
    limits: &Limits,
    plan: &mut Plan,
) {
    let mut changed = ReplicaSet::clone(&member.set);
    let annotations = changed.metadata.annotations.get_or_insert_default();
    if let Some(revision) = revision {
        annotations.extend(inherited(deployment));
        let before = annotations.insert(REVISION.to_owned(), revision.to_owned());
        if let Some(before) = before.filter(|b| b != revision) {
            let history = annotations.entry(HISTORY.to_owned()).or_default();
            if !history.is_empty() {
                history.push(',');
            }
            history.push_str(&before);
        }
    }
    if replicas > 0 || member.replicas > 0 {
        annotations.insert(DESIRED.to_owned(), limits.replicas.to_string());
        annotations.insert(MAXIMUM.to_owned(), limits.most().to_string());
    }
    if let Some(spec) = &mut changed.spec {
        spec.replicas = Some(replicas);
        if revision.is_some() {
            spec.min_ready_seconds = deployment.spec.as_ref().and_then(|s| s.min_ready_seconds);
        }
    }
    if changed != *member.set {
        plan.put(Object::ReplicaSet(Arc::new(changed)));
        if replicas != member.replicas {
            plan.tell(scaled(deployment, member.name(), member.replicas, replicas));
        }
    }
}

fn scaled(deployment: &Deployment, set: &str, from: i32, to: i32) -> Notice {
    let way = if to > from { "up" } else { "down" };
    let message = if from == 0 {
        format!("Scaled {way} replica set {set} to {to}")
    } else {
        format!("Scaled {way} replica set {set} from {from} to {to}")
    };
    Notice {
        about: Key::new("apps", "Deployment", Name::of(&deployment.metadata)),
        uid: object::uid(&deployment.metadata).to_owned(),
        severity: Severity::Normal,
        reason: "ScalingReplicaSet",
        message,
        component: COMPONENT,
        write: None,
    }
}

/// Deletes the oldest empty sets beyond the limit. The others are what
/// `rollout undo` goes back to.
fn forget_old(limit: i32, old: &[Member], plan: &mut Plan) {
    let mut empty: Vec<&Member> = old
        .iter()
        .filter(|m| m.replicas == 0 && m.current == 0)
        .collect();
    empty.sort_by_key(|m| m.revision());
    let excess = empty
        .len()
        .saturating_sub(usize::try_from(limit).unwrap_or(0));
    for member in empty.into_iter().take(excess) {
        plan.writes.push(Write::Delete {
            key: Key::new("apps", "ReplicaSet", Name::of(&member.set.metadata)),
            uid: object::uid(&member.set.metadata).to_owned(),
            revision: None,
            grace_seconds: None,
            foreground: false,
        });
    }
}
