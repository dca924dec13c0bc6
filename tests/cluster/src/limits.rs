//! A container's limits as its cgroup has them, under v1, v2 or both mounted.
//!
//! Found by the pod's uid below the node's parent group, so that a change of the
//! agent's layout does not matter. Called by the cases and by the benchmark.

use crate::objects::Pod;
use std::fs;
use std::path::{Path, PathBuf};
use tests_harness::Cluster;

/// What the kernel enforces.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// The group that the memory limit was read from.
    pub path: PathBuf,
    /// Bytes.
    pub memory: Option<u64>,
    /// Thousandths of a CPU.
    pub cpu_millis: Option<u64>,
}

/// The first process of the pod's first container, by its pid on this machine.
///
/// # Panics
/// If it has none.
pub fn init_pid(cluster: &Cluster, pod: &Pod) -> i32 {
    let mut pids = Vec::new();
    for group in groups(cluster, pod) {
        let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    let init = pids.iter().copied().find(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let ids = status
            .lines()
            .find(|line| line.starts_with("NSpid:"))
            .unwrap_or_default();
        // One number for each PID namespace that it is in, its own last.
        ids.split_whitespace().count() > 2 && ids.ends_with("\t1")
    });
    init.unwrap_or_else(|| panic!("{} has no init process among {pids:?}", pod.name))
}

/// Limits of the pod's first container.
///
/// # Panics
/// If the pod's node is not in the cluster.
pub fn of(cluster: &Cluster, pod: &Pod) -> Limits {
    let mut limits = Limits::default();
    for group in groups(cluster, pod) {
        let read = |file: &str| fs::read_to_string(group.join(file)).ok();
        let number = |text: String| text.trim().parse::<u64>().ok();
        let memory = read("memory.limit_in_bytes").or_else(|| read("memory.max"));
        if let Some(memory) = memory.and_then(number) {
            limits.memory = Some(memory);
            limits.path.clone_from(&group);
        }
        let v1 = read("cpu.cfs_quota_us").zip(read("cpu.cfs_period_us"));
        let v2 = read("cpu.max").and_then(|text| {
            text.split_once(' ')
                .map(|(quota, period)| (quota.to_owned(), period.to_owned()))
        });
        if let Some((quota, period)) = v1.or(v2) {
            limits.cpu_millis = number(quota)
                .zip(number(period))
                .map(|(quota, period)| quota * 1000 / period);
        }
    }
    limits
}

/// The group of the pod's first container in the hierarchy of cgroup v2, if that is mounted and has
/// it: where the programs on sockets are.
///
/// # Panics
/// If the pod's node is not in the cluster.
pub fn unified(cluster: &Cluster, pod: &Pod) -> Option<PathBuf> {
    let all = groups(cluster, pod);
    all.into_iter()
        .find(|group| group.join("cgroup.kill").exists())
}

/// The container's group in each hierarchy that has one.
fn groups(cluster: &Cluster, pod: &Pod) -> Vec<PathBuf> {
    let node = cluster.nodes().iter().find(|node| node.name == pod.node);
    let node = node.unwrap_or_else(|| panic!("{} is on an unknown node: {}", pod.name, pod.node));
    let parent = node.cgroup.trim_start_matches('/');
    hierarchies()
        .iter()
        .filter_map(|hierarchy| find(&hierarchy.join(parent), &pod.uid))
        .collect()
}

fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let mut all = vec![root.clone()];
    all.extend(folders(&root));
    all
}

/// The group inside the pod's own that has processes.
fn find(parent: &Path, uid: &str) -> Option<PathBuf> {
    let pod = folders(parent).into_iter().find(|folder| {
        folder
            .file_name()
            .is_some_and(|name| name.to_string_lossy().contains(uid))
    })?;
    folders(&pod).into_iter().find(|group| {
        fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|text| !text.trim().is_empty())
    })
}

fn folders(parent: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else {
        return Vec::new();
    };
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    paths
        .filter(|path| path.is_dir() && !path.is_symlink())
        .collect()
}
