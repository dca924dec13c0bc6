//! A replica set as its Deployment sees it.
//!
//! Made by `deployment.rs`; read by `rollout.rs` and `progress.rs`.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;

use crate::object;
use crate::world::World;

/// Which rollout a replica set belongs to; `rollout undo` reads it.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// The Deployment's replicas when the set was last scaled.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// The same with the surge.
pub const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";

/// A replica set as this plan sees it: as it is, and how many it is to have.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) set: Arc<ReplicaSet>,
    /// `spec.replicas` now.
    pub(crate) replicas: i32,
    /// Pods that are available, by its status.
    pub(crate) available: i32,
    /// Pods, by its status.
    pub(crate) current: i32,
    /// Pods that have not come to their end, terminating ones included.
    pub(crate) pods: usize,
    /// Its controller has seen `replicas`, and makes no pod for an earlier count.
    pub(crate) settled: bool,
}

impl Member {
    pub(crate) fn of(world: &World, set: &Arc<ReplicaSet>) -> Self {
        let pods = (world.owned_by(object::uid(&set.metadata)))
            .filter_map(|k| world.pods.get(&k.name))
            .filter(|p| !object::pod_finished(p))
            .count();
        let status = set.status.as_ref();
        Self {
            set: set.clone(),
            replicas: set
                .spec
                .as_ref()
                .and_then(|s| s.replicas)
                .unwrap_or_default(),
            available: status.and_then(|s| s.available_replicas).unwrap_or(0),
            current: status.map_or(0, |s| s.replicas),
            pods,
            settled: status.and_then(|s| s.observed_generation) == set.metadata.generation,
        }
    }

    /// True when the set has no pods, and makes none.
    pub(crate) fn is_gone(&self) -> bool {
        self.replicas == 0 && self.pods == 0 && self.settled
    }

    pub(crate) fn name(&self) -> &str {
        self.set.metadata.name.as_deref().unwrap_or("")
    }

    /// Number of the rollout that the set belongs to; 0: none.
    pub(crate) fn revision(&self) -> i64 {
        object::annotation(&self.set.metadata, REVISION)
            .and_then(|r| r.parse().ok())
            .unwrap_or(0)
    }
}
