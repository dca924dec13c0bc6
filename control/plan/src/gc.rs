//! What goes after something else went: dependents of owners that are gone, and
//! objects whose deletion nothing holds up any more.
//!
//! Called by [`crate::plan`]; contents of namespaces are `namespace.rs`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::action::{Plan, Write};
use crate::object::{self, Key};
use crate::pod::lacks_address;
use crate::registry::Object;
use crate::world::{Owner, World};

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

/// Deletes an object as it is now: owners that it gets or loses meanwhile are a
/// reason to judge it again.
fn delete(world: &World, key: &Key, foreground: bool, plan: &mut Plan) {
    let Some(object) = world.get(key) else { return };
    if !object::deleting(object.meta()) {
        plan.writes.push(Write::Delete {
            key: key.clone(),
            uid: object::uid(object.meta()).to_owned(),
            revision: Some(object.revision()),
            grace_seconds: None,
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
                foreground(world, uid, dependent, &found, plan);
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

/// A dependent of an owner that waits for it to go. It goes, unless another owner
/// keeps it, or may keep it.
fn foreground(world: &World, uid: &str, key: &Key, found: &Object, plan: &mut Plan) {
    let owners = found.meta().owner_references.iter().flatten();
    let others = owners.filter(|o| o.uid != uid);
    let others: Vec<Owner> = others
        .map(|o| world.owner(o, &key.name.namespace))
        .collect();
    if others.contains(&Owner::Unknown) {
        return;
    }
    if others.iter().any(|owner| keeps(world, owner)) {
        plan.writes.push(Write::Unhook {
            key: key.clone(),
            revision: found.revision(),
            finalizer: None,
            owners: vec![uid.to_owned()],
        });
        return;
    }
    let has_dependents = world.owned_by(object::uid(found.meta())).next().is_some();
    delete(world, key, has_dependents, plan);
}

/// True when the owner is there, and does not wait for its dependents to go.
fn keeps(world: &World, owner: &Owner) -> bool {
    let Owner::Present(key) = owner else {
        return false;
    };
    let found = world.get(key);
    found.is_some_and(|owner| {
        let meta = owner.meta();
        let mut finalizers = meta.finalizers.iter().flatten();
        !(object::deleting(meta) && finalizers.any(|f| f == FOREGROUND))
    })
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

/// A pod on a node goes when the node says so, or when that is not waited for.
fn may_go(world: &World, object: &Object) -> bool {
    let Object::Pod(pod) = object else {
        return true;
    };
    match object::pod_node(pod) {
        None => true,
        Some(node) => {
            let is_forced = pod.metadata.deletion_grace_period_seconds == Some(0);
            // Without an address it was never sent to its node, which then says nothing.
            is_forced || lacks_address(pod) || !world.may_have_node(node)
        }
    }
}

/// An object that has owners: deleted when all are known to be gone; the
/// references to those that are gone are taken off when another one is there.
/// With an owner of which nothing is known it stays as it is.
fn by_owners(world: &World, key: &Key, meta: &ObjectMeta, plan: &mut Plan) {
    let owners: Vec<_> = meta.owner_references.iter().flatten().collect();
    if owners.is_empty() {
        return;
    }
    let namespace = key.name.namespace.as_str();
    let mut gone = Vec::new();
    for owner in &owners {
        match world.owner(owner, namespace) {
            Owner::Present(_) => {}
            Owner::Absent => gone.push(owner.uid.clone()),
            Owner::Unknown => return,
        }
    }
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
    use crate::claim::{Claim, ClaimKey};
    use crate::for_tests::{map, node, pod, put_node, put_pod, running, told, typed, world};
    use crate::object::Name;
    use crate::task::Task;

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

    /// An owner that is not in the world: of which kind, and what is unreadable.
    #[test]
    fn only_what_is_orphaned_for_sure_is_deleted() {
        let owner = |api_version: &str, kind: &str| json!([{"apiVersion": api_version, "kind": kind, "name": "b", "uid": "b"}]);
        let unreadable = |kind: &str, namespace: &str, name: &str| {
            Some(Key::new("", kind, Name::new(namespace, name)))
        };
        // (owner, what cannot be read, its uid, deleted)
        let rows = [
            (owner("v1", "ConfigMap"), None, None, true),
            (owner("apps/v1", "Deployment"), None, None, true),
            (owner("example.org/v1", "Widget"), None, None, false),
            (owner("v2", "ConfigMap"), None, None, false),
            (owner("v1", "Node"), None, None, true),
            (
                owner("v1", "ConfigMap"),
                unreadable("ConfigMap", "default", "b"),
                Some("other"),
                false,
            ),
            (
                owner("v1", "ConfigMap"),
                unreadable("ConfigMap", "default", "c"),
                Some("c"),
                true,
            ),
            (
                owner("v1", "ConfigMap"),
                unreadable("ConfigMap", "default", "c"),
                None,
                false,
            ),
            (
                owner("v1", "ConfigMap"),
                unreadable("Secret", "default", "x"),
                Some("b"),
                false,
            ),
            (
                owner("v1", "ConfigMap"),
                unreadable("ConfigMap", "other", "b"),
                Some("x"),
                true,
            ),
        ];
        let key = Key::new("", "ConfigMap", Name::new("default", "a"));
        for (owners, hidden, uid, deleted) in rows {
            let mut world = world();
            world.put(map("a", &json!({"ownerReferences": owners})));
            world.take_due();
            if let Some(hidden) = hidden.clone() {
                world.mark_unreadable(hidden, uid.map(str::to_owned));
            }
            let expected: &[&str] = if deleted { &["delete a"] } else { &[] };
            let case = format!("{owners} {hidden:?} {uid:?}");
            assert_eq!(told(&collect(&world, &key)), expected, "{case}");
            if let Some(hidden) = hidden {
                // It goes, and what was kept for its sake is judged again.
                world.remove(&hidden);
                assert!(
                    world.take_due().contains(&Task::Collect(key.clone())),
                    "{case}"
                );
                assert_eq!(told(&collect(&world, &key)), ["delete a"], "{case}");
            }
        }
    }

    /// Who reads everything again may find another object of the same name.
    #[test]
    fn an_owner_that_was_replaced_unseen_is_gone() {
        let mut world = world();
        world.put(map("a", &json!({})));
        world.put(map("b", &json!({"ownerReferences": [owner("a", true)]})));
        let address = ClaimKey::PodAddress("10.244.1.2".parse().unwrap());
        let holder = "a".to_owned();
        world.put_claim(
            address,
            Some(Claim {
                owner: holder,
                revision: 1,
            }),
        );
        world.take_due();
        world.put(map("a", &json!({"uid": "another"})));
        let key = Key::new("", "ConfigMap", Name::new("default", "b"));
        let due = world.take_due();
        assert!(due.contains(&Task::Collect(key.clone())) && due.contains(&Task::Addresses));
        assert_eq!(told(&collect(&world, &key)), ["delete b"]);
        assert_eq!(crate::ipam::release(&world).writes.len(), 1);
    }

    /// It may get or lose an owner between the plan and its write.
    #[test]
    fn only_the_revision_that_was_judged_is_deleted() {
        let mut world = world();
        let owners = json!({"ownerReferences": [owner("b", true)], "resourceVersion": "7"});
        world.put(map("a", &owners));
        let key = Key::new("", "ConfigMap", Name::new("default", "a"));
        let plan = collect(&world, &key);
        let [Write::Delete { revision, .. }] = plan.writes.as_slice() else {
            panic!("{plan:?}");
        };
        assert_eq!(*revision, Some(7));
    }

    #[test]
    fn a_dependent_with_another_owner_outlives_a_foreground_deletion() {
        let gone = json!("2026-01-01T00:00:00Z");
        let going = json!({"deletionTimestamp": gone, "finalizers": [FOREGROUND]});
        let unknown = json!({"apiVersion": "example.org/v1", "kind": "Widget", "name": "w",
            "uid": "w", "blockOwnerDeletion": true});
        // (second owner, what the second owner is, what is done)
        let rows: [(Value, Value, &[&str]); 4] = [
            (owner("c", true), json!({}), &["unhook b"]),
            (owner("c", true), going.clone(), &["delete b"]),
            (owner("absent", true), json!({}), &["delete b"]),
            (unknown, json!({}), &[]),
        ];
        for (second, third, expected) in rows {
            let mut world = world();
            world.put(map("a", &going));
            let owners = json!({"ownerReferences": [owner("a", true), second]});
            world.put(map("b", &owners));
            world.put(map("c", &third));
            let key = Key::new("", "ConfigMap", Name::new("default", "a"));
            assert_eq!(told(&collect(&world, &key)), expected, "{second} {third}");
        }
    }

    #[test]
    fn what_cannot_be_read_keeps_its_claims_and_its_namespace() {
        let pod = Key::new("", "Pod", Name::new("default", "hidden"));
        for (uid, released) in [(Some("u"), false), (None, false), (Some("x"), true)] {
            let mut world = world();
            world.mark_unreadable(pod.clone(), uid.map(str::to_owned));
            let address = ClaimKey::PodAddress("10.244.1.2".parse().unwrap());
            let owner = "u".to_owned();
            world.put_claim(address, Some(Claim { owner, revision: 1 }));
            let writes = crate::ipam::release(&world).writes;
            assert_eq!(writes.len(), usize::from(released), "{uid:?}");
            let mut namespace = world.namespaces["default"].as_ref().clone();
            namespace.metadata.deletion_timestamp = Some(typed(json!("2026-01-01T00:00:00Z")));
            world.put(Object::Namespace(std::sync::Arc::new(namespace)));
            let plan = || crate::namespace::plan(&world, "default");
            assert_eq!(told(&plan()), [""; 0]);
        }
    }

    #[test]
    fn a_pod_on_a_node_goes_when_the_node_says_so() {
        let key = Key::new("", "Pod", Name::new("default", "p"));
        // (grace, node is there, it was sent to it, removed)
        for (grace, there, sent, removed) in [
            (30, true, true, false),
            (0, true, true, true),
            (30, false, true, true),
            (30, true, false, true),
        ] {
            let mut world = world();
            if there {
                put_node(&mut world, node("n1", 1));
            }
            let mut pod = running(pod("p", "0", ""), "n1", "10.244.1.2", true);
            pod.metadata.deletion_timestamp = Some(typed(json!("2026-01-01T00:00:00Z")));
            pod.metadata.deletion_grace_period_seconds = Some(grace);
            if !sent {
                pod.status = None;
            }
            put_pod(&mut world, pod);
            assert_eq!(
                collect(&world, &key).writes.len(),
                usize::from(removed),
                "{grace} {there} {sent}"
            );
        }
    }
}
