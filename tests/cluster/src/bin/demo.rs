//! Driver of `cargo xtask demo`. Exit code 0 only if every check held and nothing is left.
//!
//! Not the steps, which are in the library's `demo`. Started by xtask.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    tests_harness::wait::catch_interrupts();
    // Unwinding runs the guards, so that a failed check leaves nothing behind.
    match std::panic::catch_unwind(tests_cluster::demo::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => {
            println!("\nThe demo failed; everything that it made was removed.");
            ExitCode::FAILURE
        }
    }
}
