//! Which lost nodes their pods are driven off, and when.
//!
//! As in Kubernetes (pkg/controller/nodelifecycle, handleDisruption): one node of
//! a zone after the other; more slowly, or not at all, while most of the zone is
//! lost; and none while no node of the cluster is ready, as it is then more likely
//! that the control plane was cut off. Called by [`crate::plan`].

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::action::Plan;
use crate::index::Health;
use crate::object;
use crate::readiness::evicting_key;
use crate::registry::Object;
use crate::taint;
use crate::time::after;
use crate::world::World;

/// Seconds between two nodes of a zone (--node-eviction-rate, 0.1 a second).
const PACE: i64 = 10;
/// The same while most of a large zone is lost (--secondary-node-eviction-rate).
const SLOW_PACE: i64 = 100;
/// Nodes above which a zone is large (--large-cluster-size-threshold).
const LARGE: u32 = 50;
/// Percent of nodes from which on a zone is disrupted (--unhealthy-zone-threshold).
const DISRUPTED_PERCENT: u32 = 55;

/// Seconds between two nodes of a zone; `None`: none is to go.
fn pace(health: Health) -> Option<i64> {
    let all = health.ready + health.lost;
    let disrupted = health.lost > 2 && health.lost * 100 >= all * DISRUPTED_PERCENT;
    if health.ready == 0 || !disrupted {
        // A zone that is lost as a whole, while others are well, is really lost.
        Some(PACE)
    } else if all > LARGE {
        Some(SLOW_PACE)
    } else {
        None
    }
}

/// Gives the next node of each zone the taint that drives its pods off.
pub fn plan(world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let named = |names: &BTreeSet<String>| -> Vec<&Arc<Node>> {
        let nodes = names.iter().filter_map(|name| world.nodes.get(name));
        nodes
            .filter(|node| !object::deleting(&node.metadata))
            .collect()
    };
    for (zone, names) in &world.indexes.troubled {
        let nodes = named(names);
        if world.indexes.all_lost() {
            let tainted = nodes.into_iter().filter(|n| taint::evicting(n).is_some());
            tainted.for_each(|node| put(node, None, &mut plan));
        } else {
            let health = world.indexes.zones.get(zone).copied().unwrap_or_default();
            next(world, health, &nodes, now, &mut plan);
        }
    }
    plan
}

fn next(world: &World, health: Health, nodes: &[&Arc<Node>], now: Timestamp, plan: &mut Plan) {
    let mut last: Option<Timestamp> = None;
    let mut waiting = Vec::new();
    for node in nodes {
        let Some(key) = evicting_key(node) else {
            continue;
        };
        let Some(has) = taint::evicting(node) else {
            waiting.push((since(node), *node, key));
            continue;
        };
        let added = has.time_added.as_ref().map(|t| t.0);
        last = last.max(added);
        if has.key != key {
            // Lost in another way than before: its pods have waited already.
            put(node, Some((key, added.unwrap_or(now))), plan);
        }
    }
    waiting.sort_by_key(|(since, node, _)| (*since, node.metadata.name.clone()));
    let Some((_, node, key)) = waiting.first() else {
        return;
    };
    let Some(pace) = pace(health) else { return };
    let turn = last.map_or(now, |last| after(last, pace));
    let turn = turn.max(world.lost_since());
    if turn > now {
        return plan.again(turn);
    }
    put(node, Some((*key, now)), plan);
    if waiting.len() > 1 {
        plan.again(after(now, pace));
    }
}

/// Since when the node is not ready.
fn since(node: &Node) -> Timestamp {
    let conditions = node
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    let mut ready = conditions.filter(|c| c.type_ == "Ready");
    let changed = ready.next().and_then(|c| c.last_transition_time.as_ref());
    changed.map_or(Timestamp::MIN, |t| t.0)
}

