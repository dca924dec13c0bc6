//! The table of Debian packages, and how the presence of each is seen.
//!
//! Seen by what the package brings and not by dpkg, so that other systems work as well.
//! Called by `setup`.

use crate::command::succeeds;
use std::path::{Path, PathBuf};
use std::process::Command;

/// When a package is needed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// To compile user space.
    Build,
    /// Only while `bpf-linker` has to be compiled.
    Linker,
    /// The BPF compiler, where nightly with rust-src is not there instead.
    Compiler,
    /// To run tests, demo and benchmark.
    Run,
}

/// How one sees that it is there.
enum Probe {
    Program(&'static str),
    File(&'static str),
    Library(&'static str),
    /// An executable that needs no loader: it runs in an image that has nothing else.
    Static(&'static str),
}

pub(crate) struct Package {
    pub(crate) name: &'static str,
    /// What it is for, as setup says it.
    pub(crate) why: &'static str,
    pub(crate) when: When,
    probe: Probe,
}

impl Package {
    pub(crate) fn is_there(&self) -> bool {
        match self.probe {
            Probe::Program(name) => program(name).is_some(),
            Probe::File(path) => Path::new(path).exists(),
            Probe::Library(name) => succeeds(Command::new("pkg-config").args(["--exists", name])),
            Probe::Static(path) => is_static(Path::new(path)),
        }
    }
}

const fn package(when: When, name: &'static str, probe: Probe, why: &'static str) -> Package {
    Package {
        name,
        why,
        when,
        probe,
    }
}

/// Compiler that has `core` for BPF prebuilt.
pub(crate) const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// LLVM that `bpf-linker` is compiled against.
pub(crate) const LLVM: &str = "/usr/lib/llvm-22";

pub(crate) static PACKAGES: &[Package] = &[
    package(
        When::Build,
        "pkg-config",
        Probe::Program("pkg-config"),
        "finds libseccomp",
    ),
    package(
        When::Build,
        "libseccomp-dev",
        Probe::Library("libseccomp"),
        "compiles the containers' system call filter",
    ),
    package(
        When::Compiler,
        "rustc-web",
        Probe::File(DEBIAN_RUSTC),
        "compiles BPF programs",
    ),
    package(
        When::Compiler,
        "libstd-rust-web-dev-bpf",
        Probe::File("/usr/lib/rustlib/bpfel-unknown-none/lib"),
        "core for the BPF target",
    ),
    package(
        When::Linker,
        "llvm-22-dev",
        Probe::File("/usr/lib/llvm-22/bin/llvm-config"),
        "to compile bpf-linker",
    ),
    package(
        When::Linker,
        "g++",
        Probe::Program("g++"),
        "to compile bpf-linker",
    ),
    package(
        When::Run,
        "busybox-static",
        Probe::Static("/bin/busybox"),
        "content of an image",
    ),
    package(
        When::Run,
        "bind9-dnsutils",
        Probe::Program("dig"),
        "asks cluster DNS",
    ),
    package(
        When::Run,
        "docker-registry",
        Probe::Program("docker-registry"),
        "the registry that agents pull from",
    ),
    package(
        When::Run,
        "skopeo",
        Probe::Program("skopeo"),
        "pushes images",
    ),
    package(
        When::Run,
        "bpftool",
        Probe::Program("bpftool"),
        "shows the BPF maps",
    ),
    package(
        When::Run,
        "iproute2",
        Probe::Program("ip"),
        "network namespaces",
    ),
    package(
        When::Run,
        "iptables",
        Probe::Program("iptables"),
        "a firewall beside the data plane",
    ),
    package(
        When::Run,
        "util-linux",
        Probe::Program("nsenter"),
        "network namespaces",
    ),
];

/// A program in the usual folders, /usr/sbin included, regardless of PATH.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    [
        "/usr/local/bin",
        "/usr/local/sbin",
        "/usr/bin",
        "/usr/sbin",
        "/bin",
        "/sbin",
    ]
    .iter()
    .map(|folder| Path::new(folder).join(name))
    .find(|path| path.exists())
}

/// True if no dynamic loader is named in the first page of the file.
fn is_static(path: &Path) -> bool {
    let Ok(bytes) = std::fs::read(path) else {
        return false;
    };
    let head = &bytes[..bytes.len().min(4096)];
    head.starts_with(b"\x7fELF") && !head.windows(6).any(|window| window == b"ld-lin")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_with_a_loader_is_not_static() {
        assert!(Path::new("/bin/sh").exists());
        assert!(!is_static(Path::new("/bin/sh")));
        assert!(!is_static(Path::new("/etc/passwd")));
    }

    #[test]
    fn each_package_is_named_once() {
        let mut names: Vec<_> = PACKAGES.iter().map(|package| package.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PACKAGES.len());
    }
}
