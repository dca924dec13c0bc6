//! A network namespace with a name under /run/netns, removed in `Drop`.
//!
//! Not by `ip netns exec`, which remounts /sys and so hides bpffs and cgroup2:
//! commands enter by `nsenter --net`, closures by setns on a thread of their own.
//! Called by the topology and by node and datapath tests.

use crate::process;
use nix::sched::{CloneFlags, setns};
use std::ffi::OsStr;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

/// Guard of one namespace.
#[derive(Debug)]
pub struct NetNs {
    name: String,
}

impl NetNs {
    /// A namespace `foil-PID-SEQ-LABEL` with `lo` up.
    ///
    /// # Panics
    /// If `ip` cannot make it.
    pub fn create(label: &str) -> Self {
        Self::named(&format!("{}-{label}", crate::unique_name()))
    }

    /// A namespace of exactly this name, which must begin with `foil-`.
    ///
    /// # Panics
    /// If the name lacks our prefix, or `ip` cannot make it.
    pub fn named(name: &str) -> Self {
        assert!(
            name.starts_with("foil-"),
            "{name}: names of our namespaces begin with foil-"
        );
        ip(&["netns", "add", name]);
        let this = Self {
            name: name.to_owned(),
        };
        this.ip(&["link", "set", "lo", "up"]);
        this
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Path for `setns` and `nsenter`.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command that will run inside; its pid is the program's own (`nsenter` execs it).
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg(program);
        command
    }

    /// `ip ARGS` inside.
    ///
    /// # Panics
    /// If it fails.
    pub fn ip(&self, args: &[&str]) -> String {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend(args);
        ip(&all)
    }

    /// Runs a closure on a thread of its own that is inside.
    ///
    /// # Panics
    /// If setns fails, or if the closure panics.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).expect("open the namespace");
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(file, CloneFlags::CLONE_NEWNET).expect("setns");
                    inside()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        let out = process::run(Command::new("ip").args(["netns", "del", &self.name]));
        if out.code != 0 && self.path().exists() {
            eprintln!("namespace {} stays: {}", self.name, out.stderr.trim());
        }
    }
}

/// `ip ARGS` in the caller's namespace, for our namespaces and links only.
///
/// # Panics
/// If it fails.
pub fn ip(args: &[&str]) -> String {
    process::run(Command::new("ip").args(args)).success()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_closures_run_inside_and_it_is_removed() {
        let netns = NetNs::create("t");
        let path = netns.path();
        netns.ip(&["link", "add", "foil-x", "type", "bridge"]);
        let seen = process::run(netns.command("cat").arg("/proc/net/dev")).success();
        assert!(seen.contains("foil-x"), "{seen}");
        let seen = netns.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
        assert!(seen.expect("read").contains("foil-x"));
        drop(netns);
        assert!(!path.exists());
    }
}
