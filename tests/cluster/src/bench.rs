//! What is measured on a whole cluster: round trips, cluster DNS, applied to Ready, resident memory,
//! applying among many services.
//!
//! Paths of round trips alternate within one run, and are also given as ratios of the same
//! round, because machines change their speed for minutes. ns per packet and containers are
//! other programs. Called by `bin/bench-cluster.rs`.

mod apply;
mod dns;
mod memory;
mod ready;
mod sample;
mod trip;

use tests_harness::Cluster;

/// Measures everything, or cluster DNS alone, and prints one JSON object a line.
pub fn run(only_dns: bool) {
    eprintln!("starting a cluster of two nodes");
    let mut cluster = Cluster::start(2);
    cluster.push_images();
    dns::run(&mut cluster);
    if only_dns {
        return;
    }
    trip::run(&cluster);
    ready::run(&cluster);
    memory::run(&cluster);
    apply::run(&cluster);
}
