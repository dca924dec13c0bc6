//! Step 4: calls through the ClusterIP, and the same numbers in the BPF maps.
//!
//! Called by `demo::run`.

use super::Show;
use crate::{counters, objects, traffic};
use std::collections::BTreeSet;
use std::process::Command;
use tests_harness::Cluster;

const CALLS: u32 = 300;

/// Step 4.
pub fn run(show: &mut Show, cluster: &Cluster) {
    show.step(4, "300 calls through the ClusterIP");
    let web = objects::ready_count(cluster, "web", 3);
    objects::backends_are(cluster, "web", &web);
    let client = objects::ready(cluster, "client");
    let node = node_index(cluster, &client.node);
    let target = format!("{}:80", objects::cluster_ip(cluster, "web"));

    let before = counters::connections(cluster, node, "web");
    show.say(format!("From the pod client on {}:", client.node));
    println!("$ foil exec client -- app call {target} -n {CALLS}");
    let calls = traffic::call_from_pod(cluster, "client", &target, CALLS);
    show.print(&format!("{calls:#?}"));
    show.check(
        "all 300 were answered",
        calls.ok == u64::from(CALLS) && calls.failed == 0,
        format!("{calls:?}"),
    );
    let by_pod = calls.by_pod();
    let all = web
        .iter()
        .all(|pod| by_pod.get(&pod.name).is_some_and(|&count| count > 0));
    show.check("every backend answered", all, format!("{calls:?}"));
    let nodes: BTreeSet<&str> = web.iter().map(|pod| pod.node.as_str()).collect();
    show.check(
        "they are on both nodes",
        nodes.len() == 2,
        format!("{nodes:?}"),
    );

    let after = counters::connections(cluster, node, "web");
    for pod in &web {
        let counted = after.get(&pod.ip).unwrap_or(&0) - before.get(&pod.ip).unwrap_or(&0);
        let answered = by_pod.get(&pod.name).copied().unwrap_or_default();
        show.check(
            &format!(
                "{} answered {answered}, and its backend's map entry counts as many",
                pod.name
            ),
            counted == answered,
            format!("{counted} in the map"),
        );
    }

    for index in 0..cluster.nodes().len() {
        let name = &cluster.nodes()[index].name;
        let calls = traffic::call_from_node(cluster, index, &target, CALLS);
        println!("$ nsenter --net=/run/netns/...-{name} app call {target} -n {CALLS}");
        show.print(&format!("{:?}", calls.backends));
        let good = calls.ok == u64::from(CALLS) && calls.backends.len() == web.len();
        show.check(
            &format!("the same from the node {name} itself"),
            good,
            format!("{calls:?}"),
        );
    }
    maps(show, cluster, node, &web);
}

fn maps(show: &mut Show, cluster: &Cluster, node: usize, web: &[objects::Pod]) {
    let pins = cluster.nodes()[node].pins.display().to_string();
    let names = [
        ("service", "web"),
        ("backend", web[0].ip.as_str()),
        ("flow", web[0].ip.as_str()),
    ];
    for (what, word) in names {
        let out = show.foil(cluster, &["bpf", "--bpffs", &pins, what, "list"]);
        show.check(
            &format!("foil bpf {what} list shows {word}"),
            out.contains(word),
            out,
        );
    }
    let out = show.foil(cluster, &["bpf", "--bpffs", &pins, "endpoint", "list"]);
    show.check(
        "foil bpf endpoint list shows client",
        out.contains("client"),
        out,
    );
    let pin = format!("{pins}/frontends");
    let out = show
        .run(Command::new("bpftool").args(["map", "dump", "pinned", &pin]))
        .success();
    for field in ["\"addr\"", "\"port\"", "\"service_port\""] {
        show.check(
            &format!("bpftool prints the field {field}"),
            out.contains(field),
            &out,
        );
    }
}

/// Position of a node by name.
///
/// # Panics
/// If there is none of that name.
pub fn node_index(cluster: &Cluster, name: &str) -> usize {
    let position = cluster.nodes().iter().position(|node| node.name == name);
    position.unwrap_or_else(|| panic!("no node {name:?}"))
}
