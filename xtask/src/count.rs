//! Runs test programs and adds up the result lines of libtest.
//!
//! Called by `test`.

use crate::command;
use anyhow::Context as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;

/// Numbers of tests.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Counts {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) ignored: u32,
}

pub(crate) const ONE_PASSED: Counts = Counts {
    passed: 1,
    failed: 0,
    ignored: 0,
};
pub(crate) const ONE_FAILED: Counts = Counts {
    passed: 0,
    failed: 1,
    ignored: 0,
};

impl Counts {
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }
}

/// Runs a program and passes its output on as it comes.
pub(crate) fn run(test: &mut Command) -> anyhow::Result<Counts> {
    eprintln!("$ {}", command::line_of(test));
    let mut counts = Counts::default();
    let status = lines(
        test,
        |line| {
            println!("{line}");
            std::io::stdout().flush().context("own output")
        },
        &mut counts,
    )?;
    Ok(judged(status, counts))
}

/// Runs programs of which none needs what another one needs, some at a time, and passes the
/// output of each on in one piece when it has ended. Most of their time they wait.
pub(crate) fn run_beside(tests: Vec<Command>) -> anyhow::Result<Counts> {
    let at_once = thread::available_parallelism().map_or(2, usize::from) + 1;
    let queue = Mutex::new(tests.into_iter());
    let next = || queue.lock().ok().and_then(|mut queue| queue.next());
    let worker = || {
        let mut total = Counts::default();
        while let Some(mut test) = next() {
            let mut counts = Counts::default();
            let mut text = format!("$ {}\n", command::line_of(&test));
            let status = lines(
                &mut test,
                |line| {
                    text.push_str(line);
                    text.push('\n');
                    Ok(())
                },
                &mut counts,
            )?;
            print!("{text}");
            total = total.and(judged(status, counts));
        }
        anyhow::Ok(total)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(worker)).collect();
        let mut total = Counts::default();
        for worker in workers {
            let counts = worker.join();
            let counts = counts.map_err(|_panic| anyhow::anyhow!("a thread that runs tests ended"));
            total = total.and(counts??);
        }
        Ok(total)
    })
}

/// Runs a program to its end, hands on the lines that it prints, and counts results.
fn lines(
    test: &mut Command,
    mut each: impl FnMut(&str) -> anyhow::Result<()>,
    counts: &mut Counts,
) -> anyhow::Result<ExitStatus> {
    let mut child = test.stdout(Stdio::piped()).spawn().context("start tests")?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("output of tests")?;
            // Result lines of crates without tests would bury the others.
            let empty = line.starts_with("running 0 tests")
                || line.contains("ok. 0 passed; 0 failed; 0 ignored");
            if !empty && !line.is_empty() {
                each(&line)?;
            }
            if let Some(result) = result_of(&line) {
                *counts = counts.and(result);
            }
        }
    }
    child.wait().context("end of tests")
}

/// A program that failed without a failed test counts as one.
fn judged(status: ExitStatus, mut counts: Counts) -> Counts {
    if !status.success() && counts.failed == 0 {
        println!("the tests ended with {status} and named no failed one");
        counts.failed = 1;
    }
    counts
}

/// `test result: ok. 10 passed; 0 failed; 1 ignored; ...`
fn result_of(line: &str) -> Option<Counts> {
    let rest = line.strip_prefix("test result: ")?;
    let mut counts = Counts::default();
    for part in rest.split(['.', ';']) {
        let mut words = part.split_whitespace();
        let (Some(number), Some(word)) = (words.next(), words.next()) else {
            continue;
        };
        let Ok(number) = number.parse() else { continue };
        match word {
            "passed" => counts.passed = number,
            "failed" => counts.failed = number,
            "ignored" => counts.ignored = number,
            _ => {}
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_run_beside_each_other_are_all_counted() {
        let shell = |script: &str| {
            let mut shell = Command::new("sh");
            shell.args(["-c", script]);
            shell
        };
        let line = "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured";
        let mut all: Vec<Command> = (0..5).map(|_| shell(&format!("echo '{line}'"))).collect();
        all.push(shell("exit 3"));
        let counts = run_beside(all).expect("counts");
        let expected = Counts {
            passed: 10,
            failed: 1,
            ignored: 5,
        };
        assert_eq!(counts, expected);
    }

    #[test]
    fn result_lines() {
        let ok = "test result: ok. 10 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.24s";
        assert_eq!(
            result_of(ok),
            Some(Counts {
                passed: 10,
                failed: 0,
                ignored: 2
            })
        );
        let failed = "test result: FAILED. 9 passed; 1 failed; 0 ignored; 0 measured";
        assert_eq!(
            result_of(failed),
            Some(Counts {
                passed: 9,
                failed: 1,
                ignored: 0
            })
        );
        assert_eq!(result_of("test netns::tests::x ... ok"), None);
    }
}
