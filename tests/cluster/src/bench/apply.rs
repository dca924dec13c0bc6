//! What applying costs, and whether it grows with what is there: one service among many,
//! files of many services, and how long after `foil apply` has returned every node's kernel
//! has the service.
//!
//! The start of `foil` is in it: that is what a person waits for. That a kernel has a service is
//! seen by reading all of its frontends, which takes some milliseconds at 5,000.

use super::sample;
use crate::objects;
use agent_sys::maps::Maps;
use serde_json::json;
use std::time::Instant;
use tests_harness::{Cluster, wait};

/// Services among which one more is applied.
const AMONG: [usize; 3] = [1, 1000, 5000];
/// Documents of one file.
const FILES: [usize; 2] = [1000, 5000];
/// Services applied one by one, for each number that is there.
const ONE_BY_ONE: usize = 40;
/// The pod that is behind all of them.
const POD: &str = "bench-apply";

/// `apply.service` and `program.service` with `services` 1, 1000 and 5000, `apply.file` with
/// `documents` 1000 and 5000.
pub(super) fn run(cluster: &Cluster) {
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {POD}, labels: {{app: {POD}}}}}\nspec:\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  \
         - {{name: app, image: 'foil/app:1', command: [app, serve]}}\n"
    );
    apply(cluster, &pod);
    objects::ready(cluster, POD);
    let nodes: Vec<Maps> = cluster
        .nodes()
        .iter()
        .map(|node| Maps::open(&node.pins).expect("the node's maps"))
        .collect();
    for (file, documents) in FILES.into_iter().enumerate() {
        eprintln!("apply.file: {documents} services");
        let taken = apply(cluster, &services(&format!("file-{file}"), documents));
        sample::print(
            "apply.file",
            "ms",
            &[taken],
            &[("documents", json!(documents))],
        );
        remove(cluster, &format!("file-{file}"), documents, &nodes);
    }
    let mut there = 0;
    for among in AMONG {
        let more = among - there;
        let before: Vec<usize> = nodes.iter().map(frontends).collect();
        apply(cluster, &services(&format!("among-{among}"), more));
        there = among;
        let applied = Instant::now();
        for (maps, before) in nodes.iter().zip(before) {
            wait_for(applied, || frontends(maps) >= before + more);
        }
        eprintln!("apply.service: among {among}");
        let (mut applied, mut programmed) = (Vec::new(), Vec::new());
        for round in 0..ONE_BY_ONE {
            let before: Vec<usize> = nodes.iter().map(frontends).collect();
            let name = format!("one-{among}-{round}");
            applied.push(apply(cluster, &services(&name, 1)));
            let returned = Instant::now();
            for (maps, before) in nodes.iter().zip(before) {
                wait_for(returned, || frontends(maps) > before);
            }
            programmed.push(returned.elapsed().as_secs_f64() * 1000.0);
            there += 1;
        }
        let varies = [("services", json!(among))];
        sample::print("apply.service", "ms", &applied, &varies);
        sample::print("program.service", "ms", &programmed, &varies);
    }
    cluster.foil(&["delete", "services", "--all"]).success();
    cluster.foil(&["delete", "pod", POD]).success();
    objects::gone(cluster, POD);
}

/// Applies manifests; milliseconds until `foil` has ended.
fn apply(cluster: &Cluster, manifests: &str) -> f64 {
    let start = Instant::now();
    cluster
        .foil_with_input(&["apply", "-f", "-"], manifests)
        .success();
    start.elapsed().as_secs_f64() * 1000.0
}

/// So many services with the pod behind them.
fn services(name: &str, count: usize) -> String {
    let one = |number: usize| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}-{number}}}\nspec:\n  \
             selector: {{app: {POD}}}\n  ports: [{{port: 80, targetPort: 8080}}]\n---\n"
        )
    };
    (0..count).map(one).collect()
}

/// Removes what a file had made, on the nodes as well.
fn remove(cluster: &Cluster, name: &str, count: usize, nodes: &[Maps]) {
    cluster
        .foil_with_input(&["delete", "-f", "-"], &services(name, count))
        .success();
    let start = Instant::now();
    for maps in nodes {
        wait_for(start, || frontends(maps) < count);
    }
}

/// Services of a node's kernel, by address and port.
fn frontends(maps: &Maps) -> usize {
    maps.frontends().expect("the frontends").len()
}

fn wait_for(start: Instant, met: impl Fn() -> bool) {
    let left = wait::GENEROUS.saturating_sub(start.elapsed());
    let got = wait::poll_for(left, wait::FINE, || met().then_some(()));
    assert!(got.is_some(), "the nodes do not have it, or interrupted");
}
