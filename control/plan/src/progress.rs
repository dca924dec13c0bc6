//! What a Deployment's status says: counts, and the conditions Available, Progressing
//! and ReplicaFailure, with the reasons that `rollout status` reads.
//!
//! Called by `deployment.rs` with each plan.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::action::Plan;
use crate::member::{Member, REVISION};
use crate::refused::{self, REPLICA_FAILURE};
use crate::registry::Object;
use crate::rollout::{self, Limits};
use crate::time::after;

/// What the plan decided and the status shows.
pub(crate) struct Shown {
    /// The collision count, when it changes.
    pub(crate) collision: Option<i32>,
    /// The revision that the Deployment is at.
    pub(crate) revision: Option<String>,
}

/// Writes status and revision, if they differ. `shown` is absent while the
/// Deployment is being deleted: then only the counts are kept up.
pub(crate) fn write_status(
    deployment: &Arc<Deployment>,
    new: Option<&Member>,
    old: &[Member],
    shown: Option<Shown>,
    now: Timestamp,
    plan: &mut Plan,
) {
    let Some(spec) = &deployment.spec else { return };
    let limits = Limits::of(spec);
    let before = deployment.status.clone().unwrap_or_default();
    let mut status = counts(deployment, new, old);
    status.collision_count = before.collision_count;
    status.conditions.clone_from(&before.conditions);
    let mut changed = Deployment::clone(deployment);
    if let Some(shown) = shown {
        if shown.collision.is_some() {
            status.collision_count = shown.collision;
        }
        if let Some(revision) = shown.revision {
            let annotations = changed.metadata.annotations.get_or_insert_default();
            annotations.insert(REVISION.to_owned(), revision);
        }
        let enough = available(&limits, &status);
        set(&mut status, enough, now);
        if let Some(next) = progressing(deployment, &limits, new, old, &status, now, plan) {
            set(&mut status, next, now);
        }
        show_failure(&mut status, new, old, now);
    }
    changed.status = Some(status);
    if changed != **deployment {
        plan.put(Object::Deployment(Arc::new(changed)));
    }
}

fn counts(deployment: &Deployment, new: Option<&Member>, old: &[Member]) -> DeploymentStatus {
    let all: Vec<&Member> = new.into_iter().chain(old).collect();
    let ready = |m: &&Member| {
        m.set
            .status
            .as_ref()
            .and_then(|s| s.ready_replicas)
            .unwrap_or(0)
    };
    let replicas: i32 = all.iter().map(|m| m.current).sum();
    let wanted: i32 = all.iter().map(|m| m.replicas).sum();
    let available: i32 = all.iter().map(|m| m.available).sum();
    let positive = |n: i32| Some(n).filter(|n| *n > 0);
    DeploymentStatus {
        replicas: positive(replicas),
        updated_replicas: positive(new.map_or(0, |m| m.current)),
        ready_replicas: positive(all.iter().map(ready).sum()),
        available_replicas: positive(available),
        unavailable_replicas: positive(wanted - available),
        observed_generation: deployment.metadata.generation,
        ..DeploymentStatus::default()
    }
}

/// Type, status, reason and message of a condition.
struct Said {
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
    /// Sets the update time also when nothing else differs.
    moved: bool,
}

