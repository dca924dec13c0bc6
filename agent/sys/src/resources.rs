//! What the machine has and what is left of it: memory, process numbers, disks.
//!
//! Whether that is little is decided in `agent-plan` (`pressure.rs`). Called by the
//! daemon's `health.rs`; [`disk`] may block for as long as the file system does.

use std::fs;
use std::io;
use std::path::Path;

/// What is there of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// What is left.
    pub available: u64,
    /// In all.
    pub capacity: u64,
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Bytes; what is left without root's reserve.
    pub bytes: Amount,
    /// Inodes; `None` where they are made as needed.
    pub inodes: Option<Amount>,
}

/// CPUs that this process may run on.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Memory, bytes: MemTotal and MemAvailable, the kernel's own estimate of what new
/// programs can have without swapping (Documentation/filesystems/proc.rst).
///
/// # Errors
/// /proc/meminfo cannot be read, or has not these lines.
pub fn memory() -> io::Result<Amount> {
    let text = fs::read_to_string("/proc/meminfo")?;
    parse_memory(&text).ok_or_else(|| io::Error::other("MemTotal or MemAvailable is missing"))
}

/// Swap in all, bytes.
///
/// # Errors
/// /proc/meminfo cannot be read, or has not this line.
pub fn swap() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    parse_bytes(&text, "SwapTotal:").ok_or_else(|| io::Error::other("SwapTotal is missing"))
}

fn parse_bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn parse_memory(text: &str) -> Option<Amount> {
    Some(Amount {
        available: parse_bytes(text, "MemAvailable:")?,
        capacity: parse_bytes(text, "MemTotal:")?,
    })
}

/// Numbers for processes and threads: the lower of kernel.pid_max and
/// kernel.threads-max, and what running threads leave of it.
///
/// # Errors
/// A file of /proc cannot be read or parsed.
pub fn pids() -> io::Result<Amount> {
    let number = |path: &str| -> io::Result<u64> {
        let text = fs::read_to_string(path)?;
        text.trim().parse().map_err(io::Error::other)
    };
    let limits = (
        number("/proc/sys/kernel/pid_max")?,
        number("/proc/sys/kernel/threads-max")?,
    );
    let load = fs::read_to_string("/proc/loadavg")?;
    let threads = parse_threads(&load)
        .ok_or_else(|| io::Error::other("/proc/loadavg has no thread count"))?;
    let capacity = limits.0.min(limits.1);
    Ok(Amount {
        available: capacity.saturating_sub(threads),
        capacity,
    })
}

/// Threads that exist, from "0.20 0.18 0.12 1/80 11206".
fn parse_threads(load: &str) -> Option<u64> {
    let (_, threads) = load.split_ascii_whitespace().nth(3)?.split_once('/')?;
    threads.parse().ok()
}

/// The file system that holds the path.
///
/// # Errors
/// statvfs(3)'s.
pub fn disk(path: &Path) -> io::Result<Disk> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    let block = stat.fragment_size();
    Ok(Disk {
        bytes: Amount {
            available: stat.blocks_available().saturating_mul(block),
            capacity: stat.blocks().saturating_mul(block),
        },
        inodes: (stat.files() > 0).then(|| Amount {
            available: stat.files_available(),
            capacity: stat.files(),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_says() {
        let text = "MemTotal:       24682416 kB\nMemFree:  5 kB\nMemAvailable:   23823084 kB\n";
        let memory = Amount {
            available: 23_823_084 * 1024,
            capacity: 24_682_416 * 1024,
        };
        assert_eq!(parse_memory(text), Some(memory));
        assert_eq!(parse_memory("MemTotal: 1 kB\n"), None);
        assert_eq!(parse_threads("0.20 0.18 0.12 1/80 11206\n"), Some(80));
        assert_eq!(parse_threads("0.20"), None);
    }

    #[test]
    fn this_machine_has_some_of_all() {
        let folder = tempfile::tempdir().unwrap();
        let of = [
            memory().unwrap(),
            pids().unwrap(),
            disk(folder.path()).unwrap().bytes,
        ];
        for amount in of {
            assert!(amount.available > 0 && amount.available <= amount.capacity);
        }
        assert!(disk(&folder.path().join("none")).is_err());
    }
}
