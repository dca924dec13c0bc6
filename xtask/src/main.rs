//! All automation of the repository: `cargo xtask COMMAND`.
//!
//! Subcommands are a line each; what they do is in the file of the same name.
//! Exit codes: 0 done, 1 a step failed, 2 the machine lacks something (printed, with the commands).
#![forbid(unsafe_code)]

mod archive;
mod bench;
mod build;
mod circles;
mod command;
mod count;
mod demo;
mod deps;
mod host;
mod initramfs;
mod kernels;
mod machine;
mod modules;
mod object;
mod packages;
mod programs;
mod setup;
mod source;
mod steps;
mod test;
mod tidy;

use build::Profile;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Builds, tests, shows and measures Hydrofoil.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building, testing and the demo need, saying so first
    Setup {
        /// Only list the missing packages and tools
        #[arg(long)]
        check: bool,
    },
    /// Build binaries and BPF object into target/release
    Build {
        /// Into target/debug instead, where tests and demo look for them
        #[arg(long)]
        dev: bool,
    },
    /// Set up, build, run the main job on two nodes in network namespaces, clean up
    Demo,
    /// Set up, build, run every check and test; last line 'N passed, N failed'
    Test(test::Options),
    /// What CI runs: the same as `test`
    Ci,
    /// Run the datapath and node tiers in small machines with Debian's kernels; needs no KVM
    Kernels(kernels::Options),
    /// Measure; one table, and JSON lines for `--json`
    Bench(bench::Options),
    /// Check names, sizes, dependencies and unsafe code of the source
    Tidy,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let root = workspace();
    let done = match arguments.task {
        Task::Setup { check: true } => setup::check(&root),
        Task::Setup { check: false } => {
            setup::run(&root, setup::For::Test, &mut steps::Steps::default()).map(|_| true)
        }
        Task::Build { dev } => build::run(&root, Profile::of(dev)).map(|_| true),
        Task::Demo => demo::run(&root),
        Task::Test(options) => test::run(&root, &options),
        Task::Ci => test::run(&root, &test::Options::default()),
        Task::Kernels(options) => kernels::run(&root, &options),
        Task::Bench(options) => bench::run(&root, &options),
        Task::Tidy => tidy::run(&root),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            let lacks = error.downcast_ref::<host::Missing>().is_some();
            ExitCode::from(if lacks { 2 } else { 1 })
        }
    }
}

/// Root folder of the workspace: the parent of this crate's.
fn workspace() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or_else(|| here.clone(), PathBuf::from)
}
