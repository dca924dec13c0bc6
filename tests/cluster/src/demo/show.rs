//! How the demo looks: steps, commands with their output, and checks.
//!
//! Called by the demo's steps; it asserts, it decides nothing.

use std::fmt::Display;
use std::process::Command;
use std::time::Instant;
use tests_harness::{Cluster, Output, process};

/// Lines of one command's output that are shown.
const MAX_LINES: usize = 24;

/// Counts what was checked.
#[derive(Debug)]
pub struct Show {
    checks: u32,
    start: Instant,
}

impl Default for Show {
    fn default() -> Self {
        Self {
            checks: 0,
            start: Instant::now(),
        }
    }
}

impl Show {
    /// The heading of a step.
    pub fn step(&mut self, number: u32, title: &str) {
        let seconds = self.start.elapsed().as_secs();
        println!("\n=== Step {number} ({seconds} s): {title}\n");
    }

    /// A sentence between commands.
    pub fn say(&mut self, text: impl Display) {
        println!("# {text}");
    }

    /// One expectation.
    ///
    /// # Panics
    /// If it does not hold; `seen` is what there was instead.
    pub fn check(&mut self, what: &str, holds: bool, seen: impl Display) {
        assert!(holds, "check failed: {what}\nseen: {seen}");
        println!("  ok  {what}");
        self.checks += 1;
    }

    /// `foil ARGS`, shown; it must succeed.
    ///
    /// # Panics
    /// If it does not.
    pub fn foil(&mut self, cluster: &Cluster, args: &[&str]) -> String {
        self.run(&mut cluster.foil_command(args)).success()
    }

    /// Any command, shown with its output, whatever its exit code.
    pub fn run(&mut self, command: &mut Command) -> Output {
        println!("$ {}", process::line_of(command));
        let out = process::run(command);
        self.print(&out.stdout);
        self.print(&out.stderr);
        out
    }

    /// Output of something, indented, long ones cut in the middle.
    pub fn print(&mut self, text: &str) {
        let lines: Vec<&str> = text.lines().collect();
        let (head, tail) = if lines.len() > MAX_LINES {
            (&lines[..MAX_LINES - 5], &lines[lines.len() - 4..])
        } else {
            (&lines[..], &lines[..0])
        };
        for line in head {
            println!("  {line}");
        }
        if !tail.is_empty() {
            println!(
                "  ... {} lines more ...",
                lines.len() - head.len() - tail.len()
            );
        }
        for line in tail {
            println!("  {line}");
        }
    }

    /// The last line.
    pub fn end(&self) {
        println!(
            "\n{} checks in {} s: all good.",
            self.checks,
            self.start.elapsed().as_secs()
        );
    }
}
