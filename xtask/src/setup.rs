//! What the machine needs, and how it gets there: packages, BPF compiler, bpf-linker, kernel.
//!
//! Says what it will install before it does. Without root or apt it prints the exact
//! commands and gives [`Missing`], which `main` turns into exit code 2.
//! Called first by `build`, `demo`, `test` and `bench`; it is quick when nothing is missing.

use crate::host::Missing;
use crate::packages::{DEBIAN_RUSTC, LLVM, PACKAGES, Package, When, program};
use crate::steps::{Kind, Steps};
use crate::{command, host};
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

/// Installs missing packages and gives the tools.
pub(crate) fn run(root: &Path, purpose: For, steps: &mut Steps) -> anyhow::Result<Tools> {
    if purpose == For::Test {
        host::rights_and_kernel()?;
    }
    host::space(root)?;
    let missing = missing_packages(root, purpose);
    if !missing.is_empty() {
        steps.time("packages", Kind::Tools, || install(root, &missing))?;
    }
    let compiler = find_compiler().ok_or_else(|| {
        Missing::new("no BPF compiler: neither Debian's rustc-web nor rustup's nightly")
    })?;
    let linker = match find_linker(root) {
        Some(path) => path,
        None => steps.time("bpf-linker", Kind::Tools, || install_linker(root))?,
    };
    Ok(Tools { compiler, linker })
}

/// Lists packages and tools; true if none is missing.
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
    let space = host::space(root).map_err(|error| ("space", error));
    let rights = host::rights_and_kernel().map_err(|error| ("rights and kernel", error));
    for (name, error) in [space, rights].into_iter().filter_map(Result::err) {
        println!("{:<11} {name:<24} {error}", "MISSING");
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

/// Why apt does not install missing packages.
#[derive(Clone, Copy)]
enum Obstacle {
    NotRoot,
    NoApt,
    Failed,
}

/// Missing packages and tools, as commands name them.
struct Needs {
    packages: Vec<&'static str>,
    /// Whether there is no BPF compiler at all.
    compiler: bool,
    /// How bpf-linker is compiled, if it has to be.
    linker: Option<String>,
}

impl Needs {
    /// The commands that the user has to run instead of us.
    fn commands(&self, obstacle: Obstacle) -> String {
        let why = match obstacle {
            Obstacle::NotRoot => "Run as root, then try again",
            Obstacle::NoApt => {
                "This machine has no apt-get: install the same with its own package manager; on \
                 Debian 12 the commands are, as root"
            }
            Obstacle::Failed => {
                "apt-get did not get them: is there a network, and is this Debian 12 with the \
                 suites bookworm and bookworm-security? The commands are, as root"
            }
        };
        let mut text = format!(
            "{why}:\n    apt-get update\n    apt-get install -y --no-install-recommends {}\n",
            self.packages.join(" ")
        );
        if self.compiler {
            text.push_str(
                "Instead of rustc-web and libstd-rust-web-dev-bpf, rustup's nightly will do:\n    \
                 rustup toolchain install nightly --component rust-src\n",
            );
        }
        if let Some(line) = &self.linker {
            text.push_str(&format!(
                "After that, this compiles bpf-linker:\n    {line}\n"
            ));
        }
        text
    }
}

fn install(root: &Path, missing: &[&'static Package]) -> anyhow::Result<()> {
    eprintln!("Missing on this machine:");
    for package in missing {
        eprintln!("  {:<24} {}", package.name, package.why);
    }
    let needs = Needs {
        packages: missing.iter().map(|package| package.name).collect(),
        compiler: find_compiler().is_none(),
        linker: find_linker(root)
            .is_none()
            .then(|| command::line_of(&linker_command(root))),
    };
    let stop = |obstacle| anyhow::Error::from(Missing::new(needs.commands(obstacle)));
    if program("apt-get").is_none() {
        return Err(stop(Obstacle::NoApt));
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(stop(Obstacle::NotRoot));
    }
    eprintln!("Installing them now (apt-get as root).");
    command::run(Command::new("apt-get").arg("update"))
        .map_err(|error| stop(Obstacle::Failed).context(error))?;
    let mut install = Command::new("apt-get");
    install
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "-y", "--no-install-recommends"])
        .args(&needs.packages);
    command::run(&mut install).map_err(|error| stop(Obstacle::Failed).context(error))?;
    let registry = needs.packages.contains(&"docker-registry");
    if registry && Path::new("/run/systemd/system").exists() {
        eprintln!("The package starts a registry of its own on port 5000; ours runs elsewhere.");
        command::run(Command::new("systemctl").args(["disable", "--now", "docker-registry"]))?;
    }
    if let Some(still) = missing.iter().find(|package| !package.is_there()) {
        let text = format!(
            "{} is installed, but what it brings is not there",
            still.name
        );
        return Err(Missing::new(text).into());
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
        .env("LLVM_PREFIX", LLVM)
        // Its own profile takes three times as long, and the linker spends its time in LLVM.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    cargo
}

fn install_linker(root: &Path) -> anyhow::Result<PathBuf> {
    eprintln!("Compiling bpf-linker {LINKER_VERSION} into target/tools (once, about a minute).");
    command::run(&mut linker_command(root))?;
    find_linker(root).context("bpf-linker was compiled, but does not run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_rights_or_apt_the_commands_are_printed() {
        let needs = Needs {
            packages: vec!["rustc-web", "skopeo"],
            compiler: true,
            linker: Some("cargo install bpf-linker".to_owned()),
        };
        // (apt, what went wrong, begins with)
        let rows = [
            (Obstacle::NotRoot, "Run as root"),
            (Obstacle::NoApt, "This machine has no apt-get"),
            (Obstacle::Failed, "apt-get did not get them"),
        ];
        for (obstacle, begin) in rows {
            let text = needs.commands(obstacle);
            assert!(text.starts_with(begin), "{text}");
            for line in [
                "    apt-get update\n",
                "    apt-get install -y --no-install-recommends rustc-web skopeo\n",
                "    rustup toolchain install nightly --component rust-src\n",
                "    cargo install bpf-linker\n",
            ] {
                assert!(text.contains(line), "{line} is not in {text}");
            }
        }
    }
}
