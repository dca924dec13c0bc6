//! What a machine needs that no package brings: rights, a kernel, space.
//!
//! Asked before anything is installed or compiled. Called by `setup`.

use crate::command::succeeds;
use std::fmt;
use std::path::Path;
use std::process::Command;

/// Bytes below `target/` after `cargo xtask demo` and `cargo xtask test`, rounded up.
const TARGET_BYTES: u64 = 5 << 30;
/// Bytes that a build needs where one was made before.
const REBUILD_BYTES: u64 = 1 << 30;

/// The machine lacks something that we cannot, or may not, put there.
#[derive(Debug)]
pub(crate) struct Missing(String);

impl Missing {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// Rights and kernel that tests, demo and benchmark need.
pub(crate) fn rights_and_kernel() -> Result<(), Missing> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Missing::new(
            "Tests and demo make network namespaces, control groups and BPF programs. Run as root, \
             for example:\n    sudo --preserve-env=PATH,HOME cargo xtask demo",
        ));
    }
    let uname =
        nix::sys::utsname::uname().map_err(|error| Missing::new(format!("uname: {error}")))?;
    let release = uname.release().to_string_lossy().into_owned();
    if version_of(&release) < (6, 6) {
        return Err(Missing::new(format!(
            "Linux {release} has no tcx links, which need 6.6 or later. On Debian 12, as root:\n    \
             apt-get install -t bookworm-backports linux-image-amd64"
        )));
    }
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known = |name: &str| {
        filesystems
            .lines()
            .any(|line| line.trim_start_matches("nodev").trim() == name)
    };
    for (name, option) in [
        ("bpf", "CONFIG_BPF_SYSCALL"),
        ("overlay", "CONFIG_OVERLAY_FS"),
    ] {
        if !known(name) && !succeeds(Command::new("modprobe").arg(name)) {
            return Err(Missing::new(format!(
                "This kernel has no {name} file system ({option})."
            )));
        }
    }
    let mut groups = Path::new("/sys/fs/cgroup").read_dir().into_iter().flatten();
    if groups.next().is_none() {
        return Err(Missing::new("No cgroups are mounted on /sys/fs/cgroup."));
    }
    Ok(())
}

/// Space for what is compiled. A build that ends on a full disk says so only after minutes, and
/// where it happened to be.
pub(crate) fn space(root: &Path) -> Result<(), Missing> {
    let built =
        root.join("target/debug/deps").exists() || root.join("target/release/deps").exists();
    let needed = if built { REBUILD_BYTES } else { TARGET_BYTES };
    let target = root.join("target");
    let disk = if target.exists() { &target } else { root };
    match nix::sys::statvfs::statvfs(disk) {
        Ok(stat) => enough(root, stat.blocks_available() * stat.fragment_size(), needed),
        // Then the build finds out.
        Err(_) => Ok(()),
    }
}

fn enough(root: &Path, available: u64, needed: u64) -> Result<(), Missing> {
    if available >= needed {
        return Ok(());
    }
    let gib = |bytes: u64| {
        let tenths = bytes * 10 / (1 << 30);
        format!("{}.{} GiB", tenths / 10, tenths % 10)
    };
    Err(Missing::new(format!(
        "The build needs {} below {}, where {} are free. Make \
         space, or move the clone.",
        gib(needed),
        root.join("target").display(),
        gib(available)
    )))
}

/// "6.18.44-cloud" is (6, 18).
fn version_of(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|text| text.parse().ok());
    let mut next = || numbers.next().flatten().unwrap_or(0);
    (next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions() {
        for (release, version) in [
            ("6.18.44-fc-v595", (6, 18)),
            ("6.6.0", (6, 6)),
            ("5.10-rc1", (5, 10)),
            ("x", (0, 0)),
        ] {
            assert_eq!(version_of(release), version, "{release}");
        }
    }

    #[test]
    fn a_full_disk_is_told_with_both_sizes() {
        let root = Path::new("/w");
        assert!(enough(root, 5 << 30, 5 << 30).is_ok());
        let told = enough(root, 1_610_612_736, 5 << 30).expect_err("too little");
        let text = told.to_string();
        assert!(
            text.contains("needs 5.0 GiB below /w/target, where 1.5 GiB"),
            "{text}"
        );
    }
}
