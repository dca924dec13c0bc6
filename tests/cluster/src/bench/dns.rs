//! Answers of cluster DNS to a pod: how long one takes, and how many a second of the agent's
//! CPU time gives.

use super::sample;
use crate::upstream::{KNOWN, Upstream};
use crate::{limits, objects};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;
use tests_harness::{Cluster, process};

/// Rounds of latency, the names alternating.
const ROUNDS: usize = 10;
/// Answers of one round.
const COUNT: u32 = 3000;
/// Answers whose CPU time is measured.
const MANY: u32 = 200_000;
/// Queries under way at a time there.
const WINDOW: u32 = 32;
/// Ticks of /proc/PID/stat in a second (USER_HZ).
const TICKS: f64 = 100.0;

const CLIENT: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: bench-dns}\nspec:\n  \
    nodeName: n1\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
    - {name: app, image: 'foil/app:1', command: [app, serve]}\n";

/// `dns.cached` (a name of another domain), `dns.zone` (a service), and what they cost.
pub(super) fn run(cluster: &mut Cluster) {
    let upstream = Upstream::start(cluster);
    cluster
        .foil_with_input(&["apply", "-f", "-"], CLIENT)
        .success();
    let pid = limits::init_pid(cluster, &objects::ready(cluster, "bench-dns"));
    let agent = cluster.node(0).agent().pid();
    let ask = |name: &str, count: u32, window: u32| {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{pid}/ns/net"));
        command.arg(tests_harness::binary("app"));
        command.args(["dns", "10.96.0.10:53", name]);
        command.args(["-n", &count.to_string(), "--window", &window.to_string()]);
        let out = process::run(&mut command).success();
        serde_json::from_str::<Value>(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    };
    let names = [
        ("dns.cached", KNOWN.0),
        ("dns.zone", "kube-dns.kube-system.svc.cluster.local."),
    ];
    let mut rounds = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for ((_, name), rounds) in names.iter().zip(&mut rounds) {
            let row = ask(name, COUNT, 1);
            rounds.push(["min", "median", "p99"].map(|key| row[key].as_f64().unwrap_or_default()));
        }
    }
    for ((id, name), rounds) in names.iter().zip(&rounds) {
        let column = |index: usize| {
            rounds
                .iter()
                .map(|r: &[f64; 3]| r[index])
                .collect::<Vec<_>>()
        };
        let min = column(0).into_iter().fold(f64::INFINITY, f64::min);
        let figures = [min, sample::median(&column(1)), sample::median(&column(2))];
        let before = cpu_seconds(agent);
        let row = ask(name, MANY, WINDOW);
        let used = cpu_seconds(agent) - before;
        let varies = [
            ("answers_per_s", row["answers_per_s"].clone()),
            ("answers_per_cpu_s", json!((f64::from(MANY) / used).round())),
        ];
        let n = COUNT as usize * ROUNDS;
        println!("{}", sample::summary(id, "us", n, figures, &varies));
    }
    let asked = upstream.asked().len();
    assert!(
        asked <= 2,
        "answers came from the cache: {:?}",
        upstream.asked()
    );
    cluster.foil(&["delete", "pod", "bench-dns"]).success();
    objects::gone(cluster, "bench-dns");
}

/// CPU time of a process, in user space and in the kernel.
fn cpu_seconds(pid: u32) -> f64 {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    // utime and stime, counted behind the name in parentheses.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let fields = rest.split_ascii_whitespace().skip(11).take(2);
    let ticks: f64 = fields.filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / TICKS
}
