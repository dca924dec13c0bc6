//! SIGKILL of agents and of the control plane: no request lost, nothing restarted.

use super::web_and_client;
use crate::{objects, traffic};
use std::collections::BTreeMap;
use tests_harness::{Cluster, wait_until};

/// Container ids and restart counts of the pods that no case deletes meanwhile.
fn running(cluster: &Cluster) -> BTreeMap<String, (Vec<String>, u64)> {
    let pods = objects::pods(cluster).into_iter();
    pods.map(|pod| (pod.name, (pod.containers, pod.restarts)))
        .collect()
}

pub(super) fn killed_agent_loses_nothing_and_adopts(cluster: &mut Cluster) {
    let (_, target) = web_and_client(cluster);
    let load = traffic::Load::start(cluster, "load-agent", "n1", &target);
    let before = running(cluster);
    for index in 0..2 {
        cluster.kill_agent(index);
        let calls = traffic::call_from_node(cluster, index, &target, 200);
        assert_eq!(calls.failed, 0, "with node {index}'s agent dead: {calls:?}");
        load_line_while_the_agent_is_dead(cluster, &load, index);
        cluster.start_agent(index);
        cluster.wait_nodes_ready();
    }
    let calls = load.wait_more(cluster, 300);
    assert_eq!(calls.failed, 0, "{calls:?}");
    assert_eq!(running(cluster), before);
    // A restart is a start like any other: it still does what it is told.
    let pods = objects::ready_count(cluster, "web", 3);
    objects::backends_are(cluster, "web", &pods);
    load.stop(cluster);
}

/// Logs of the other node's pods are served although one agent is dead.
fn load_line_while_the_agent_is_dead(cluster: &Cluster, load: &traffic::Load, dead: usize) {
    if dead == 1 {
        assert_eq!(load.wait_more(cluster, 100).failed, 0);
    }
}

pub(super) fn agent_killed_again_and_again_under_load(cluster: &mut Cluster) {
    let (_, target) = web_and_client(cluster);
    let load = traffic::Load::start(cluster, "load-again", "n2", &target);
    let (hold, _) = traffic::Hold::start(cluster, "client", &target);
    let before = running(cluster);
    let node = objects::ready(cluster, "client").node;
    // The agent that serves the client's exec session stays; the other one dies.
    let index = if node == "n1" { 1 } else { 0 };
    for _ in 0..5 {
        cluster.kill_agent(index);
        cluster.start_agent(index);
        // Not until it is ready: it is killed at whatever point of its start it has reached.
        let calls = traffic::call_from_node(cluster, index, &target, 50);
        assert_eq!(calls.failed, 0, "{calls:?}");
    }
    cluster.wait_nodes_ready();
    assert_eq!(running(cluster), before);
    let calls = load.stop(cluster);
    assert_eq!(calls.failed, 0, "{calls:?}");
    assert!(hold.is_open(), "the long connection was cut");
}

pub(super) fn agent_starts_without_a_control_plane(cluster: &mut Cluster) {
    let (_, target) = web_and_client(cluster);
    let before = running(cluster);
    cluster.kill_control();
    cluster.kill_agent(0);
    cluster.start_agent(0);
    for _ in 0..5 {
        let calls = traffic::call_from_node(cluster, 0, &target, 100);
        assert_eq!(calls.failed, 0, "{calls:?}");
        cluster.node(0).agent();
    }
    cluster.start_control();
    cluster.wait_nodes_ready();
    assert_eq!(running(cluster), before);
}

pub(super) fn killed_control_plane_has_every_object(cluster: &mut Cluster) {
    let (_, target) = web_and_client(cluster);
    let load = traffic::Load::start(cluster, "load-control", "n1", &target);
    let containers = running(cluster);
    let before = objects::uids(cluster);
    cluster.kill_control();
    let calls = traffic::call_from_node(cluster, 1, &target, 200);
    assert_eq!(calls.failed, 0, "{calls:?}");
    cluster.start_control();
    assert_eq!(objects::uids(cluster), before);
    cluster.wait_nodes_ready();
    assert_eq!(running(cluster), containers);
    // It decides again.
    cluster
        .foil(&["scale", "deployment", "web", "--replicas", "4"])
        .success();
    objects::ready_count(cluster, "web", 4);
    cluster
        .foil(&["scale", "deployment", "web", "--replicas", "3"])
        .success();
    wait_until("3 replicas", || {
        let pods = objects::pods_of(cluster, "web");
        if pods.len() == 3 {
            Ok(())
        } else {
            Err(format!("{pods:?}"))
        }
    });
    let calls = load.stop(cluster);
    assert_eq!(calls.failed, 0, "{calls:?}");
}
