//! Binaries and the BPF object, in one folder: `target/debug` or `target/release`.
//!
//! Called by `main` and `bench` for release, by `demo` and `test` for dev.

use crate::setup::{self, For, Tools};
use crate::steps::{MESSAGES, Steps};
use crate::{command, object};
use anyhow::Context as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which of cargo's profiles builds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// What tests are compiled with as well, so that dependencies are compiled once.
    Dev,
    /// For installation and benchmarks.
    Release,
}

impl Profile {
    /// [`Self::Dev`] or [`Self::Release`].
    pub(crate) fn of(dev: bool) -> Self {
        if dev { Self::Dev } else { Self::Release }
    }

    /// Below `target/`.
    fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
        }
    }

    /// The statically linked binaries: crate, binary, profile. The test
    /// application runs in images that have no library. The shim that is installed is small
    /// before fast, as one runs for each pod; in the dev build it is like the other binaries,
    /// because its dependencies would be compiled once more.
    fn linked_statically(self) -> &'static [(&'static str, &'static str, &'static str)] {
        match self {
            Self::Dev => &[("tests-app", "app", "dev")],
            Self::Release => &[
                ("tests-app", "app", "release"),
                ("agent-shim", "foil-shim", "shim"),
            ],
        }
    }
}

/// The same crates in each call of cargo: another selection would resolve other features, and
/// compile hundreds of dependencies again.
pub(crate) const SELECTION: [&str; 4] = ["--locked", "--workspace", "--exclude", "ebpf-programs"];

/// Sets up for building, then builds. Gives the folder.
pub(crate) fn run(root: &Path, profile: Profile) -> anyhow::Result<PathBuf> {
    let mut steps = Steps::default();
    let tools = setup::run(root, For::Build, &mut steps)?;
    let folder = with(root, &tools, profile, &mut steps)?;
    steps.print();
    Ok(folder)
}

/// Builds with tools that setup found.
pub(crate) fn with(
    root: &Path,
    tools: &Tools,
    profile: Profile,
    steps: &mut Steps,
) -> anyhow::Result<PathBuf> {
    eprintln!("BPF compiler: {}", tools.compiler);
    let folder = root.join("target").join(profile.folder());
    let object = object::build(root, &tools.compiler, &tools.linker, steps)?;
    copy(&object, &folder.join("hydrofoil.bpf.o"))?;
    let mut cargo = command::cargo(
        root,
        &["build", "--bins", "--profile", profile.name(), MESSAGES],
    );
    steps.compile(root, "binaries", cargo.args(SELECTION))?;
    for &(package, binary, profile) in profile.linked_statically() {
        let built = build_static(root, package, binary, profile, steps)?;
        copy(&built, &folder.join(binary))?;
    }
    Ok(folder)
}

/// Builds one binary for an explicit target, whose flags do not reach build scripts and
/// macros: those cannot be static. Gives its path.
fn build_static(
    root: &Path,
    package: &str,
    binary: &str,
    profile: &str,
    steps: &mut Steps,
) -> anyhow::Result<PathBuf> {
    let mut seccomp = Command::new("pkg-config");
    let libraries = command::read(seccomp.args(["--variable=libdir", "libseccomp"]))?;
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = command::cargo(
        root,
        &[
            "build", "--locked", "--target", &target, "-p", package, MESSAGES,
        ],
    );
    cargo.args(["--profile", profile]);
    let variable = format!(
        "CARGO_TARGET_{}_RUSTFLAGS",
        target.to_uppercase().replace('-', "_")
    );
    cargo.env(
        variable,
        "-C target-feature=+crt-static -C relocation-model=static",
    );
    cargo
        .env("LIBSECCOMP_LINK_TYPE", "static")
        .env("LIBSECCOMP_LIB_PATH", libraries.trim());
    steps.compile(root, &format!("static {binary}"), &mut cargo)?;
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(root.join("target").join(target).join(folder).join(binary))
}

/// Copies beside and renames, because a running program cannot be written to.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let beside = to.with_extension("new");
    fs::copy(from, &beside).with_context(|| format!("write {}", beside.display()))?;
    fs::rename(&beside, to).with_context(|| format!("write {}", to.display()))
}
