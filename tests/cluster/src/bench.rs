//! What is measured on a whole cluster: round trips, cluster DNS, applied to Ready, resident memory,
//! applying among many services.
//!
//! Paths of round trips alternate within one run, and are also given as ratios of the same
//! round, because machines change their speed for minutes. ns per packet and containers are
//! other programs. Called by `bin/bench-cluster.rs`.

mod apply;
mod dns;
mod memory;
mod path;
mod peer;
mod ready;
mod sample;
mod trip;

use tests_harness::Cluster;

/// A measurement by its name.
type Part = (&'static str, fn(&mut Cluster));

/// The measurements, in the order in which they are made: what a later one leaves behind disturbs
/// no earlier one.
const PARTS: [Part; 5] = [
    ("dns", dns::run),
    ("trip", |cluster| trip::run(cluster)),
    ("ready", |cluster| ready::run(cluster)),
    ("memory", |cluster| memory::run(cluster)),
    ("apply", |cluster| apply::run(cluster)),
];

/// Makes these measurements, or all if none is named, and prints one JSON object a line.
///
/// # Panics
/// If there is none with such a name.
pub fn run(named: &[String]) {
    for name in named {
        assert!(
            PARTS.iter().any(|(part, _)| part == name),
            "no measurement {name}"
        );
    }
    eprintln!("starting a cluster of two nodes");
    let mut cluster = Cluster::start(2);
    cluster.push_images();
    for (part, measure) in PARTS {
        if named.is_empty() || named.iter().any(|name| name == part) {
            measure(&mut cluster);
        }
    }
}
