//! Driver of `cargo xtask bench cluster`: JSON lines on standard output, progress on the other.
//!
//! Not the measuring, which is the library's `bench`. Started by xtask.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    tests_harness::wait::catch_interrupts();
    let named: Vec<String> = std::env::args().skip(1).collect();
    match std::panic::catch_unwind(|| tests_cluster::bench::run(&named)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
