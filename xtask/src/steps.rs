//! Where the time of a task goes: a table of its steps, printed at the end.
//!
//! A compilation is divided between dependencies and our crates by the messages of cargo: the
//! time up to a message counts for the crate that the message says is finished. With two
//! compilers at work this is an estimate; the totals are exact.
//! Filled by `setup`, `build`, `programs` and `test`; printed by the tasks.

use crate::command;
use anyhow::{Context as _, bail};
use serde_json::Value;
use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a step's time is spent on; a column of the table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Packages, and programs that are compiled to build with.
    Tools,
    /// Compiling other people's crates.
    Dependencies,
    /// Compiling and checking our crates.
    Ours,
    /// Running tests.
    Tests,
}

const KINDS: [(Kind, &str); 4] = [
    (Kind::Tools, "tools"),
    (Kind::Dependencies, "dependencies"),
    (Kind::Ours, "ours"),
    (Kind::Tests, "tests"),
];

/// Makes cargo print a message for each crate that it has compiled.
pub(crate) const MESSAGES: &str = "--message-format=json-render-diagnostics";

/// The steps so far, in their order.
#[derive(Default)]
pub(crate) struct Steps(Vec<(String, Kind, Duration)>);

impl Steps {
    /// Runs a step, and notes its time also if it fails.
    pub(crate) fn time<T>(&mut self, name: &str, kind: Kind, step: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = step();
        self.add(name, kind, start.elapsed());
        done
    }

    fn add(&mut self, name: &str, kind: Kind, time: Duration) {
        match self.0.iter_mut().find(|row| row.0 == name && row.1 == kind) {
            Some(row) => row.2 += time,
            None => self.0.push((name.to_owned(), kind, time)),
        }
    }

    /// Prints the table, unless nothing took time.
    pub(crate) fn print(&self) {
        if self.0.iter().any(|row| row.2 > Duration::from_secs(1)) {
            println!("\nWhere the time went:\n{self}");
        }
    }

    /// Runs a command of cargo that compiles with [`MESSAGES`], and gives its messages.
    pub(crate) fn compile(
        &mut self,
        root: &Path,
        name: &str,
        cargo: &mut Command,
    ) -> anyhow::Result<Vec<Value>> {
        eprintln!("$ {}", command::line_of(cargo));
        let mut messages = Vec::new();
        let mut last = Instant::now();
        let mut child = cargo
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start cargo")?;
        let output = child.stdout.take().context("output of cargo")?;
        for line in BufReader::new(output).lines() {
            let line = line.context("output of cargo")?;
            let message: Value = serde_json::from_str(&line).context("output of cargo")?;
            if message["reason"] == "compiler-artifact" && message["fresh"] != true {
                let kind = kind_of(root, &message);
                self.add(name, kind, last.elapsed());
                last = Instant::now();
            }
            messages.push(message);
        }
        let status = child.wait().context("end of cargo")?;
        self.add(name, Kind::Ours, last.elapsed());
        if !status.success() {
            bail!("`{}` failed ({status})", command::line_of(cargo));
        }
        Ok(messages)
    }
}

/// Whose crate a message of cargo is about.
fn kind_of(root: &Path, message: &Value) -> Kind {
    let package = message["package_id"].as_str().unwrap_or_default();
    if package.starts_with(&format!("path+file://{}", root.display())) {
        Kind::Ours
    } else {
        Kind::Dependencies
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<&str> = Vec::new();
        for (name, ..) in &self.0 {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        let seconds = |name: Option<&str>, kind: Option<Kind>| -> u64 {
            let rows = self.0.iter().filter(|(of, is, _)| {
                name.is_none_or(|name| name == of) && kind.is_none_or(|kind| kind == *is)
            });
            let sum: Duration = rows.map(|row| row.2).sum();
            (sum + Duration::from_millis(500)).as_secs()
        };
        write!(f, "{:<16}", "seconds")?;
        for (_, name) in KINDS {
            write!(f, "{name:>14}")?;
        }
        writeln!(f, "{:>14}", "all")?;
        let mut line = |title: &str, name: Option<&str>| {
            write!(f, "{title:<16}")?;
            for (kind, _) in KINDS {
                match seconds(name, Some(kind)) {
                    0 => write!(f, "{:>14}", "")?,
                    some => write!(f, "{some:>14}")?,
                }
            }
            writeln!(f, "{:>14}", seconds(name, None))
        };
        // A step that had nothing to do would only be noise.
        for name in names.iter().filter(|name| seconds(Some(name), None) > 0) {
            line(name, Some(name))?;
        }
        line("total", None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_a_line_and_its_kinds_are_columns() {
        let mut steps = Steps::default();
        let seconds = Duration::from_secs;
        steps.add("binaries", Kind::Dependencies, seconds(100));
        steps.add("binaries", Kind::Ours, seconds(20));
        steps.add("binaries", Kind::Dependencies, seconds(1));
        steps.add("fmt", Kind::Ours, Duration::from_millis(300));
        steps.add("unit", Kind::Tests, seconds(9));
        let text = steps.to_string();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines,
            [
                vec!["binaries", "101", "20", "121"],
                vec!["unit", "9", "9"],
                vec!["total", "101", "20", "9", "130"]
            ]
        );
    }

    #[test]
    fn whose_crate_it_is() {
        let message =
            |id: &str| serde_json::json!({ "reason": "compiler-artifact", "package_id": id });
        let root = Path::new("/w");
        let ours = message("path+file:///w/agent/plan#agent-plan@0.1.0");
        assert!(kind_of(root, &ours) == Kind::Ours);
        let other = message("registry+https://github.com/rust-lang/crates.io-index#syn@2.0.1");
        assert!(kind_of(root, &other) == Kind::Dependencies);
    }
}
