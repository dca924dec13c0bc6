//! Condition ReplicaFailure: the pods of a replica set could not be made or deleted.
//!
//! As in Kubernetes (pkg/controller/replicaset). That a write was refused is known to
//! the server, which tells the world; the set's plan shows it, and `progress.rs` copies
//! it to the Deployment.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::action::{Notice, Severity};
use crate::index::ReplicaFailure;
use crate::object::{self, Key, Name};

/// Type of the condition of a set, and of its Deployment, whose pods are refused.
pub(crate) const REPLICA_FAILURE: &str = "ReplicaFailure";

/// Sets condition ReplicaFailure while the set has another number of pods than it is
/// to have, from the first refusal on.
pub(crate) fn show(
    status: &mut ReplicaSetStatus,
    failure: Option<&ReplicaFailure>,
    differs: bool,
    now: Timestamp,
) {
    let mut conditions = status.conditions.take().unwrap_or_default();
    let known = conditions.iter().find(|c| c.type_ == REPLICA_FAILURE);
    let same = |f: &ReplicaFailure| known.is_some_and(|c| c.reason.as_deref() == Some(f.reason));
    let news = failure.filter(|f| differs && !same(f));
    if !differs || news.is_some() {
        conditions.retain(|c| c.type_ != REPLICA_FAILURE);
    }
    conditions.extend(news.map(|failure| ReplicaSetCondition {
        type_: REPLICA_FAILURE.to_owned(),
        status: "True".to_owned(),
        reason: Some(failure.reason.to_owned()),
        message: Some(failure.message.clone()),
        last_transition_time: Some(Time(now)),
    }));
    status.conditions = Some(conditions).filter(|c| !c.is_empty());
}

/// What condition ReplicaFailure of a set says; `None`: it has none.
pub(crate) fn of(set: &ReplicaSet) -> Option<&ReplicaSetCondition> {
    let conditions = set.status.as_ref()?.conditions.iter().flatten();
    let mut failures = conditions.filter(|c| c.type_ == REPLICA_FAILURE);
    failures.next()
}

/// A refusal as it is remembered until the set's status says it.
pub(crate) fn remembered(deleted: bool, message: &str) -> ReplicaFailure {
    ReplicaFailure {
        reason: if deleted {
            "FailedDelete"
        } else {
            "FailedCreate"
        },
        message: message.to_owned(),
    }
}

/// A refusal as it is told.
pub(crate) fn told(set: &ReplicaSet, deleted: bool, message: &str) -> Notice {
    let doing = if deleted { "deleting" } else { "creating" };
    Notice {
        about: Key::new("apps", "ReplicaSet", Name::of(&set.metadata)),
        uid: object::uid(&set.metadata).to_owned(),
        severity: Severity::Warning,
        reason: remembered(deleted, message).reason,
        message: format!("Error {doing}: {message}"),
        component: "replicaset-controller",
        write: None,
    }
}
