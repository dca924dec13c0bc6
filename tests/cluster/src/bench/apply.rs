//! What applying costs, and whether it grows with what is there: one service among many,
//! files of many services, and how long after `foil apply` has returned every node's kernel
//! has the service.
//!
//! The start of `foil` is in it: that is what a person waits for. That a kernel has a service is
//! seen by one lookup of its address, which is given in its manifest.

use super::sample;
use crate::objects;
use agent_sys::maps::Maps;
use ebpf_common::net::{Be16, protocol};
use ebpf_common::service::FrontendKey;
use serde_json::json;
use std::net::Ipv4Addr;
use std::time::Instant;
use tests_harness::{Cluster, wait};

/// Services among which one more is applied.
const AMONG: [usize; 3] = [1, 1000, 5000];
/// Documents of one file.
const FILES: [usize; 2] = [1000, 5000];
/// Services applied one by one, for each number that is there.
const ONE_BY_ONE: usize = 40;
/// The first address of services whose address is given; the control plane gives out the lowest
/// ones that are free.
const ADDRESSES: Ipv4Addr = Ipv4Addr::new(10, 96, 200, 0);
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
    let (mut there, mut given) = (0, 0);
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
        let mut applied = Vec::new();
        for round in 0..ONE_BY_ONE {
            let service = service(&format!("one-{among}-{round}"), None);
            applied.push(apply(cluster, &service));
        }
        let mut programmed = Vec::new();
        for _ in 0..ONE_BY_ONE {
            let address = Ipv4Addr::from(u32::from(ADDRESSES) + given);
            let service = service(&format!("at-{given}"), Some(address));
            given += 1;
            apply(cluster, &service);
            let returned = Instant::now();
            let key = frontend_key(address);
            for maps in &nodes {
                wait_for(returned, || {
                    maps.frontend(&key).expect("a lookup").is_some()
                });
            }
            programmed.push(returned.elapsed().as_secs_f64() * 1000.0);
        }
        there += 2 * ONE_BY_ONE;
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
    (0..count)
        .map(|number| service(&format!("{name}-{number}"), None))
        .collect()
}

/// One service with the pod behind it, at an address of its own or at one that is free.
fn service(name: &str, address: Option<Ipv4Addr>) -> String {
    let address = address.map(|address| format!("clusterIP: {address}, "));
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{}selector: \
         {{app: {POD}}}, ports: [{{port: 80, targetPort: 8080}}]}}\n---\n",
        address.unwrap_or_default()
    )
}

/// Under what a node's kernel finds it.
fn frontend_key(address: Ipv4Addr) -> FrontendKey {
    FrontendKey {
        addr: address.into(),
        port: Be16::new(80),
        protocol: protocol::TCP,
        pad: 0,
    }
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
