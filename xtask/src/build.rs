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

/// Sets up for building, then builds. Gives the folder.
pub(crate) fn run(root: &Path) -> anyhow::Result<PathBuf> {
    let tools = setup::run(root, For::Build)?;
    with(root, &tools)
}

/// Builds with tools that setup found.
pub(crate) fn with(root: &Path, tools: &Tools) -> anyhow::Result<PathBuf> {
    eprintln!("BPF compiler: {}", tools.compiler);
    object::build(root, &tools.compiler, &tools.linker)?;
    let packages = [
        "-p",
        "control-cli",
        "-p",
        "control-server",
        "-p",
        "agent-daemon",
    ];
    let mut cargo = command::cargo(root, &["build", "--release", "--locked"]);
    command::run(cargo.args(packages))?;
    let folder = root.join("target/release");
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    build_static(root, &target)?;
    for binary in ["foil-shim", "app"] {
        let built = root
            .join("target")
            .join(&target)
            .join("release")
            .join(binary);
        copy(&built, &folder.join(binary))?;
    }
    Ok(folder)
}

/// `--target` keeps the flag away from build scripts and macros, which cannot be static.
fn build_static(root: &Path, target: &str) -> anyhow::Result<()> {
    let library =
        command::read(Command::new("pkg-config").args(["--variable=libdir", "libseccomp"]))?;
    let mut cargo = command::cargo(
        root,
        &["build", "--release", "--locked", "--target", target],
    );
    cargo.args(["-p", "agent-shim", "-p", "tests-app"]);
    cargo.env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
    cargo
        .env("LIBSECCOMP_LINK_TYPE", "static")
        .env("LIBSECCOMP_LIB_PATH", library.trim());
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
