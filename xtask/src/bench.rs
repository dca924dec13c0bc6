//! `cargo xtask bench`: runs the measuring programs, prints one table, keeps the JSON lines.
//!
//! The programs are binaries of the test crates (they need the harness), print one JSON
//! object a line, and say on standard error what they do. Nothing is measured here.

use crate::build::{self, Profile};
use crate::command;
use crate::setup::{self, For};
use crate::steps::Steps;
use anyhow::{Context as _, bail};
use clap::ValueEnum;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to measure; all if nothing is named
    #[arg(value_enum)]
    what: Vec<What>,
    /// Also write one JSON object a line to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What can be named.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// The data plane: ns per packet, round trips and streams beside bare veth and kube-proxy's rules
    Datapath,
    /// Create, start, exit, delete of a container
    Container,
    /// Cluster DNS, round trips, applied to Ready, resident memory, applying among many services
    Cluster,
    /// ns per packet by test_run alone
    Pkt,
    /// Of the cluster, cluster DNS alone
    Dns,
    /// Of the cluster, applying among many services alone
    Apply,
}

/// A measuring program, a binary of one of the test crates, and its arguments.
type Program = (&'static str, &'static [&'static str]);

/// Without a name.
const ALL: [What; 3] = [What::Pkt, What::Container, What::Cluster];

impl What {
    /// The programs that measure it.
    fn programs(self) -> &'static [Program] {
        match self {
            Self::Datapath => &[("bench-pkt", &[]), ("bench-cluster", &["trip"])],
            Self::Container => &[("bench-container", &[])],
            Self::Cluster => &[("bench-cluster", &[])],
            Self::Pkt => &[("bench-pkt", &[])],
            Self::Dns => &[("bench-cluster", &["dns"])],
            Self::Apply => &[("bench-cluster", &["apply"])],
        }
    }
}

pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<bool> {
    let mut steps = Steps::default();
    let tools = setup::run(root, For::Test, &mut steps)?;
    for name in ["crun", "runc"] {
        if crate::packages::program(name).is_none() {
            eprintln!(
                "{name} is not installed: its figure will be missing (apt-get install {name})"
            );
        }
    }
    let bin = build::with(root, &tools, Profile::Release, &mut steps)?;
    let mut file = match &options.json {
        Some(path) => {
            Some(File::create(path).with_context(|| format!("create {}", path.display()))?)
        }
        None => None,
    };
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    let named = match options.what.as_slice() {
        [] => &ALL[..],
        named => named,
    };
    let mut programs: Vec<Program> = Vec::new();
    for program in named.iter().flat_map(|what| what.programs()) {
        if !programs.contains(program) {
            programs.push(*program);
        }
    }
    for (binary, arguments) in programs {
        let measured = measure(root, &bin, (binary, arguments), |line, row| {
            if let Some(file) = &mut file {
                writeln!(file, "{line}").context("write JSON lines")?;
            }
            rows.push(row);
            Ok(())
        });
        if let Err(error) = measured {
            eprintln!("{binary}: {error:#}");
            failed.push(binary);
        }
    }
    print!("{}", table(&rows));
    if !failed.is_empty() {
        println!("failed: {}", failed.join(" "));
    }
    Ok(failed.is_empty())
}

fn measure(
    root: &Path,
    bin: &Path,
    (binary, arguments): Program,
    mut keep: impl FnMut(&str, Map<String, Value>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut program = Command::new(bin.join(binary));
    program
        .args(arguments)
        .env("HYDROFOIL_BIN", bin)
        .current_dir(root)
        .stdout(Stdio::piped());
    eprintln!("$ {}", command::line_of(&program));
    let mut child = program.spawn().with_context(|| format!("start {binary}"))?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.with_context(|| format!("output of {binary}"))?;
            let row: Map<String, Value> = serde_json::from_str(&line)
                .with_context(|| format!("{binary} printed {line:?}"))?;
            keep(&line, row)?;
        }
    }
    let status = child.wait().with_context(|| format!("end of {binary}"))?;
    if !status.success() {
        bail!("ended with {status}");
    }
    Ok(())
}

/// One line per row; what varies is written as `key=value` behind the id.
fn table(rows: &[Map<String, Value>]) -> String {
    // Raw samples are for the JSON lines.
    let fixed = ["id", "unit", "n", "min", "median", "p99", "samples"];
    let text = |value: Option<&Value>| match value {
        None => String::new(),
        Some(value) => match (value.as_str(), value.as_f64()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(number)) if number.fract() == 0.0 => format!("{number:.0}"),
            (None, Some(number)) => format!("{number:.2}"),
            (None, None) => value.to_string(),
        },
    };
    let mut out = format!(
        "{:<44} {:>6} {:>6} {:>12} {:>12} {:>12}\n",
        "id", "unit", "n", "min", "median", "p99"
    );
    for row in rows {
        let mut id = text(row.get("id"));
        for (key, value) in row.iter().filter(|(key, _)| !fixed.contains(&key.as_str())) {
            id.push_str(&format!(" {key}={}", text(Some(value))));
        }
        let [unit, n, min, median, p99] =
            ["unit", "n", "min", "median", "p99"].map(|key| text(row.get(key)));
        out.push_str(&format!(
            "{id:<44} {unit:>6} {n:>6} {min:>12} {median:>12} {p99:>12}\n"
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_show_what_varies() {
        let line =
            r#"{"id":"rr","unit":"us","n":100,"min":6.5,"median":7,"p99":9.125,"path":"veth"}"#;
        let row: Map<String, Value> = serde_json::from_str(line).expect("JSON");
        let text = table(&[row]);
        let words: Vec<&str> = text
            .lines()
            .nth(1)
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        assert_eq!(words, ["rr", "path=veth", "us", "100", "6.50", "7", "9.12"]);
    }
}
