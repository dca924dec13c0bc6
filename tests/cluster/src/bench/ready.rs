//! Applied to Ready: between two events of one watch, for one pod and for fifty at once.
//!
//! The image is present. Not the start of `foil`, which is not the cluster's time.

use super::sample;
use crate::objects;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tests_harness::{Cluster, wait};

const ONE_BY_ONE: usize = 20;
const AT_ONCE: usize = 50;
/// A pod that is there all the time.
const SENTINEL: &str = "sentinel";

/// `pod.ready` with `pods` 1 and 50. The fifty stay, for the measurement of memory.
pub(super) fn run(cluster: &Cluster) {
    // Once on each node, so that the image is there.
    for (name, node) in [(SENTINEL, "n1"), ("warm", "n2")] {
        let manifest = pod(name, Some(node));
        cluster
            .foil_with_input(&["apply", "-f", "-"], &manifest)
            .success();
        objects::ready(cluster, name);
    }
    let mut times = Vec::new();
    for round in 0..ONE_BY_ONE {
        eprintln!("pod.ready: pod {} of {ONE_BY_ONE}", round + 1);
        let name = format!("one-{round}");
        times.extend(measure(cluster, std::slice::from_ref(&name)));
        cluster.foil(&["delete", "pod", &name]).success();
        objects::gone(cluster, &name);
    }
    sample::print("pod.ready", "ms", &times, &[("pods", json!(1))]);
    eprintln!("pod.ready: {AT_ONCE} pods at once");
    let names: Vec<String> = (0..AT_ONCE).map(|index| format!("many-{index}")).collect();
    let times = measure(cluster, &names);
    let all = times.iter().copied().fold(0.0, f64::max);
    let varies = [
        ("pods", json!(AT_ONCE)),
        ("all", json!(sample::rounded(all))),
    ];
    sample::print("pod.ready", "ms", &times, &varies);
}

fn pod(name: &str, node: Option<&str>) -> String {
    let node = node.map_or_else(String::new, |node| format!("  nodeName: {node}\n"));
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: bench}}}}\nspec:\n{node}  \
         terminationGracePeriodSeconds: 1\n  containers:\n  \
         - {{name: app, image: 'foil/app:1', command: [app, serve]}}\n---\n"
    )
}

/// Milliseconds from a pod's first row in the watch to its first row that is Ready.
fn measure(cluster: &Cluster, names: &[String]) -> Vec<f64> {
    let mut watch = Watch::start(cluster);
    let manifest: String = names.iter().map(|name| pod(name, None)).collect();
    cluster
        .foil_with_input(&["apply", "-f", "-"], &manifest)
        .success();
    let start = Instant::now();
    let mut added: BTreeMap<String, Instant> = BTreeMap::new();
    let mut ready: BTreeMap<String, Instant> = BTreeMap::new();
    while ready.len() < names.len() {
        assert!(
            start.elapsed() < wait::GENEROUS,
            "ready are only {:?}",
            ready.keys()
        );
        assert!(!wait::interrupted(), "interrupted");
        let Ok((at, line)) = watch.rows.recv_timeout(Duration::from_secs(1)) else {
            continue;
        };
        let mut words = line.split_whitespace();
        let (Some(name), Some(state)) = (words.next(), words.next()) else {
            continue;
        };
        if !names.iter().any(|one| one == name) {
            continue;
        }
        added.entry(name.to_owned()).or_insert(at);
        if state == "1/1" {
            ready.entry(name.to_owned()).or_insert(at);
        }
    }
    watch.child.kill().ok();
    watch.child.wait().ok();
    ready
        .iter()
        .map(|(name, at)| (*at - added[name]).as_secs_f64() * 1000.0)
        .collect()
}

/// `foil get pods -w`, each row with the time at which it came.
struct Watch {
    child: Child,
    rows: Receiver<(Instant, String)>,
}

impl Watch {
    fn start(cluster: &Cluster) -> Self {
        let mut command = cluster.foil_command(&["get", "pods", "-w"]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().expect("start foil get -w");
        let stdout = child.stdout.take().expect("its output");
        let (send, rows) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
        });
        let this = Self { child, rows };
        // A watch begins with what is there: once we see that, nothing later can be missed.
        while !this
            .rows
            .recv()
            .expect("a row of the watch")
            .1
            .starts_with(SENTINEL)
        {}
        this
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
