//! Step 6: SIGKILL of an agent and of the control plane, under load.
//!
//! Called by `demo::run`.

use super::Show;
use super::connect::node_index;
use crate::{objects, traffic};
use std::collections::BTreeMap;
use tests_harness::Cluster;

/// Step 6.
pub fn run(show: &mut Show, cluster: &mut Cluster) {
    show.step(
        6,
        "kill -9 of an agent, then of the control plane, under load",
    );
    let target = format!("{}:80", objects::cluster_ip(cluster, "web"));
    let load = traffic::Load::start(cluster, "load", "n1", &target);
    let before = running(cluster);
    let index = node_index(cluster, "n1");

    show.say("The agent of n1, on which the load runs, dies.");
    let pid = cluster.node(index).agent().pid();
    println!("$ kill -9 {pid}");
    cluster.kill_agent(index);
    let calls = traffic::call_from_node(cluster, index, &target, 500);
    show.check(
        "with no agent, 500 calls from its node are answered",
        calls.failed == 0,
        format!("{calls:?}"),
    );
    cluster.start_agent(index);
    cluster.wait_nodes_ready();
    let calls = load.wait_more(cluster, 500);
    show.check(
        "no request of the load was lost",
        calls.failed == 0,
        format!("{calls:?}"),
    );
    show.check(
        "nothing restarted: the same containers run",
        running(cluster) == before,
        format!("{:?}", running(cluster)),
    );
    let web = objects::ready_count(cluster, "web", 3);
    objects::backends_are(cluster, "web", &web);
    show.check("its maps are adopted: the same backends", true, "");

    let objects_before = objects::uids(cluster);
    show.say("Now the control plane.");
    println!("$ kill -9 {}", cluster.control_pid().unwrap_or_default());
    cluster.kill_control();
    let calls = traffic::call_from_node(cluster, index, &target, 500);
    show.check(
        "without a control plane, 500 calls are answered",
        calls.failed == 0,
        format!("{calls:?}"),
    );
    cluster.start_control();
    let objects_after = objects::uids(cluster);
    show.check(
        "every object is there again",
        objects_after == objects_before,
        format!("{objects_after:?}\nbefore: {objects_before:?}"),
    );
    cluster.wait_nodes_ready();
    show.foil(cluster, &["get", "nodes"]);
    show.foil(cluster, &["get", "pods", "-o", "wide"]);
    show.check(
        "nothing restarted",
        running(cluster) == before,
        format!("{:?}", running(cluster)),
    );
    show.say("It still decides: scale to 4 and back.");
    show.foil(cluster, &["scale", "deployment", "web", "--replicas", "4"]);
    objects::ready_count(cluster, "web", 4);
    show.foil(cluster, &["scale", "deployment", "web", "--replicas", "3"]);
    objects::ready_count(cluster, "web", 3);
    let calls = load.stop(cluster);
    show.print(&format!("{calls:?}"));
    show.check(
        "from before the first kill until now no request was lost",
        calls.failed == 0,
        format!("{calls:?}"),
    );
}

/// Container ids and restart counts by pod.
fn running(cluster: &Cluster) -> BTreeMap<String, (Vec<String>, u64)> {
    let pods = objects::pods(cluster).into_iter();
    pods.map(|pod| (pod.name, (pod.containers, pod.restarts)))
        .collect()
}
