//! What goes after something else went: dependents of owners that are gone, and
//! objects whose deletion nothing holds up any more.
//!
//! Called by [`crate::plan`]; contents of namespaces are `namespace.rs`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::action::{Plan, Write};
use crate::object::{self, Key};
use crate::registry::Object;
use crate::world::World;

/// Finalizer of an object that stays until its dependents are gone.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object whose dependents are to be let go first.
pub const ORPHAN: &str = "orphan";
/// Writes of one plan at most.
const BURST: usize = 500;

/// Judges one object: by its own deletion, or by its owners'.
pub fn collect(world: &World, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(object) = world.get(key) else {
        return plan;
    };
    if object::deleting(object.meta()) {
        finish(world, key, &object, &mut plan);
    } else {
        by_owners(world, key, object.meta(), &mut plan);
    }
    plan
}

pub(crate) fn delete(world: &World, key: &Key, foreground: bool, plan: &mut Plan) {
    let Some(object) = world.get(key) else { return };
    if !object::deleting(object.meta()) {
        let grace_seconds = None;
        let uid = object::uid(object.meta()).to_owned();
        plan.writes.push(Write::Delete {
            key: key.clone(),
            uid,
            grace_seconds,
            foreground,
        });
    }
}

/// An object that is being deleted.
fn finish(world: &World, key: &Key, object: &Object, plan: &mut Plan) {
    let meta = object.meta();
    let has = |name: &str| meta.finalizers.iter().flatten().any(|f| f == name);
    let uid = object::uid(meta);
    if has(ORPHAN) {
        let mut any = false;
        for dependent in world.owned_by(uid).take(BURST) {
            any = true;
            let revision = world.get(dependent).map_or(0, |o| o.revision());
            plan.writes.push(Write::Unhook {
                key: dependent.clone(),
                revision,
                finalizer: None,
                owners: vec![uid.to_owned()],
            });
        }
        if !any {
            plan.writes.push(unhook(key, object.revision(), ORPHAN));
        }
        return;
    }
    if has(FOREGROUND) {
        let mut blocked = false;
        for dependent in world.owned_by(uid) {
            let Some(found) = world.get(dependent) else {
                continue;
            };
            let references = found.meta().owner_references.iter().flatten();
            let mut blocking = references.filter(|o| o.uid == uid);
            blocked |= blocking.any(|o| o.block_owner_deletion == Some(true));
            if plan.writes.len() < BURST {
                let has_dependents = world.owned_by(object::uid(found.meta())).next().is_some();
                delete(world, dependent, has_dependents, plan);
            }
        }
        if !blocked {
            plan.writes.push(unhook(key, object.revision(), FOREGROUND));
        }
        return;
    }
    let held = meta.finalizers.iter().flatten().next().is_some();
    if held || matches!(object, Object::Namespace(_)) || !may_go(world, object) {
        return;
    }
    plan.writes.push(Write::Remove {
        key: key.clone(),
        revision: object.revision(),
    });
}

fn unhook(key: &Key, revision: u64, finalizer: &str) -> Write {
    let finalizer = Some(finalizer.to_owned());
    Write::Unhook {
        key: key.clone(),
        revision,
        finalizer,
        owners: Vec::new(),
    }
}

/// A pod on a node goes when the node says so, or when nobody waits for that.
fn may_go(world: &World, object: &Object) -> bool {
    let Object::Pod(pod) = object else {
        return true;
    };
    match object::pod_node(pod) {
        None => true,
        Some(node) => {
            pod.metadata.deletion_grace_period_seconds == Some(0) || !world.nodes.contains_key(node)
        }
    }
}

/// An object that has owners: deleted when all are gone; else the references to
/// those that are gone are taken off.
fn by_owners(world: &World, key: &Key, meta: &ObjectMeta, plan: &mut Plan) {
    let owners: Vec<_> = meta.owner_references.iter().flatten().collect();
    if owners.is_empty() {
        return;
    }
    let gone: Vec<String> = owners
        .iter()
        .filter(|o| !world.has_uid(&o.uid))
        .map(|o| o.uid.clone())
        .collect();
    if gone.len() == owners.len() {
        delete(world, key, false, plan);
    } else if !gone.is_empty() {
        let revision = object::revision(meta);
        let key = key.clone();
        plan.writes.push(Write::Unhook {
            key,
            revision,
            finalizer: None,
            owners: gone,
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::for_tests::{map, node, pod, put_node, put_pod, running, told, typed, world};
    use crate::object::Name;

    fn owner(uid: &str, blocks: bool) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "name": uid, "uid": uid,
            "blockOwnerDeletion": blocks})
    }

    #[test]
    fn what_is_collected() {
        let gone = json!("2026-01-01T00:00:00Z");
        // (the object, another one, what is to be done about the first)
        let rows: [(Value, Option<Value>, &[&str]); 10] = [
            (json!({}), None, &[]),
            (
                json!({"ownerReferences": [owner("b", true)]}),
                Some(json!({})),
                &[],
            ),
            (
                json!({"ownerReferences": [owner("b", true)]}),
                None,
                &["delete a"],
            ),
            (
                json!({"ownerReferences": [owner("b", true), owner("c", true)]}),
                Some(json!({})),
                &["unhook a"],
            ),
            (json!({"deletionTimestamp": gone}), None, &["remove a"]),
            (
                json!({"deletionTimestamp": gone, "finalizers": ["x/y"]}),
                None,
                &[],
            ),
            (
                json!({"deletionTimestamp": gone, "finalizers": [FOREGROUND]}),
                None,
                &["unhook a"],
            ),
            (
                json!({"deletionTimestamp": gone, "finalizers": [FOREGROUND]}),
                Some(json!({"ownerReferences": [owner("a", true)]})),
                &["delete b"],
            ),
            (
                json!({"deletionTimestamp": gone, "finalizers": [FOREGROUND]}),
                Some(json!({"ownerReferences": [owner("a", false)]})),
                &["delete b", "unhook a"],
            ),
            (
                json!({"deletionTimestamp": gone, "finalizers": [ORPHAN]}),
                Some(json!({"ownerReferences": [owner("a", true)]})),
                &["unhook b"],
            ),
        ];
        for (first, other, expected) in rows {
            let mut world = world();
            world.put(map("a", &first));
            if let Some(other) = &other {
                world.put(map("b", other));
            }
            let key = Key::new("", "ConfigMap", Name::new("default", "a"));
            assert_eq!(told(&collect(&world, &key)), expected, "{first} {other:?}");
        }
    }

    #[test]
    fn a_pod_on_a_node_goes_when_the_node_says_so() {
        let key = Key::new("", "Pod", Name::new("default", "p"));
        // (grace, node is there, removed)
        for (grace, there, removed) in [(30, true, false), (0, true, true), (30, false, true)] {
            let mut world = world();
            if there {
                put_node(&mut world, node("n1", 1));
            }
            let mut pod = running(pod("p", "0", ""), "n1", "10.244.1.2", true);
            pod.metadata.deletion_timestamp = Some(typed(json!("2026-01-01T00:00:00Z")));
            pod.metadata.deletion_grace_period_seconds = Some(grace);
            put_pod(&mut world, pod);
            assert_eq!(
                collect(&world, &key).writes.len(),
                usize::from(removed),
                "{grace} {there}"
            );
        }
    }
}
