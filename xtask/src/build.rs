//! `cargo xtask build`: release binaries and the BPF object, all into target/release.
//!
//! The shim and the test application are linked statically: they run where no library is
//! (a container) or where each page counts (one shim per pod).
//! Called by `main`, `demo`, `test` and `bench`.

use crate::setup::{self, For, Tools};
use crate::{command, object};
use anyhow::Context as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates with binaries that are run as they are: ours, and the tests' drivers.
const PACKAGES: [&str; 6] = [
    "control-cli",
    "control-server",
    "agent-daemon",
    "tests-cluster",
    "tests-datapath",
    "tests-node",
];

/// Sets up for building, then builds. Gives the folder.
pub(crate) fn run(root: &Path) -> anyhow::Result<PathBuf> {
    let tools = setup::run(root, For::Build)?;
    with(root, &tools)
}

/// Builds with tools that setup found.
pub(crate) fn with(root: &Path, tools: &Tools) -> anyhow::Result<PathBuf> {
    eprintln!("BPF compiler: {}", tools.compiler);
    object::build(root, &tools.compiler, &tools.linker)?;
    // In one call: another selection of crates would resolve other features, and compile
    // hundreds of dependencies again. Drivers of demo and benchmark are among them.
    let mut cargo = command::cargo(root, &["build", "--release", "--locked", "--bins"]);
    for name in PACKAGES {
        cargo.args(["--package", name]);
    }
    command::run(&mut cargo)?;
    let folder = root.join("target/release");
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    // The shim has a profile of its own: small before fast, one process per pod.
    for (package, binary, profile) in [
        ("agent-shim", "foil-shim", "shim"),
        ("tests-app", "app", "release"),
    ] {
        build_static(root, &target, package, profile)?;
        let built = root.join("target").join(&target).join(profile).join(binary);
        copy(&built, &folder.join(binary))?;
    }
    Ok(folder)
}

/// The flags by the target's own variable, which keeps them away from build scripts and
/// macros: those cannot be static.
fn build_static(root: &Path, target: &str, package: &str, profile: &str) -> anyhow::Result<()> {
    let mut seccomp = Command::new("pkg-config");
    let libraries = command::read(seccomp.args(["--variable=libdir", "libseccomp"]))?;
    let mut cargo = command::cargo(
        root,
        &["build", "--locked", "--target", target, "-p", package],
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
    command::run(&mut cargo)
}

/// Copies beside and renames, because a running program cannot be written to.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let beside = to.with_extension("new");
    fs::copy(from, &beside).with_context(|| format!("write {}", beside.display()))?;
    fs::rename(&beside, to).with_context(|| format!("write {}", to.display()))
}
