//! `cargo xtask test`: every check and test, counted; last line `N passed, N failed`.
//!
//! fmt, clippy and tidy count as one check each; test programs are counted by the result
//! lines of libtest. A part that does not even start counts as one failure.
//! Called by `main`; CI runs exactly this.

use crate::build::{self, Profile, SELECTION};
use crate::count::{self, Counts, ONE_FAILED, ONE_PASSED};
use crate::programs::{self, Program};
use crate::setup::{self, For};
use crate::steps::{Kind, MESSAGES, Steps};
use crate::{command, kernels, machine, tidy};
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Parts to run; all but `kernels` if none is named
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Only tests whose name contains this
    #[arg(long, short)]
    filter: Option<String>,
}

/// In the order in which they run: the quick ones first.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Format
    Fmt,
    /// Names, sizes, dependencies
    Tidy,
    /// Lints
    Clippy,
    /// Plans, logic, parsers: all crates but those below
    Unit,
    /// The BPF programs, by test_run
    Datapath,
    /// One node on the real kernel
    Node,
    /// Datapath and node in small machines with Debian's kernels and cgroup version 2 alone
    Kernels,
    /// Two nodes and a control plane
    Cluster,
}

impl Part {
    /// As it is typed.
    fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it runs what `build` makes, as root. The others need cargo, a C compiler, and
    /// libseccomp's headers for `agent-shim`; fmt and tidy need cargo alone.
    fn runs_binaries(self) -> bool {
        match self {
            Self::Fmt | Self::Tidy | Self::Clippy | Self::Unit => false,
            Self::Datapath | Self::Node | Self::Kernels | Self::Cluster => true,
        }
    }
}

pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<bool> {
    let parts: Vec<Part> = Part::value_variants()
        .iter()
        .copied()
        .filter(|part| match options.parts.as_slice() {
            // Without KVM it takes minutes, and it downloads a kernel: only when it is named.
            [] => *part != Part::Kernels,
            parts => parts.contains(part),
        })
        .collect();
    let mut steps = Steps::default();
    let bin = if parts.iter().any(|part| part.runs_binaries()) {
        let tools = setup::run(root, For::Test, &mut steps)?;
        build::with(root, &tools, Profile::Dev, &mut steps)?
    } else {
        PathBuf::new()
    };
    let mut total = Counts::default();
    let mut failed = Vec::new();
    let mut programs = None;
    for part in parts {
        let name = part.name();
        println!("\n== {name}");
        let filter = options.filter.as_deref();
        let counts = run_part(root, &bin, part, filter, &mut programs, &mut steps);
        let counts = counts.unwrap_or_else(|error| {
            println!("{name}: {error:#}");
            ONE_FAILED
        });
        println!(
            "== {name}: {} passed, {} failed",
            counts.passed, counts.failed
        );
        if counts.failed > 0 {
            failed.push(name);
        }
        total = total.and(counts);
    }
    steps.print();
    println!();
    if total.ignored > 0 {
        println!("{} ignored", total.ignored);
    }
    if !failed.is_empty() {
        println!("failed in: {}", failed.join(" "));
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(total.failed == 0)
}

fn run_part(
    root: &Path,
    bin: &Path,
    part: Part,
    filter: Option<&str>,
    programs: &mut Option<Vec<Program>>,
    steps: &mut Steps,
) -> anyhow::Result<Counts> {
    let cargo = |args: &[&str]| {
        let mut cargo = command::cargo(root, args);
        cargo.env("HYDROFOIL_BIN", bin);
        cargo
    };
    let name = part.name();
    let counts = match part {
        Part::Fmt => {
            component("fmt")?;
            let mut fmt = cargo(&["fmt", "--all", "--check"]);
            return steps
                .time(&name, Kind::Ours, || command::run(&mut fmt))
                .map(|()| ONE_PASSED);
        }
        Part::Tidy => {
            let passed = steps.time(&name, Kind::Ours, || tidy::run(root))?;
            return Ok(if passed { ONE_PASSED } else { ONE_FAILED });
        }
        Part::Clippy => {
            component("clippy")?;
            let mut clippy = cargo(&["clippy", "--workspace", "--all-targets", "--locked"]);
            clippy.args([MESSAGES, "--", "-D", "warnings"]);
            return steps.compile(root, &name, &mut clippy).map(|_| ONE_PASSED);
        }
        Part::Unit if filter.is_none() => {
            let mut test = cargo(&["test", "--doc", "--no-fail-fast"]);
            test.args(SELECTION);
            steps.time("documentation", Kind::Tests, || count::run(&mut test))?
        }
        Part::Unit | Part::Datapath | Part::Node | Part::Kernels | Part::Cluster => {
            Counts::default()
        }
    };
    let programs = match programs {
        Some(programs) => programs,
        None => programs.insert(programs::compile(root, &SELECTION, steps)?),
    };
    if part == Part::Kernels {
        if let Some(why) = machine::missing() {
            println!("ignored: {why}");
            return Ok(Counts {
                ignored: 1,
                ..Counts::default()
            });
        }
        let options = kernels::Options::filtered(filter);
        let (passed, failed) = kernels::boot_all(root, bin, programs, &options, steps)?;
        return Ok(Counts {
            passed,
            failed,
            ignored: 0,
        });
    }
    let tests = programs
        .iter()
        .filter(|program| part_of(&program.folder) == part)
        .map(|program| {
            let mut test = program.command(root);
            test.env("HYDROFOIL_BIN", bin).args(filter);
            test
        });
    let done = steps.time(&name, Kind::Tests, || {
        if part == Part::Unit {
            return count::run_beside(tests.collect());
        }
        // Tests of the other tiers load the machine: one program at a time.
        let mut total = Counts::default();
        for mut test in tests {
            total = total.and(count::run(&mut test)?);
        }
        Ok(total)
    })?;
    Ok(counts.and(done))
}

/// Which part a crate's tests belong to.
fn part_of(folder: &str) -> Part {
    match folder {
        "tests/datapath" => Part::Datapath,
        "tests/node" => Part::Node,
        "tests/cluster" => Part::Cluster,
        _ => Part::Unit,
    }
}

/// rustup's minimal profile lacks both.
fn component(name: &str) -> anyhow::Result<()> {
    let there = command::succeeds(Command::new("cargo").args([name, "--version"]));
    if there {
        return Ok(());
    }
    let component = if name == "fmt" { "rustfmt" } else { name };
    eprintln!("Missing: rustup's component {component}. Installing it now.");
    command::run(Command::new("rustup").args(["component", "add", component]))
}
