//! What the machine needs, and how it gets there: packages, BPF compiler, bpf-linker, kernel.
//!
//! Says what it will install before it does. Without root or apt it prints the exact
//! commands and gives [`Missing`], which `main` turns into exit code 2.
//! Called first by `build`, `demo`, `test` and `bench`; it is quick when nothing is missing.

use crate::command::{self, succeeds};
use crate::packages::{DEBIAN_RUSTC, LLVM, PACKAGES, Package, When, program};
use crate::steps::{Kind, Steps};
use anyhow::Context as _;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

const LINKER_VERSION: &str = "0.13.0";

/// What the machine is to be fit for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    Build,
    /// Tests, demo and benchmark run as root and need the registry and the kernel as well.
    Test,
}

/// The compiler of the BPF object; which one it is decides its flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BpfCompiler {
    /// Debian's rustc-web, which has `core` for BPF prebuilt.
    Debian { rustc: PathBuf },
    /// rustup's nightly, which compiles `core` from rust-src.
    Nightly { toolchain: String },
}

impl fmt::Display for BpfCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian { rustc } => {
                write!(
                    f,
                    "{} (Debian's rustc-web: core for BPF comes prebuilt)",
                    rustc.display()
                )
            }
            Self::Nightly { toolchain } => write!(
                f,
                "rustup's {toolchain} with rust-src (Debian's rustc-web is not installed)"
            ),
        }
    }
}

/// What was found or made.
pub(crate) struct Tools {
    pub(crate) compiler: BpfCompiler,
    /// Path of bpf-linker.
    pub(crate) linker: PathBuf,
}

/// The machine lacks something that we cannot, or may not, put there.
#[derive(Debug)]
pub(crate) struct Missing(String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// Installs what is missing and gives the tools.
pub(crate) fn run(root: &Path, purpose: For, steps: &mut Steps) -> anyhow::Result<Tools> {
    if purpose == For::Test {
        kernel_and_rights()?;
    }
    let missing = missing_packages(root, purpose);
    if !missing.is_empty() {
        steps.time("packages", Kind::Tools, || install(root, &missing))?;
    }
    let compiler = find_compiler().ok_or_else(|| {
        Missing("no BPF compiler: neither Debian's rustc-web nor rustup's nightly".to_owned())
    })?;
    let linker = match find_linker(root) {
        Some(path) => path,
        None => steps.time("bpf-linker", Kind::Tools, || install_linker(root))?,
    };
    Ok(Tools { compiler, linker })
}

/// Says what is there and what is missing; true if nothing is.
pub(crate) fn check(root: &Path) -> anyhow::Result<bool> {
    let mut complete = true;
    let missing = missing_packages(root, For::Test);
    for package in PACKAGES {
        let state = match () {
            () if package.is_there() => "there",
            () if missing.iter().any(|one| one.name == package.name) => "MISSING",
            () => "not needed",
        };
        println!("{:<11} {:<24} {}", state, package.name, package.why);
    }
    complete &= missing.is_empty();
    match find_compiler() {
        Some(compiler) => println!("{:<11} {:<24} {compiler}", "there", "BPF compiler"),
        None => complete = false,
    }
    match find_linker(root) {
        Some(path) => println!("{:<11} {:<24} {}", "there", "bpf-linker", path.display()),
        None => {
            println!("{:<11} {:<24} compiled by setup", "MISSING", "bpf-linker");
            complete = false;
        }
    }
    if let Err(error) = kernel_and_rights() {
        println!("{:<11} {:<24} {error}", "MISSING", "kernel and rights");
        complete = false;
    }
    Ok(complete)
}

fn missing_packages(root: &Path, purpose: For) -> Vec<&'static Package> {
    let linker = find_linker(root).is_some();
    let compiler = find_compiler().is_some();
    PACKAGES
        .iter()
        .filter(|package| match package.when {
            When::Build => true,
            When::Linker => !linker,
            When::Compiler => !compiler,
            When::Run => purpose == For::Test,
        })
        .filter(|package| !package.is_there())
        .collect()
}

