//! The BPF object: compiled for another target, by another compiler, in a folder of its own.
//!
//! Not user space, which is `build`'s. Called by `build` with what `setup` found.

use crate::command;
use crate::setup::BpfCompiler;
use anyhow::Context as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";
const FLAGS: &str = "-Cdebuginfo=2 -Ctarget-cpu=v3 -Clink-arg=--btf";

/// Compiles the programs to target/release/hydrofoil.bpf.o; the file changes only if they do.
pub(crate) fn build(root: &Path, compiler: &BpfCompiler, linker: &Path) -> anyhow::Result<PathBuf> {
    let mut cargo = match compiler {
        BpfCompiler::Debian { rustc } => {
            let mut cargo = command::cargo(root, &["build"]);
            cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
            cargo
        }
        BpfCompiler::Nightly { toolchain } => {
            let mut cargo = Command::new("rustup");
            cargo
                .current_dir(root)
                .args(["run", toolchain, "cargo", "build", "-Zbuild-std=core"]);
            cargo
        }
    };
    cargo.args([
        "--release",
        "--locked",
        "--target",
        TARGET,
        "-p",
        "ebpf-programs",
        "--bins",
    ]);
    let arch = std::env::consts::ARCH;
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
    cargo.env(
        "CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS",
        format!("--cfg=bpf_target_arch=\"{arch}\" {FLAGS}"),
    );
    let folder = root.join("target/bpf");
    command::run(cargo.env("CARGO_TARGET_DIR", &folder))?;
    let built = folder.join(TARGET).join("release/hydrofoil");
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    let object = root.join("target/release/hydrofoil.bpf.o");
    if !fs::read(&object).is_ok_and(|old| old == bytes) {
        fs::create_dir_all(root.join("target/release")).context("make target/release")?;
        fs::write(&object, bytes).with_context(|| format!("write {}", object.display()))?;
    }
    Ok(object)
}
