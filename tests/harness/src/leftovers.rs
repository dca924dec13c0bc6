//! What of a cluster is still on the machine, and the last resort that removes it.
//!
//! Looks at the kernel (processes, mounts, namespaces, cgroups, links) and not at what
//! was started. Everything is found by the cluster's unique name, so that clusters that
//! run beside it are never touched. Called by `cluster`'s Drop and by the demo's last step.

use crate::wait;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where hierarchies of cgroups are mounted, each on a folder below (v1, hybrid), or itself (v2).
const CGROUPS: &str = "/sys/fs/cgroup";
/// How long the last resort tries; a process in an uninterruptible call is left behind then.
const LIMIT: Duration = Duration::from_secs(3);

/// Everything found, a line each; empty when nothing is left.
pub fn of(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (pid, what) in processes(name) {
        found.push(format!("process {pid}: {what}"));
    }
    found.extend(
        mounts(name)
            .into_iter()
            .map(|path| format!("mount {}", path.display())),
    );
    for cgroup in cgroups(name) {
        found.push(format!("cgroup {}", cgroup.display()));
    }
    for entry in entries(Path::new("/run/netns")) {
        if mentions(&entry.to_string_lossy(), name) {
            found.push(format!("network namespace {}", entry.display()));
        }
    }
    for entry in entries(Path::new("/sys/class/net")) {
        let link = entry
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if link.starts_with("foil") {
            found.push(format!("link {link} in the machine's own namespace"));
        }
    }
    found
}

/// Files below a folder, bpffs pins for example; relative paths, sorted.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in entries(&next) {
            if entry.is_dir() && !entry.is_symlink() {
                folders.push(entry);
            } else {
                found.push(entry.strip_prefix(folder).unwrap_or(&entry).to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Kills, unmounts and removes everything that [`of`] would find; namespaces are left to their guards.
pub fn remove(name: &str) {
    wait::poll_for(LIMIT, wait::COARSE, || {
        let left = processes(name);
        for (pid, _) in &left {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
        }
        left.is_empty().then_some(())
    });
    // Mounts stack: several rounds, the newest first.
    for _ in 0..5 {
        for path in mounts(name).into_iter().rev() {
            umount2(&path, MntFlags::MNT_DETACH).ok();
        }
    }
    wait::poll_for(LIMIT, wait::COARSE, || {
        let left = cgroups(name);
        for group in &left {
            remove_cgroup(group);
        }
        left.is_empty().then_some(())
    });
}

fn remove_cgroup(group: &Path) {
    for child in entries(group).into_iter().filter(|path| path.is_dir()) {
        remove_cgroup(&child);
    }
    fs::remove_dir(group).ok();
}

/// Processes with the name in their command line, or in a cgroup of that name.
fn processes(name: &str) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in entries(Path::new("/proc")) {
        let file = entry
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let Ok(pid) = file.parse::<i32>() else {
            continue;
        };
        if u32::try_from(pid) == Ok(std::process::id()) {
            continue;
        }
        let cmdline = fs::read(entry.join("cmdline")).unwrap_or_default();
        let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        let cgroup = fs::read_to_string(entry.join("cgroup")).unwrap_or_default();
        if mentions(&cgroup, name) || mentions(&cmdline, name) && is_ours(&entry) {
            let state = fs::read_to_string(entry.join("stat")).unwrap_or_default();
            // A zombie is its parent's to reap and holds nothing.
            if !state
                .rsplit(')')
                .next()
                .unwrap_or_default()
                .trim_start()
                .starts_with('Z')
            {
                found.push((pid, cmdline.trim().to_owned()));
            }
        }
    }
    found
}

/// A shell or editor that merely mentions the name is not ours to kill.
fn is_ours(proc: &Path) -> bool {
    let program = fs::read_link(proc.join("exe")).unwrap_or_default();
    let program = program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    ["foil", "docker-registry"]
        .iter()
        .any(|prefix| program.starts_with(prefix))
}

/// Mount points below a folder of that name, oldest first.
fn mounts(name: &str) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points
        // Namespaces under /run/netns are told as such.
        .filter(|point| mentions(point, name) && !point.starts_with("/run/netns/"))
        .map(PathBuf::from)
        .collect()
}

/// Groups of that name at the root of each hierarchy.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new(CGROUPS);
    let mut found = Vec::new();
    for entry in entries(root)
        .into_iter()
        .filter(|path| path.is_dir() && !path.is_symlink())
    {
        if mentions(&entry.to_string_lossy(), name) {
            found.push(entry);
            continue;
        }
        for group in entries(&entry).into_iter().filter(|path| path.is_dir()) {
            if mentions(&group.to_string_lossy(), name) {
                found.push(group);
            }
        }
    }
    found
}

/// `foil-7-1` is not mentioned by `foil-7-12`.
fn mentions(text: &str, name: &str) -> bool {
    text.match_indices(name)
        .any(|(at, _)| !text[at + name.len()..].starts_with(|next: char| next.is_ascii_digit()))
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_where_digits_end() {
        assert!(mentions("/tmp/foil-7-1/n1", "foil-7-1"));
        assert!(mentions("/foil-7-1", "foil-7-1"));
        assert!(!mentions("/tmp/foil-7-12/n1", "foil-7-1"));
    }

    #[test]
    fn a_cgroup_and_a_process_in_it_are_found_and_removed() {
        let name = crate::unique_name();
        // Any hierarchy will do; `pids` (v1) or the unified root.
        let hierarchy = ["pids", "unified", ""]
            .iter()
            .map(|folder| Path::new(CGROUPS).join(folder))
            .find(|path| path.join("cgroup.procs").exists())
            .expect("a cgroup hierarchy");
        let group = hierarchy.join(&name).join("inner");
        fs::create_dir_all(&group).expect("make a cgroup");
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let mut sleep = std::process::Command::new("sleep");
        let process = crate::Process::spawn("sleep", sleep.arg("1000"), &log);
        fs::write(group.join("cgroup.procs"), process.pid().to_string()).expect("enter it");
        let found = of(&name);
        assert!(
            found.iter().any(|line| line.contains("sleep 1000")),
            "{found:?}"
        );
        assert!(
            found.iter().any(|line| line.starts_with("cgroup ")),
            "{found:?}"
        );
        remove(&name);
        assert_eq!(of(&name), Vec::<String>::new());
    }
}