fn available(limits: &Limits, status: &DeploymentStatus) -> Said {
    let enough = status.available_replicas.unwrap_or(0) >= limits.least();
    let (status, reason, message) = if enough {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    Said {
        kind: "Available",
        status,
        reason,
        message: message.to_owned(),
        moved: false,
    }
}

fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

fn progressing(
    deployment: &Deployment,
    limits: &Limits,
    new: Option<&Member>,
    old: &[Member],
    status: &DeploymentStatus,
    now: Timestamp,
    plan: &mut Plan,
) -> Option<Said> {
    let spec = deployment.spec.as_ref()?;
    let said = |status, reason, message: String, moved| {
        Some(Said {
            kind: "Progressing",
            status,
            reason,
            message,
            moved,
        })
    };
    let current = condition(status, "Progressing");
    let reason = current.and_then(|c| c.reason.as_deref()).unwrap_or("");
    if spec.paused == Some(true) {
        return said(
            "Unknown",
            "DeploymentPaused",
            "Deployment is paused".to_owned(),
            false,
        );
    }
    if reason == "DeploymentPaused" {
        return said(
            "Unknown",
            "DeploymentResumed",
            "Deployment is resumed".to_owned(),
            true,
        );
    }
    let deployment_name = deployment.metadata.name.as_deref().unwrap_or("");
    let Some(new) = new else {
        // The set is being made with this plan; its name shows with the next.
        let message = format!("Creating a new replica set for {deployment_name:?}");
        return said("True", "NewReplicaSetCreated", message, false);
    };
    let name = new.name();
    if rollout::complete(limits, new, old) {
        let message = format!("ReplicaSet {name:?} has successfully progressed.");
        return said("True", "NewReplicaSetAvailable", message, false);
    }
    let before = deployment.status.clone().unwrap_or_default();
    let left = |s: &DeploymentStatus| s.replicas.unwrap_or(0) - s.updated_replicas.unwrap_or(0);
    let moved = status.updated_replicas > before.updated_replicas
        || left(status) < left(&before)
        || status.ready_replicas > before.ready_replicas
        || status.available_replicas > before.available_replicas;
    // A finished rollout stays finished when a pod of it fails; it is only
    // undone by pods of another template.
    let finished = reason == "NewReplicaSetAvailable";
    let rolling = status.replicas != status.updated_replicas
        || before.observed_generation != deployment.metadata.generation;
    if current.is_none() || (finished && rolling) || (moved && !finished) {
        let message = format!("ReplicaSet {name:?} is progressing.");
        return said("True", "ReplicaSetUpdated", message, true);
    }
    if finished {
        return None;
    }
    let since = current
        .and_then(|c| c.last_update_time.as_ref())
        .map_or(now, |t| t.0);
    let deadline = after(
        since,
        i64::from(spec.progress_deadline_seconds.unwrap_or_default()),
    );
    if now >= deadline {
        let message = format!("ReplicaSet {name:?} has timed out progressing.");
        return said("False", "ProgressDeadlineExceeded", message, false);
    }
    plan.again(deadline);
    None
}

/// Copies condition ReplicaFailure of the new set, else of an old one.
fn show_failure(
    status: &mut DeploymentStatus,
    new: Option<&Member>,
    old: &[Member],
    now: Timestamp,
) {
    let mut sets = new.into_iter().chain(old);
    let failure = sets.find_map(|m| refused::of(&m.set));
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter().find(|c| c.type_ == REPLICA_FAILURE);
    if known.map(|c| &c.reason) == failure.map(|f| &f.reason) {
        return;
    }
    conditions.retain(|c| c.type_ != REPLICA_FAILURE);
    conditions.extend(failure.map(|failure| DeploymentCondition {
        type_: REPLICA_FAILURE.to_owned(),
        status: failure.status.clone(),
        reason: failure.reason.clone(),
        message: failure.message.clone(),
        last_update_time: Some(Time(now)),
        last_transition_time: failure.last_transition_time.clone(),
    }));
}

fn set(status: &mut DeploymentStatus, said: Said, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter_mut().find(|c| c.type_ == said.kind);
    let same_status = old.as_ref().is_some_and(|c| c.status == said.status);
    let since = old
        .as_ref()
        .filter(|_| same_status)
        .and_then(|c| c.last_transition_time.clone());
    let next = DeploymentCondition {
        type_: said.kind.to_owned(),
        status: said.status.to_owned(),
        reason: Some(said.reason.to_owned()),
        message: Some(said.message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(since.unwrap_or(Time(now))),
    };
    match old {
        Some(old) => {
            let same = same_status && old.reason == next.reason && old.message == next.message;
            if !same || said.moved {
                *old = next;
            }
        }
        None => conditions.push(next),
    }
}