/// Writes the node with this taint, added then, in place of the one that it has.
fn put(node: &Arc<Node>, taint: Option<(&str, Timestamp)>, plan: &mut Plan) {
    let mut changed = Node::clone(node);
    let spec = changed.spec.get_or_insert_default();
    let mut taints = spec.taints.take().unwrap_or_default();
    taints.retain(|t| !taint::evicts_from_lost(t));
    taints.extend(taint.map(|(key, added)| Taint {
        key: key.to_owned(),
        effect: "NoExecute".to_owned(),
        time_added: Some(Time(added)),
        value: None,
    }));
    spec.taints = Some(taints).filter(|t| !t.is_empty());
    plan.put(Object::Node(Arc::new(changed)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::for_tests::{node as node_of, now, put_node, world};
    use crate::readiness::unheard;

    fn put_all(world: &mut World, plan: &Plan) {
        for write in &plan.writes {
            if let crate::Write::Put { object, .. } = write {
                world.put(object.clone());
            }
        }
    }

    /// A world with so many nodes ready and lost.
    fn nodes(ready: u8, lost: u8) -> World {
        let mut world = world();
        for n in 0..ready + lost {
            let mut node = node_of(&format!("n{n:03}"), n);
            if n >= ready {
                node = unheard(&node, now()).unwrap();
            }
            put_node(&mut world, node);
        }
        world
    }

    fn tainted(world: &World) -> usize {
        let nodes = world.nodes.values();
        nodes.filter(|n| taint::evicting(n).is_some()).count()
    }

    /// How many nodes are tainted after so many seconds of planning when due.
    fn tainted_after(world: &mut World, seconds: i64) -> usize {
        let end = after(now(), seconds);
        let mut time = now();
        loop {
            let plan = plan(world, time);
            put_all(world, &plan);
            match plan.again_at {
                Some(at) if at <= end => time = at,
                Some(_) | None => return tainted(world),
            }
        }
    }

    #[test]
    fn zones_rule_how_many_nodes_go() {
        // (ready, lost, seconds, tainted)
        let rows = [
            (1, 1, 0, 1),
            (1, 2, 0, 1),
            (1, 2, 9, 1),
            (1, 2, 10, 2),
            (10, 3, 100, 3),
            // 55 % and more of a zone that is not large: none.
            (3, 4, 1000, 0),
            (2, 3, 1000, 0),
            (9, 11, 1000, 0),
            (5, 6, 50, 6),
            (6, 5, 40, 5),
            // Of a large one: one in 100 seconds.
            (20, 40, 99, 1),
            (20, 40, 100, 2),
            // No node is ready: none.
            (0, 1, 1000, 0),
            (0, 5, 1000, 0),
        ];
        for (ready, lost, seconds, expected) in rows {
            let mut world = nodes(ready, lost);
            let got = tainted_after(&mut world, seconds);
            assert_eq!(got, expected, "{ready} ready, {lost} lost, {seconds} s");
        }
    }

    #[test]
    fn a_zone_that_is_lost_as_a_whole_goes_while_others_are_well() {
        let mut world = nodes(4, 3);
        let lost: Vec<Arc<Node>> = world.nodes.values().skip(4).cloned().collect();
        for node in lost {
            let mut node = Node::clone(&node);
            let labels = node.metadata.labels.get_or_insert_default();
            labels.insert("topology.kubernetes.io/zone".to_owned(), "b".to_owned());
            put_node(&mut world, node);
        }
        assert_eq!(tainted_after(&mut world, 20), 3);
    }

    #[test]
    fn when_the_last_node_goes_the_others_are_spared() {
        let mut world = nodes(1, 2);
        assert_eq!(tainted_after(&mut world, 10), 2);
        let last = world.nodes["n000"].clone();
        put_node(&mut world, unheard(&last, now()).unwrap());
        assert!(world.take_due().contains(&crate::Task::Zones));
        let outcome = plan(&world, after(now(), 11));
        put_all(&mut world, &outcome);
        assert_eq!(tainted(&world), 0);
        assert!(
            plan(&world, after(now(), 12)).writes.is_empty(),
            "not quiet"
        );
        // The last one is back: the others count as lost from then on.
        put_node(&mut world, Node::clone(&last));
        world.hear(after(now(), 100));
        let outcome = plan(&world, after(now(), 100));
        assert_eq!(outcome.writes, []);
        assert_eq!(outcome.again_at, Some(after(now(), 140)));
    }
}
