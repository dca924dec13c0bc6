//! What a case works with: the cluster, and a narrator of commands, their output and checks.
//!
//! The demo's narrator prints; the test program's keeps the text for the message of a case
//! that fails. Called by the cases.

use std::fmt::Display;
use std::process::Command;
use std::time::Instant;
use tests_harness::{Cluster, Output, process, wait};

/// Lines of one command's output that are shown.
const MAX_LINES: usize = 24;

/// Shows or keeps what is done, and counts what was checked.
#[derive(Debug)]
pub struct Narrator {
    /// `None`: printed at once.
    kept: Option<String>,
    checks: u32,
    start: Instant,
}

impl Narrator {
    /// Prints, as the demo does.
    pub fn printing() -> Self {
        Self::new(None)
    }

    /// Keeps, as the test program does.
    pub fn keeping() -> Self {
        Self::new(Some(String::new()))
    }

    fn new(kept: Option<String>) -> Self {
        Self {
            kept,
            checks: 0,
            start: Instant::now(),
        }
    }

    /// What was kept.
    pub fn text(&self) -> &str {
        self.kept.as_deref().unwrap_or_default()
    }

    /// The heading of a step.
    pub fn step(&mut self, number: usize, title: &str) {
        let seconds = self.start.elapsed().as_secs();
        self.line(format!("\n=== Step {number} ({seconds} s): {title}\n"));
    }

    /// A sentence between commands.
    pub fn say(&mut self, text: impl Display) {
        self.line(format!("# {text}"));
    }

    /// One expectation.
    ///
    /// # Panics
    /// If it does not hold; `seen` is what there was instead.
    pub fn check(&mut self, what: &str, holds: bool, seen: impl Display) {
        assert!(holds, "check failed: {what}\nseen: {seen}");
        self.line(format!("  ok  {what}"));
        self.checks += 1;
    }

    /// A command as it would be typed.
    pub fn command(&mut self, line: impl Display) {
        self.line(format!("$ {line}"));
    }

    /// Any command, shown with its output; any exit code is accepted.
    pub fn run(&mut self, command: &mut Command) -> Output {
        self.command(process::line_of(command));
        let out = process::run(command);
        self.output(&out.stdout);
        self.output(&out.stderr);
        out
    }

    /// Output of something, indented, long ones cut in the middle.
    pub fn output(&mut self, text: &str) {
        let lines: Vec<&str> = text.lines().collect();
        let (head, tail) = if lines.len() > MAX_LINES {
            (&lines[..MAX_LINES - 5], &lines[lines.len() - 4..])
        } else {
            (&lines[..], &lines[..0])
        };
        for line in head {
            self.line(format!("  {line}"));
        }
        if !tail.is_empty() {
            let cut = lines.len() - head.len() - tail.len();
            self.line(format!("  ... {cut} lines more ..."));
        }
        for line in tail {
            self.line(format!("  {line}"));
        }
    }

    /// The last line.
    pub fn end(&mut self) {
        let seconds = self.start.elapsed().as_secs();
        self.line(format!(
            "\n{} checks in {seconds} s: all good.",
            self.checks
        ));
    }

    fn line(&mut self, line: String) {
        match &mut self.kept {
            None => println!("{line}"),
            Some(kept) => {
                kept.push_str(&line);
                kept.push('\n');
            }
        }
    }
}

/// A case's cluster and narrator.
#[derive(Debug)]
pub struct Scene<'a> {
    pub cluster: &'a mut Cluster,
    pub narrator: &'a mut Narrator,
}

impl Scene<'_> {
    /// `foil ARGS`, shown; it must succeed. Gives its standard output.
    ///
    /// # Panics
    /// If it does not.
    pub fn foil(&mut self, args: &[&str]) -> String {
        self.foil_may_fail(args).success()
    }

    /// `foil ARGS`, shown.
    pub fn foil_may_fail(&mut self, args: &[&str]) -> Output {
        let mut command = self.cluster.foil_command(args);
        self.narrator.run(&mut command)
    }

    /// `foil apply -f -` with a manifest that is shown as `what`.
    pub fn apply_text(&mut self, manifest: &str, what: &str) -> Output {
        self.narrator
            .command(format!("foil apply -f - <<< '{what}'"));
        let mut command = self.cluster.foil_command(&["apply", "-f", "-"]);
        let out = process::run_with(&mut command, Some(manifest.as_bytes()), wait::GENEROUS);
        self.narrator.output(&out.stdout);
        self.narrator.output(&out.stderr);
        out
    }

    /// Applies a file of `tests/manifests`, shown. Gives what `foil` said.
    ///
    /// # Panics
    /// If it is refused.
    pub fn apply(&mut self, file: &str) -> String {
        self.foil(&["apply", "-f", &format!("tests/manifests/{file}.yaml")])
    }

    /// A sentence between commands.
    pub fn say(&mut self, text: impl Display) {
        self.narrator.say(text);
    }

    /// One expectation.
    ///
    /// # Panics
    /// If it does not hold; `seen` is what there was instead.
    pub fn check(&mut self, what: &str, holds: bool, seen: impl Display) {
        self.narrator.check(what, holds, seen);
    }
}