fn install(root: &Path, missing: &[&Package]) -> anyhow::Result<()> {
    eprintln!("Missing on this machine:");
    for package in missing {
        eprintln!("  {:<24} {}", package.name, package.why);
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let commands = [
        "apt-get update".to_owned(),
        format!(
            "apt-get install -y --no-install-recommends {}",
            names.join(" ")
        ),
    ];
    let apt = program("apt-get").is_some();
    if !apt || !nix::unistd::geteuid().is_root() {
        let who = if apt {
            "Run as root"
        } else {
            "This machine has no apt-get; on Debian 12 as root"
        };
        let mut text = format!("{who}, then try again:\n");
        for line in &commands {
            text.push_str(&format!("    {line}\n"));
        }
        if find_compiler().is_none() {
            text.push_str(
                "Instead of rustc-web and libstd-rust-web-dev-bpf, rustup's nightly will do:\n    \
                 rustup toolchain install nightly --component rust-src\n",
            );
        }
        if find_linker(root).is_none() {
            text.push_str(&format!(
                "After that, this compiles bpf-linker:\n    {}\n",
                command::line_of(&linker_command(root))
            ));
        }
        return Err(Missing(text).into());
    }
    eprintln!("Installing them now (apt-get as root).");
    let registry = names.contains(&"docker-registry");
    let mut update = Command::new("apt-get");
    command::run(update.arg("update"))?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    command::run(
        install
            .args(["install", "-y", "--no-install-recommends"])
            .args(&names),
    )?;
    if registry && Path::new("/run/systemd/system").exists() {
        eprintln!("The package starts a registry of its own on port 5000; ours runs elsewhere.");
        command::run(Command::new("systemctl").args(["disable", "--now", "docker-registry"]))?;
    }
    if let Some(still) = missing.iter().find(|package| !package.is_there()) {
        let text = format!(
            "{} is installed, but what it brings is not there",
            still.name
        );
        return Err(Missing(text).into());
    }
    Ok(())
}

/// Debian's compiler if it is whole, else a nightly with the library's source.
fn find_compiler() -> Option<BpfCompiler> {
    let debian = PACKAGES
        .iter()
        .filter(|package| package.when == When::Compiler);
    if debian.into_iter().all(Package::is_there) {
        return Some(BpfCompiler::Debian {
            rustc: PathBuf::from(DEBIAN_RUSTC),
        });
    }
    let toolchain = "nightly".to_owned();
    let sysroot = Command::new("rustup")
        .args(["run", &toolchain, "rustc", "--print", "sysroot"])
        .output()
        .ok()
        .filter(|out| out.status.success())?;
    let sysroot = String::from_utf8(sysroot.stdout).ok()?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    source
        .exists()
        .then_some(BpfCompiler::Nightly { toolchain })
}

/// Ours in target/tools, or one of the same version that is installed.
fn find_linker(root: &Path) -> Option<PathBuf> {
    let ours = root.join("target/tools/bin/bpf-linker");
    let version = |path: &Path| {
        let out = Command::new(path).arg("--version").output().ok()?;
        String::from_utf8(out.stdout).ok()
    };
    [ours, PathBuf::from("bpf-linker")]
        .into_iter()
        .find(|path| version(path).is_some_and(|text| text.trim().ends_with(LINKER_VERSION)))
}

fn linker_command(root: &Path) -> Command {
    let package = format!("bpf-linker@{LINKER_VERSION}");
    let mut cargo = command::cargo(
        root,
        &["install", &package, "--locked", "--no-default-features"],
    );
    cargo
        .args(["--features", "llvm-22", "--root"])
        .arg("target/tools")
        .env("LLVM_PREFIX", LLVM);
    cargo
}

fn install_linker(root: &Path) -> anyhow::Result<PathBuf> {
    eprintln!("Compiling bpf-linker {LINKER_VERSION} into target/tools (once, some minutes).");
    command::run(&mut linker_command(root))?;
    find_linker(root).context("bpf-linker was compiled, but does not run")
}

/// Kernel features by name, and root, without which there are no namespaces.
fn kernel_and_rights() -> Result<(), Missing> {
    let uname = nix::sys::utsname::uname().map_err(|error| Missing(format!("uname: {error}")))?;
    let release = uname.release().to_string_lossy().into_owned();
    if version_of(&release) < (6, 6) {
        return Err(Missing(format!(
            "Linux {release} has no tcx links, which need 6.6 or later (Debian 12: linux-image-amd64 \
             from bookworm-backports)"
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
            return Err(Missing(format!(
                "this kernel has no {name} file system ({option})"
            )));
        }
    }
    if !Path::new("/sys/fs/cgroup")
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_some())
    {
        return Err(Missing(
            "no cgroups are mounted on /sys/fs/cgroup".to_owned(),
        ));
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(Missing(
            "tests and demo make network namespaces, cgroups and BPF programs: run as root, for \
             example\n    sudo --preserve-env=PATH,HOME cargo xtask demo"
                .to_owned(),
        ));
    }
    Ok(())
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
}
