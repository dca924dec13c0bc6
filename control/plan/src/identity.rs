//! Identities: one number per distinct (namespace, labels), which nodes match
//! policies by. A number is a claim; a pod bears its number as an annotation.
//!
//! Called by the scheduler when a pod is bound, and when its labels change.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::action::{Plan, Write};
use crate::claim::{ClaimKey, ClaimWrite};
use crate::object::{self, Name};
use crate::registry::Object;
use crate::world::World;

/// Annotation with the number.
pub const ANNOTATION: &str = "hydrofoil.dev/identity";
/// Numbers below are reserved: unknown, host, world, and those for nodes.
const FIRST: u32 = 256;

/// Namespace and labels in one form, independent of their order.
pub fn canonical(pod: &Pod) -> String {
    let labels = pod.metadata.labels.iter().flatten();
    let labels: Vec<String> = labels.map(|(k, v)| format!("{k}={v}")).collect();
    format!(
        "{};{}",
        pod.metadata.namespace.as_deref().unwrap_or(""),
        labels.join(",")
    )
}

/// The number that the pod bears, 0 if none.
pub fn of(pod: &Pod) -> u32 {
    object::annotation(&pod.metadata, ANNOTATION)
        .and_then(|id| id.parse().ok())
        .unwrap_or(0)
}

/// Gives out numbers within one plan.
pub(crate) struct Numbers<'a> {
    world: &'a World,
    /// Made in this plan, by their owner.
    fresh: HashMap<String, u32>,
    next: u32,
}

impl<'a> Numbers<'a> {
    pub(crate) fn of(world: &'a World) -> Self {
        let last = world.claims().last_identity();
        Self {
            world,
            fresh: HashMap::new(),
            next: last.map_or(FIRST, |n| n.saturating_add(1)).max(FIRST),
        }
    }

    /// The number for this pod, and the claim if its labels are new.
    pub(crate) fn of_pod(&mut self, pod: &Pod) -> (u32, Option<ClaimWrite>) {
        let owner = canonical(pod);
        let known = self.world.indexes.identities.get(&owner);
        if let Some(number) = known.or_else(|| self.fresh.get(&owner)) {
            return (*number, None);
        }
        let number = self.next;
        self.next = number.saturating_add(1);
        self.fresh.insert(owner.clone(), number);
        let claim = ClaimWrite {
            key: ClaimKey::Identity(number),
            revision: 0,
            owner,
        };
        (number, Some(claim))
    }
}

/// Releases the numbers that no pod has. The highest stays, so that the next one
/// is above all that ever were: a node may still know an old one.
pub(crate) fn unused(world: &World) -> impl Iterator<Item = ClaimWrite> + '_ {
    let highest = world.claims().last_identity();
    // A pod that cannot be read has a number, too.
    let certain = world.indexes.unreadable.is_empty();
    let numbers = world.indexes.idle_identities.iter().copied();
    numbers
        .filter(move |_| certain)
        .filter(move |number| Some(*number) != highest)
        .filter_map(|number| {
            let key = ClaimKey::Identity(number);
            let claim = world.claims().get(&key)?;
            Some(ClaimWrite {
                key,
                revision: claim.revision,
                owner: String::new(),
            })
        })
}

/// Gives a bound pod whose labels changed the number of its new labels.
pub fn plan(world: &World, name: &Name) -> Plan {
    let mut plan = Plan::default();
    let Some(pod) = world.pods.get(name) else {
        return plan;
    };
    if object::pod_node(pod).is_none() || object::pod_finished(pod) {
        return plan;
    }
    let (number, claim) = Numbers::of(world).of_pod(pod);
    if of(pod) != number {
        let mut changed = Pod::clone(pod);
        let annotations = changed.metadata.annotations.get_or_insert_default();
        annotations.insert(ANNOTATION.to_owned(), number.to_string());
        let object = Object::Pod(Arc::new(changed));
        plan.writes.push(Write::Put {
            object,
            claims: claim.into_iter().collect(),
        });
    }
    plan
}
