//! Round trips and streams: bare veth, kernel forwarding, kube-proxy's rules, pod to pod, and
//! through the ClusterIP.
//!
//! Paths alternate round by round. Each has client ports of its own, and new ones in each round:
//! a port that another path used a moment ago meets what is left of that connection.

use super::path::{self, Guards, Path};
use super::peer::{BULK_PORT, PORT};
use super::sample;
use crate::objects;
use agent_sys::maps::Maps;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use tests_harness::{Cluster, process, wait_until};

/// Client ports of one path, and of one round of it.
const PATH_PORTS: u16 = 8000;
const ROUND_PORTS: u16 = PATH_PORTS / ROUNDS as u16;
const FIRST_PORT: u16 = 10_000;
const ROUNDS: usize = 20;

/// What is measured.
struct Measure {
    id: &'static str,
    unit: &'static str,
    port: u16,
    /// Repeats of a round.
    count: u16,
    rounds: usize,
}

/// Connects of a round are fewer than half of its ports: the kernel takes every other one first.
const MEASURES: [Measure; 4] = [
    Measure {
        id: "rr",
        unit: "us",
        port: PORT,
        count: 3000,
        rounds: ROUNDS,
    },
    Measure {
        id: "crr",
        unit: "us",
        port: PORT,
        count: 150,
        rounds: ROUNDS,
    },
    Measure {
        id: "udp_rr",
        unit: "us",
        port: PORT,
        count: 3000,
        rounds: ROUNDS,
    },
    Measure {
        id: "bulk",
        unit: "Gbit/s",
        port: BULK_PORT,
        count: 256,
        rounds: ROUNDS / 2,
    },
];

impl Measure {
    /// Whether the path is one of this figure: sockets are translated for TCP only, and ports are
    /// mixed by connects only.
    fn has(&self, path: &Path) -> bool {
        match self.id {
            "crr" => true,
            "udp_rr" => path.other.is_none() && path.name != "clusterip.socket",
            _ => path.other.is_none(),
        }
    }
}

/// min, median and p99 of one round; of `bulk` one figure.
type Round = [f64; 3];

/// `rr`, `crr`, `udp_rr` and `bulk` on each path.
pub(super) fn run(cluster: &Cluster) {
    let mut guards = Guards::default();
    let mut paths = path::bare(cluster, &mut guards);
    paths.extend(path::peers(cluster, &mut guards));
    paths.extend(path::pods(cluster, &mut guards));
    // Paths of one client share its ports.
    let slots: Vec<u16> = (0..paths.len())
        .map(|at| {
            paths[..at]
                .iter()
                .filter(|path| path.has_client_of(&paths[at]))
                .count() as u16
        })
        .collect();
    for measure in &MEASURES {
        let mut rounds: Vec<Vec<Round>> = paths.iter().map(|_| Vec::new()).collect();
        for round in 0..measure.rounds {
            eprintln!("{}: round {} of {}", measure.id, round + 1, measure.rounds);
            for ((path, slot), rounds) in paths.iter().zip(&slots).zip(&mut rounds) {
                if measure.has(path) {
                    let first = FIRST_PORT + slot * PATH_PORTS + round as u16 * ROUND_PORTS;
                    rounds.push(one(measure, path, (first, first + ROUND_PORTS - 1)));
                }
            }
        }
        for at in 0..paths.len() {
            if !rounds[at].is_empty() {
                print(measure, at, &paths, &rounds);
            }
        }
    }
    translated_as_they_say(cluster, &paths, &slots);
    for name in path::PODS {
        cluster.foil(&["delete", "pod", name]).success();
        objects::gone(cluster, name);
    }
}

fn one(measure: &Measure, path: &Path, ports: (u16, u16)) -> Round {
    let target = |address: &str| format!("{address}:{}", measure.port);
    let row = wait_until(&format!("{} of {}", measure.id, path.name), || {
        let mut command = path.client(ports);
        let count = match (&path.other, measure.id) {
            (Some(other), _) => {
                command.args(["mixed", &target(&path.address), &target(other)]);
                command.args(["--from", &ports.0.to_string()]);
                ["-n".to_owned(), (measure.count / 2).to_string()]
            }
            (None, "bulk") => {
                command.args([measure.id, &target(&path.address)]);
                ["--mib".to_owned(), measure.count.to_string()]
            }
            (None, _) => {
                command.args([measure.id, &target(&path.address)]);
                ["-n".to_owned(), measure.count.to_string()]
            }
        };
        let out = process::run(command.args(count));
        if out.code != 0 {
            return Err(out.stderr);
        }
        serde_json::from_str::<Value>(&out.stdout).map_err(|error| format!("{error}: {out:?}"))
    });
    ["min", "median", "p99"].map(|key| row[key].as_f64().unwrap_or_default())
}

/// min of all rounds, median of the rounds' medians and 99th percentiles, all medians, and the
/// median of the ratios to other paths in the same round.
fn print(measure: &Measure, at: usize, paths: &[Path], rounds: &[Vec<Round>]) {
    let (path, mine) = (&paths[at], &rounds[at]);
    let column = |index: usize| mine.iter().map(|round| round[index]).collect::<Vec<_>>();
    let ratio = |to: &str| {
        let to = paths.iter().position(|path| path.name == to)?;
        let pairs = mine.iter().zip(&rounds[to]);
        let ratios: Vec<f64> = pairs.map(|(mine, other)| mine[1] / other[1]).collect();
        Some(json!(sample::rounded(sample::median(&ratios))))
    };
    let bare = if path.other.is_some() {
        "veth.mixed"
    } else {
        "veth"
    };
    let mut varies = vec![("path", json!(path.name))];
    for (key, to) in [
        ("to_veth", Some(bare)),
        (
            "to_forward",
            Some("forward").filter(|_| path.other.is_none()),
        ),
        ("to_direct", path.direct()),
    ] {
        varies.extend(to.and_then(ratio).map(|ratio| (key, ratio)));
    }
    varies.push(("samples", json!(column(1))));
    let smallest = |index: usize| column(index).into_iter().fold(f64::INFINITY, f64::min);
    let (n, figures) = if measure.id == "bulk" {
        (
            mine.len(),
            [
                smallest(1),
                sample::median(&column(1)),
                column(1).into_iter().fold(0.0, f64::max),
            ],
        )
    } else {
        let figures = [
            smallest(0),
            sample::median(&column(1)),
            sample::median(&column(2)),
        ];
        (usize::from(measure.count) * mine.len(), figures)
    };
    println!(
        "{}",
        sample::summary(measure.id, measure.unit, n, figures, &varies)
    );
}

/// Connections that were translated at `connect` have no flow to the service's address, those that
/// were translated packet by packet have.
fn translated_as_they_say(cluster: &Cluster, paths: &[Path], slots: &[u16]) {
    let maps = Maps::open(&cluster.nodes()[0].pins).expect("the node's maps");
    let flows = maps.flows().expect("the flows");
    for (path, slot) in paths.iter().zip(slots) {
        let at_connect = match path.name.as_str() {
            "clusterip.socket" | "clusterip.mixed" => true,
            "clusterip.same" | "clusterip.two" => false,
            _ => continue,
        };
        let service: Ipv4Addr = path.address.parse().expect("an address");
        let first = FIRST_PORT + slot * PATH_PORTS;
        let ports = first..first + PATH_PORTS;
        let translated = flows
            .iter()
            .any(|(key, _)| Ipv4Addr::from(key.dst) == service && ports.contains(&key.sport.get()));
        assert_eq!(translated, !at_connect, "packets of {}", path.name);
    }
}
