//! The test program of this crate: runs the cases one after another on one cluster.
//!
//! A harness of its own, because starting a cluster for each case would take most of the time,
//! and because the cluster's guard must run at the end. Its output is libtest's, so that
//! `cargo test` and xtask read it the same way.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;
use tests_cluster::case::{self, CASES};
use tests_harness::Cluster;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let chosen = |name: &str| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    let cases: Vec<_> = CASES.iter().filter(|case| chosen(case.name)).collect();
    if words.iter().any(|word| word == "--list") {
        for case in &cases {
            println!("{}: test", case.name);
        }
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", cases.len());
    if cases.is_empty() {
        println!("\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        return ExitCode::SUCCESS;
    }
    tests_harness::wait::catch_interrupts();
    let start = Instant::now();
    let (passed, failed) = run(&cases);
    println!();
    if !failed.is_empty() {
        println!("failures:");
        for name in &failed {
            println!("    {name}");
        }
    }
    println!(
        "\ntest result: {}. {passed} passed; {} failed; 0 ignored; 0 measured; {} filtered out; \
         finished in {:.1}s",
        if failed.is_empty() { "ok" } else { "FAILED" },
        failed.len(),
        CASES.len() - cases.len(),
        start.elapsed().as_secs_f64()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Number of those that passed, names of those that failed.
fn run(cases: &[&case::Case]) -> (usize, Vec<&'static str>) {
    let mut passed = 0;
    let mut failed = Vec::new();
    let cluster = catch_unwind(case::cluster);
    let Ok(mut cluster) = cluster else {
        println!("the cluster did not start");
        return (0, cases.iter().map(|case| case.name).collect());
    };
    for case in cases {
        let start = Instant::now();
        // A case that failed may leave objects behind; the next one makes its own.
        let outcome = catch_unwind(AssertUnwindSafe(|| (case.run)(&mut cluster)));
        let seconds = start.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                println!("test {} ... ok ({seconds:.1}s)", case.name);
                passed += 1;
            }
            Err(_) => {
                println!("test {} ... FAILED ({seconds:.1}s)", case.name);
                eprintln!("{}", cluster.logs(60));
                failed.push(case.name);
                recover(&mut cluster);
            }
        }
        if tests_harness::wait::interrupted() {
            break;
        }
    }
    (passed, failed)
}

/// Starts what a failed case may have left killed.
fn recover(cluster: &mut Cluster) {
    let recovered = catch_unwind(AssertUnwindSafe(|| cluster.ensure_running()));
    if recovered.is_err() {
        println!("the cluster did not recover; what follows will fail as well");
    }
}
