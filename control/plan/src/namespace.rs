//! Namespaces: one that is being deleted goes after its contents.
//!
//! Called by [`crate::plan`].

use k8s_openapi::api::core::v1::Namespace;

use crate::action::{Plan, Write};
use crate::index::Indexes;
use crate::object::{self, Key, Name};
use crate::task::Task;
use crate::watched::Watched;
use crate::world::World;

/// Writes of one plan at most.
const BURST: usize = 500;

impl Watched for Namespace {
    fn reconcile(name: &Name) -> Option<Task> {
        Some(Task::Namespace(name.name.clone()))
    }

    fn index(&self, name: &Name, indexes: &mut Indexes) {
        if object::deleting(&self.metadata) {
            indexes.closing.insert(name.name.clone());
        }
    }

    fn unindex(&self, name: &Name, indexes: &mut Indexes) {
        indexes.closing.remove(&name.name);
    }
}

/// Deletes what is in a namespace that is being deleted, then the namespace.
pub fn plan(world: &World, name: &str) -> Plan {
    let mut plan = Plan::default();
    let Some(namespace) = world.namespaces.get(name) else {
        return plan;
    };
    if !object::deleting(&namespace.metadata) {
        return plan;
    }
    let mut empty = true;
    for key in world.in_namespace(name) {
        empty = false;
        if plan.writes.len() < BURST {
            delete(world, key, &mut plan);
        }
    }
    let finalizers = namespace.metadata.finalizers.iter().flatten();
    let held = finalizers.into_iter().next().is_some();
    if empty && !held {
        let key = Key::new("", "Namespace", Name::new("", name));
        let revision = object::revision(&namespace.metadata);
        plan.writes.push(Write::Remove { key, revision });
    }
    plan
}

/// Deletes an object at any revision: its namespace is being deleted.
fn delete(world: &World, key: &Key, plan: &mut Plan) {
    let Some(object) = world.get(key) else { return };
    if !object::deleting(object.meta()) {
        plan.writes.push(Write::Delete {
            key: key.clone(),
            uid: object::uid(object.meta()).to_owned(),
            revision: None,
            grace_seconds: None,
            foreground: false,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::for_tests::{map, told, typed, world};
    use crate::registry::Object;

    #[test]
    fn a_namespace_goes_after_its_contents() {
        let mut world = world();
        world.put(map("a", &json!({})));
        assert_eq!(plan(&world, "default"), Plan::default());
        let mut object = world.namespaces["default"].as_ref().clone();
        object.metadata.deletion_timestamp = Some(typed(json!("2026-01-01T00:00:00Z")));
        world.put(Object::Namespace(Arc::new(object)));
        assert_eq!(told(&plan(&world, "default")), ["delete a"]);
        world.remove(&Key::new("", "ConfigMap", Name::new("default", "a")));
        assert_eq!(told(&plan(&world, "default")), ["remove default"]);
    }
}
