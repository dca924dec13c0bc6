//! Requests to a service: a counted number of them, or without end beside a change.
//!
//! The client is `app` of `tests-app`, in a pod or in a node's namespace; its JSON lines are
//! read here. Called by the cases and by the benchmark.

use crate::objects;
use serde_json::Value;
use std::collections::BTreeMap;
use tests_harness::{Cluster, Process, process, wait_until};

/// What a client counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Calls {
    pub ok: u64,
    pub failed: u64,
    /// Milliseconds.
    pub slowest_ms: f64,
    /// Answers by "POD VERSION".
    pub backends: BTreeMap<String, u64>,
    pub errors: Vec<String>,
}

impl Calls {
    /// Reads one JSON line.
    ///
    /// # Panics
    /// If it is none.
    pub fn parse(line: &str) -> Self {
        let value: Value = serde_json::from_str(line.trim())
            .unwrap_or_else(|error| panic!("no line of `app`: {error}: {line:?}"));
        let backends = value["backends"].as_object().cloned().unwrap_or_default();
        let errors = value["errors"].as_array().cloned().unwrap_or_default();
        Self {
            ok: value["ok"].as_u64().unwrap_or_default(),
            failed: value["failed"].as_u64().unwrap_or_default(),
            slowest_ms: value["slowest_ms"].as_f64().unwrap_or_default(),
            backends: backends
                .into_iter()
                .map(|(name, count)| (name, count.as_u64().unwrap_or_default()))
                .collect(),
            errors: errors
                .iter()
                .map(|error| error.as_str().unwrap_or_default().to_owned())
                .collect(),
        }
    }

    /// Answers by pod, of any version.
    pub fn by_pod(&self) -> BTreeMap<String, u64> {
        let mut pods = BTreeMap::new();
        for (name, count) in &self.backends {
            let pod = name.split(' ').next().unwrap_or_default().to_owned();
            *pods.entry(pod).or_insert(0) += count;
        }
        pods
    }
}

/// `foil exec POD -- app call ...`
///
/// # Panics
/// If `app` prints nothing that can be read.
pub fn call_from_pod(cluster: &Cluster, pod: &str, target: &str, count: u32) -> Calls {
    let count = count.to_string();
    let args = ["exec", pod, "--", "app", "call", target, "-n", &count];
    let out = cluster.foil(&args);
    assert!(
        !out.stdout.is_empty(),
        "`{}` printed nothing:\n{}",
        out.command,
        out.stderr
    );
    Calls::parse(&out.stdout)
}

/// The same by a process of the node itself.
///
/// # Panics
/// If `app` prints nothing that can be read.
pub fn call_from_node(cluster: &Cluster, node: usize, target: &str, count: u32) -> Calls {
    let mut command = cluster
        .node_netns(node)
        .command(tests_harness::binary("app"));
    command.args(["call", target, "-n", &count.to_string()]);
    let out = process::run(&mut command);
    assert!(
        !out.stdout.is_empty(),
        "`{}` printed nothing:\n{}",
        out.command,
        out.stderr
    );
    Calls::parse(&out.stdout)
}

/// A pod on a chosen node that makes requests, a new connection each, until it is stopped.
/// It runs as the pod's own program, so that no agent or control plane is part of its path.
#[derive(Debug)]
pub struct Load {
    name: String,
}

impl Load {
    /// Applies the pod and waits for its first hundred answers.
    ///
    /// # Panics
    /// If they do not come.
    pub fn start(cluster: &Cluster, name: &str, node: &str, target: &str) -> Self {
        let manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  \
             nodeName: {node}\n  terminationGracePeriodSeconds: 1\n  restartPolicy: Never\n  containers:\n  \
             - name: load\n    image: foil/app:1\n    command: [app, load, \"{target}\"]\n"
        );
        cluster
            .foil_with_input(&["apply", "-f", "-"], &manifest)
            .success();
        objects::ready(cluster, name);
        let this = Self {
            name: name.to_owned(),
        };
        this.wait_more(cluster, 100);
        this
    }

    /// What it counted so far.
    ///
    /// # Panics
    /// If its log cannot be read.
    pub fn calls(&self, cluster: &Cluster) -> Calls {
        let last = wait_until(&format!("a line of {}", self.name), || {
            let out = cluster.foil(&["logs", &self.name, "--tail", "1"]);
            if out.code == 0 && !out.stdout.is_empty() {
                Ok(out.stdout)
            } else {
                Err(out.stderr)
            }
        });
        Calls::parse(&last)
    }

    /// Waits until `more` further requests were made.
    ///
    /// # Panics
    /// If they are not.
    pub fn wait_more(&self, cluster: &Cluster, more: u64) -> Calls {
        let start = self.calls(cluster);
        wait_until(&format!("{more} more requests of {}", self.name), || {
            let now = self.calls(cluster);
            let made = now.ok + now.failed - start.ok - start.failed;
            if made >= more {
                Ok(now)
            } else {
                Err(format!("{made}: {now:?}"))
            }
        })
    }

    /// Deletes the pod; gives what it had counted just before.
    ///
    /// # Panics
    /// If it does not go.
    pub fn stop(self, cluster: &Cluster) -> Calls {
        let calls = self.wait_more(cluster, 50);
        cluster.foil(&["delete", "pod", &self.name]).success();
        objects::gone(cluster, &self.name);
        calls
    }
}

/// One long connection from a pod, by `foil exec`, with its lines in a file.
#[derive(Debug)]
pub struct Hold {
    process: Process,
}

impl Hold {
    /// Connects and waits for the first answer; gives the pod that gave it.
    ///
    /// # Panics
    /// If none comes.
    pub fn start(cluster: &Cluster, pod: &str, target: &str) -> (Self, String) {
        let log = cluster
            .root()
            .join(format!("hold-{}", tests_harness::unique_name()));
        let mut command = cluster.foil_command(&["exec", pod, "--", "app", "hold", target]);
        let process = Process::spawn("app hold", &mut command, &log);
        let line = wait_until("the first answer on a long connection", || {
            let text = process.log();
            let line = text.lines().find(|line| line.starts_with("connected "));
            line.map(str::to_owned).ok_or(text)
        });
        let backend = line.split(' ').nth(1).unwrap_or_default().to_owned();
        (Self { process }, backend)
    }

    /// True while it has not ended.
    pub fn is_open(mut self) -> bool {
        self.process.is_running()
    }

    /// How it ended, and the exit code: 0 when the peer closed, 1 when it waited for a time-out.
    ///
    /// # Panics
    /// If it does not end.
    pub fn end(mut self) -> (i32, String) {
        let code = self.process.wait();
        let text = self.process.log();
        let line = text
            .lines()
            .find(|line| line.starts_with("ended"))
            .unwrap_or(&text)
            .to_owned();
        (code, line)
    }
}
