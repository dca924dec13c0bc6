//! Driver of `cargo xtask bench cluster`: JSON lines on standard output, progress on the other.
//!
//! Not the measuring, which is the library's `bench`. Started by xtask.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    tests_harness::wait::catch_interrupts();
    let only_dns = std::env::args().nth(1).as_deref() == Some("dns");
    match std::panic::catch_unwind(|| tests_cluster::bench::run(only_dns)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
