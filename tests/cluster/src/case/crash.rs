//! SIGKILL of agents and of the control plane: no request lost, nothing restarted.

use crate::fixture::web_and_client;
use crate::objects::running;
use crate::scene::Scene;
use crate::{objects, traffic};
use tests_harness::wait_until;

pub(crate) fn killed_agents_lose_nothing_and_adopt(scene: &mut Scene<'_>) {
    let (_, target) = web_and_client(scene);
    let load = traffic::Load::start(scene.cluster, "load-agent", "n1", &target);
    let before = running(scene.cluster);
    for index in 0..2 {
        let name = scene.cluster.nodes()[index].name.clone();
        scene.say(format!("The agent of {name} dies."));
        let pid = scene.cluster.node(index).agent().pid();
        scene.narrator.command(format!("kill -9 {pid}"));
        scene.cluster.kill_agent(index);
        let calls = traffic::call_from_node(scene.cluster, index, &target, 500);
        scene.check(
            "with no agent, 500 calls from its node are answered",
            calls.failed == 0,
            format!("{calls:?}"),
        );
        // Logs of the other node's pods are served although one agent is dead.
        if index == 1 {
            assert_eq!(load.wait_more(scene.cluster, 100).failed, 0);
        }
        scene.cluster.start_agent(index);
        scene.cluster.wait_nodes_ready();
    }
    let calls = load.wait_more(scene.cluster, 300);
    scene.check(
        "no request of the load was lost",
        calls.failed == 0,
        format!("{calls:?}"),
    );
    scene.check(
        "nothing restarted: the same containers run",
        running(scene.cluster) == before,
        format!("{:?}, before {before:?}", running(scene.cluster)),
    );
    let pods = objects::ready_count(scene.cluster, "web", 3);
    objects::backends_are(scene.cluster, "web", &pods);
    scene.check("the maps are adopted: the same backends", true, "");
    load.stop(scene.cluster);
}

pub(crate) fn agent_killed_again_and_again_under_load(scene: &mut Scene<'_>) {
    let (_, target) = web_and_client(scene);
    let load = traffic::Load::start(scene.cluster, "load-again", "n2", &target);
    let (hold, _) = traffic::Hold::start(scene.cluster, "client", &target);
    let before = running(scene.cluster);
    let node = objects::ready(scene.cluster, "client").node;
    // The agent that serves the client's exec session stays; the other one dies.
    let index = if node == "n1" { 1 } else { 0 };
    for _ in 0..5 {
        scene.cluster.kill_agent(index);
        scene.cluster.start_agent(index);
        // Not until it is ready: it is killed at any point of its start.
        let calls = traffic::call_from_node(scene.cluster, index, &target, 50);
        assert_eq!(calls.failed, 0, "{calls:?}");
    }
    scene.cluster.wait_nodes_ready();
    assert_eq!(running(scene.cluster), before);
    let calls = load.stop(scene.cluster);
    assert_eq!(calls.failed, 0, "{calls:?}");
    assert!(hold.is_open(), "the long connection was cut");
}

pub(crate) fn agent_starts_without_a_control_plane(scene: &mut Scene<'_>) {
    let (_, target) = web_and_client(scene);
    let before = running(scene.cluster);
    scene.cluster.kill_control();
    scene.cluster.kill_agent(0);
    scene.cluster.start_agent(0);
    for _ in 0..5 {
        let calls = traffic::call_from_node(scene.cluster, 0, &target, 100);
        assert_eq!(calls.failed, 0, "{calls:?}");
        scene.cluster.node(0).agent();
    }
    scene.cluster.start_control();
    scene.cluster.wait_nodes_ready();
    assert_eq!(running(scene.cluster), before);
}

pub(crate) fn killed_control_plane_has_every_object(scene: &mut Scene<'_>) {
    let (_, target) = web_and_client(scene);
    let load = traffic::Load::start(scene.cluster, "load-control", "n1", &target);
    let containers = running(scene.cluster);
    let before = objects::uids(scene.cluster);
    let logged = scene.cluster.control_log_text().len();
    let pid = scene.cluster.control_pid().unwrap_or_default();
    scene.narrator.command(format!("kill -9 {pid}"));
    scene.cluster.kill_control();
    let calls = traffic::call_from_node(scene.cluster, 1, &target, 500);
    scene.check(
        "without a control plane, 500 calls are answered",
        calls.failed == 0,
        format!("{calls:?}"),
    );
    scene.cluster.start_control();
    let after = objects::uids(scene.cluster);
    scene.check(
        "every object is there again",
        after == before,
        format!("{after:?}\nbefore: {before:?}"),
    );
    scene.cluster.wait_nodes_ready();
    let connected = wait_until("both nodes to connect", || {
        let log = scene.cluster.control_log_text().split_off(logged);
        let lines = log.lines().filter(|line| line.contains("a node connected"));
        let lines: Vec<String> = lines.map(str::to_owned).collect();
        if lines.len() >= 2 {
            Ok(lines)
        } else {
            Err(log)
        }
    });
    scene.check(
        "the nodes are sent what differs, not everything",
        connected.iter().all(|line| line.contains("snapshot=false")),
        connected.join("\n"),
    );
    scene.foil(&["get", "nodes"]);
    scene.foil(&["get", "pods", "-o", "wide"]);
    scene.check(
        "nothing restarted",
        running(scene.cluster) == containers,
        format!("{:?}, before {containers:?}", running(scene.cluster)),
    );
    scene.say("It still decides: scale to 4 and back.");
    scene.foil(&["scale", "deployment", "web", "--replicas", "4"]);
    objects::ready_count(scene.cluster, "web", 4);
    scene.foil(&["scale", "deployment", "web", "--replicas", "3"]);
    objects::ready_count(scene.cluster, "web", 3);
    let calls = load.stop(scene.cluster);
    scene.narrator.output(&format!("{calls:?}"));
    scene.check(
        "from before the kill until now no request was lost",
        calls.failed == 0,
        format!("{calls:?}"),
    );
}
