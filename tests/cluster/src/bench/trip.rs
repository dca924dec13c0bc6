//! Round trips: bare veth, kernel forwarding, pod to pod, and through the ClusterIP.
//!
//! Server and client are the same program on every path and run without a container's filter
//! and limits, in the pods' network namespaces: only the network differs.

use super::sample;
use crate::{limits, objects};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Command;
use tests_harness::{Cluster, NetNs, Process, process, wait_until};

/// Port of the echo servers; the pods' own program has 8080.
const PORT: u16 = 9000;
const ROUNDS: usize = 15;
const PATHS: [&str; 6] = [
    "veth",
    "forward",
    "direct.same",
    "direct.two",
    "clusterip.same",
    "clusterip.two",
];

/// Where a client runs and whom it calls.
struct Path {
    client: Box<dyn Fn() -> Command>,
    target: String,
}

/// min, median and p99 of one round, in microseconds.
type Round = [f64; 3];

/// `rr` and `crr` on each path.
pub(super) fn run(cluster: &Cluster) {
    let mut guards = Guards::default();
    let mut paths = BTreeMap::new();
    bare(cluster, &mut guards, &mut paths);
    pods(cluster, &mut guards, &mut paths);
    for (id, count) in [("rr", 3000), ("crr", 600)] {
        let mut rounds: BTreeMap<&str, Vec<Round>> = BTreeMap::new();
        for round in 0..ROUNDS {
            eprintln!("{id}: round {} of {ROUNDS}", round + 1);
            for name in PATHS {
                rounds
                    .entry(name)
                    .or_default()
                    .push(measure(&paths[name], id, count));
            }
        }
        for name in PATHS {
            print(id, name, count, &rounds);
        }
    }
    for name in ["bench-client", "bench-same", "bench-two"] {
        cluster.foil(&["delete", "pod", name]).success();
        objects::gone(cluster, name);
    }
    drop(guards);
}

/// Servers and namespaces that end with the measurement.
#[derive(Default)]
struct Guards {
    servers: Vec<Process>,
    spaces: Vec<NetNs>,
}

impl Guards {
    fn serve(&mut self, cluster: &Cluster, mut command: Command, name: &str) {
        command.args(["echo", "--port", &PORT.to_string()]);
        let log = cluster.root().join(format!("bench-{name}.log"));
        self.servers.push(Process::spawn(name, &mut command, &log));
    }
}

