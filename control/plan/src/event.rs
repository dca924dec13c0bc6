//! Events: kept for as long as the settings say, then removed.
//!
//! control-server makes them. Called by [`crate::plan`].

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;

use crate::action::{Plan, Write};
use crate::index::Indexes;
use crate::object::{self, Key, Name};
use crate::task::Task;
use crate::time::after;
use crate::watched::Watched;
use crate::world::World;

/// Writes of one plan at most.
const BURST: usize = 500;

impl Watched for Event {
    fn reconcile(_name: &Name) -> Option<Task> {
        Some(Task::Events)
    }

    fn index(&self, name: &Name, indexes: &mut Indexes) {
        indexes.events_by_time.insert((time(self), name.clone()));
    }

    fn unindex(&self, name: &Name, indexes: &mut Indexes) {
        indexes.events_by_time.remove(&(time(self), name.clone()));
    }
}

/// When the event happened last.
fn time(event: &Event) -> Timestamp {
    let last = event.last_timestamp.as_ref().map(|t| t.0);
    let last = last.or_else(|| event.event_time.as_ref().map(|t| t.0));
    let created = || event.metadata.creation_timestamp.as_ref().map(|t| t.0);
    last.or_else(created).unwrap_or(Timestamp::MIN)
}

/// Removes events that are older than events are kept.
pub fn plan(world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    for (time, name) in &world.indexes.events_by_time {
        let end = after(*time, world.settings.event_seconds);
        if end > now || plan.writes.len() == BURST {
            plan.again(end.max(now));
            break;
        }
        let Some(event) = world.events.get(name) else {
            continue;
        };
        let key = Key::new("", "Event", name.clone());
        let revision = object::revision(&event.metadata);
        plan.writes.push(Write::Remove { key, revision });
    }
    plan
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::for_tests::{meta, now, typed, world};
    use crate::registry::Object;

    #[test]
    fn old_events_go() {
        let mut world = world();
        for (name, age) in [("old", 4000), ("young", 100)] {
            let time = after(now(), -age).to_string();
            world.put(Object::Event(Arc::new(typed(json!({
                "metadata": meta(name, &[]), "involvedObject": {}, "lastTimestamp": time,
            })))));
        }
        let plan = plan(&world, now());
        let [Write::Remove { key, .. }] = plan.writes.as_slice() else {
            panic!("{plan:?}");
        };
        assert_eq!(key.name.name, "old");
        assert_eq!(plan.again_at, Some(after(now(), 3500)));
    }
}
