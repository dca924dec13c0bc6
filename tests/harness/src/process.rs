//! Child processes: run one to its end with a limit, or keep one as a guard with a log file.
//!
//! Kills by pid of our own child only. Called by the cluster builder and by tests.

use crate::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// What a finished command said.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; 128 + signal number when a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Standard output of a command that must have succeeded.
    ///
    /// # Panics
    /// With all that it said, if its exit code is not 0.
    pub fn success(self) -> String {
        assert_eq!(
            self.code, 0,
            "`{}` failed\n--- stdout\n{}--- stderr\n{}",
            self.command, self.stdout, self.stderr
        );
        self.stdout
    }
}

/// Runs to the end, within [`wait::GENEROUS`].
///
/// # Panics
/// If it cannot be started or does not end.
pub fn run(command: &mut Command) -> Output {
    run_with(command, None, wait::GENEROUS)
}

/// [`run`], with bytes for standard input and a limit of one's own.
///
/// # Panics
/// If it cannot be started or does not end; the child is killed then.
pub fn run_with(command: &mut Command, input: Option<&[u8]>, limit: Duration) -> Output {
    let line = line_of(command);
    let stdin = if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("start `{line}`: {error}"));
    if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
        let input = input.to_vec();
        // A command that does not read its input closes the pipe; that is its affair.
        std::thread::spawn(move || pipe.write_all(&input).ok());
    }
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let ended = wait::poll_for(limit, wait::FINE, || {
        child.try_wait().expect("wait for a child")
    });
    let Some(status) = ended else {
        child.kill().ok();
        child.wait().ok();
        panic!(
            "`{line}` did not end within {limit:?}\n--- stdout\n{}--- stderr\n{}",
            stdout.join().unwrap_or_default(),
            stderr.join().unwrap_or_default()
        );
    };
    Output {
        command: line,
        code: code_of(status),
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).ok();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn code_of(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// The command line as one would type it, without the `nsenter` in front.
pub fn line_of(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned()),
    );
    if words[0] == "nsenter" {
        words.drain(..2);
    }
    words[0] = Path::new(&words[0]).file_name().map_or_else(
        || words[0].clone(),
        |name| name.to_string_lossy().into_owned(),
    );
    words
        .into_iter()
        .map(|word| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
            if !word.is_empty() && word.chars().all(plain) {
                word
            } else {
                format!("'{word}'")
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// A running child with its output in a log file; ended in `Drop`.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it; standard output and error are appended to `log`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Self {
        let out = append(log);
        let err = out.try_clone().expect("second handle of a log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|error| panic!("start {name}: {error}"));
        Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Everything that it wrote so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Sends a signal; a process that is gone is no error.
    pub fn signal(&self, signal: Signal) {
        let Ok(pid) = i32::try_from(self.child.id()) else {
            return;
        };
        kill(Pid::from_raw(pid), signal).ok();
    }

    /// SIGKILL, as a crash would, and wait for its end.
    pub fn kill(mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// SIGTERM, and the exit code.
    ///
    /// # Panics
    /// If it does not end.
    pub fn terminate(mut self) -> i32 {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Its exit code, once it has ended by itself.
    ///
    /// # Panics
    /// If it does not end within [`wait::GENEROUS`].
    pub fn wait(&mut self) -> i32 {
        let name = self.name.clone();
        wait::wait_until(&format!("end of {name}"), || match self.child.try_wait() {
            Ok(Some(status)) => Ok(code_of(status)),
            Ok(None) => Err("still running".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// The last `lines` lines of its log, indented, for a failure's message.
    pub fn tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.is_running() {
            return;
        }
        self.signal(Signal::SIGTERM);
        let ended = || (!self.is_running()).then_some(());
        wait::poll_for(Duration::from_secs(3), wait::COARSE, ended);
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The last `lines` lines of a file, indented.
pub fn tail(file: &Path, lines: usize) -> String {
    let bytes = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    let mut out = String::new();
    for line in &all[all.len().saturating_sub(lines)..] {
        out.push_str("    ");
        out.push_str(line);
        out.push('\n');
    }
    out
}

fn append(log: &Path) -> File {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .unwrap_or_else(|error| panic!("open {}: {error}", log.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_gives_code_and_both_streams() {
        let out = run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]));
        assert_eq!(
            (out.code, out.stdout.as_str(), out.stderr.as_str()),
            (3, "out\n", "err\n")
        );
    }

    #[test]
    fn run_feeds_standard_input() {
        let out = run_with(&mut Command::new("cat"), Some(b"abc"), wait::GENEROUS);
        assert_eq!(out.success(), "abc");
    }

    #[test]
    fn dropping_a_process_ends_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let process = Process::spawn("sleep", Command::new("sleep").arg("1000"), &log);
        let proc = PathBuf::from(format!("/proc/{}", process.pid()));
        assert!(proc.exists());
        drop(process);
        assert!(!proc.exists());
    }

    #[test]
    fn lines_are_shown_without_nsenter() {
        let mut command = Command::new("nsenter");
        command.args(["--net=/run/netns/x", "/a/b/foil", "exec", "p", "--", "a b"]);
        assert_eq!(line_of(&command), "foil exec p -- 'a b'");
    }
}