/// Two namespaces joined by a veth, and two joined by a third one that forwards.
fn bare(cluster: &Cluster, guards: &mut Guards, paths: &mut BTreeMap<&str, Path>) {
    let spaces = ["a", "b", "c", "router", "d"]
        .map(|label| NetNs::named(&format!("{}-bench-{label}", cluster.name())));
    let [a, b, c, router, d] = &spaces;
    join(a, "192.0.2.1", b, "192.0.2.2");
    join(c, "192.0.2.5", router, "192.0.2.6");
    join(d, "192.0.2.9", router, "192.0.2.10");
    c.ip(&["route", "add", "default", "via", "192.0.2.6"]);
    d.ip(&["route", "add", "default", "via", "192.0.2.10"]);
    let on = router.enter(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"));
    on.expect("forwarding in the namespace");
    for (server, client, name, address) in
        [(b, a, "veth", "192.0.2.2"), (d, c, "forward", "192.0.2.9")]
    {
        guards.serve(cluster, server.command(tests_harness::binary("app")), name);
        let inside = format!("--net={}", client.path().display());
        paths.insert(
            name,
            Path {
                client: enter(inside),
                target: format!("{address}:{PORT}"),
            },
        );
    }
    guards.spaces.extend(spaces);
}

/// A veth between two namespaces, /30 on each side.
fn join(a: &NetNs, a_ip: &str, b: &NetNs, b_ip: &str) {
    let tail = |ip: &str| ip.rsplit('.').next().unwrap_or_default().to_owned();
    let (a_dev, b_dev) = (format!("foil{}", tail(a_ip)), format!("foil{}", tail(b_ip)));
    a.ip(&[
        "link",
        "add",
        &a_dev,
        "type",
        "veth",
        "peer",
        "name",
        &b_dev,
        "netns",
        b.name(),
    ]);
    for (space, dev, ip) in [(a, &a_dev, a_ip), (b, &b_dev, b_ip)] {
        space.ip(&["addr", "add", &format!("{ip}/30"), "dev", dev]);
        space.ip(&["link", "set", dev, "up"]);
    }
}

/// A client on n1, servers on n1 and n2, a service for each server.
fn pods(cluster: &Cluster, guards: &mut Guards, paths: &mut BTreeMap<&str, Path>) {
    let mut manifest = String::new();
    for (name, node) in [
        ("bench-client", "n1"),
        ("bench-same", "n1"),
        ("bench-two", "n2"),
    ] {
        manifest.push_str(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\n\
             spec:\n  nodeName: {node}\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
             - {{name: app, image: 'foil/app:1', command: [app, serve]}}\n---\n"
        ));
    }
    for name in ["bench-same", "bench-two"] {
        manifest.push_str(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  \
             selector: {{app: {name}}}\n  ports: [{{port: {PORT}}}]\n---\n"
        ));
    }
    cluster
        .foil_with_input(&["apply", "-f", "-"], &manifest)
        .success();
    let inside = |name: &str| {
        let pid = limits::init_pid(cluster, &objects::ready(cluster, name));
        format!("--net=/proc/{pid}/ns/net")
    };
    for (name, direct, virtual_path) in [
        ("bench-same", "direct.same", "clusterip.same"),
        ("bench-two", "direct.two", "clusterip.two"),
    ] {
        let pod = objects::ready(cluster, name);
        guards.serve(cluster, enter(inside(name))(), name);
        objects::backends_are(cluster, name, std::slice::from_ref(&pod));
        let address = objects::cluster_ip(cluster, name);
        for (path, ip) in [(direct, pod.ip), (virtual_path, address)] {
            let client = enter(inside("bench-client"));
            paths.insert(
                path,
                Path {
                    client,
                    target: format!("{ip}:{PORT}"),
                },
            );
        }
    }
}

/// Makes commands of `app` inside a network namespace.
fn enter(inside: String) -> Box<dyn Fn() -> Command> {
    Box::new(move || {
        let mut command = Command::new("nsenter");
        command.arg(&inside).arg(tests_harness::binary("app"));
        command
    })
}

fn measure(path: &Path, id: &str, count: u32) -> Round {
    let row = wait_until(&format!("{id} to {}", path.target), || {
        let mut command = (path.client)();
        let out = process::run(command.args([id, &path.target, "-n", &count.to_string()]));
        if out.code != 0 {
            return Err(out.stderr);
        }
        serde_json::from_str::<Value>(&out.stdout).map_err(|error| format!("{error}: {out:?}"))
    });
    ["min", "median", "p99"].map(|key| row[key].as_f64().unwrap_or_default())
}

/// min of all rounds, median of the rounds' medians and 99th percentiles, and the median of
/// the ratios to another path in the same round.
fn print(id: &str, name: &str, count: u32, rounds: &BTreeMap<&str, Vec<Round>>) {
    let mine = &rounds[name];
    let column = |index: usize| mine.iter().map(|round| round[index]).collect::<Vec<_>>();
    let min = column(0).into_iter().fold(f64::INFINITY, f64::min);
    let ratio = |other: &str| {
        let pairs = mine.iter().zip(&rounds[other]);
        let ratios: Vec<f64> = pairs.map(|(mine, other)| mine[1] / other[1]).collect();
        json!(sample::rounded(sample::median(&ratios)))
    };
    let mut varies = vec![("path", json!(name)), ("to_veth", ratio("veth"))];
    if let Some(place) = name.strip_prefix("clusterip.") {
        varies.push((
            "to_direct",
            ratio(if place == "same" {
                "direct.same"
            } else {
                "direct.two"
            }),
        ));
    }
    let n = count as usize * mine.len();
    let figures = [min, sample::median(&column(1)), sample::median(&column(2))];
    println!("{}", sample::summary(id, "us", n, figures, &varies));
}
