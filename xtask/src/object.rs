//! The BPF object: compiled for another target, by another compiler, in a folder of its own.
//!
//! Not user space, which is `build`'s. Called by `build` with what `setup` found.

use crate::command;
use crate::setup::BpfCompiler;
use crate::steps::{MESSAGES, Steps};
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";
const FLAGS: &str = "-Cdebuginfo=2 -Ctarget-cpu=v3 -Clink-arg=--btf";

/// Compiles the programs, and gives the object's path.
pub(crate) fn build(
    root: &Path,
    compiler: &BpfCompiler,
    linker: &Path,
    steps: &mut Steps,
) -> anyhow::Result<PathBuf> {
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
        MESSAGES,
    ]);
    let arch = std::env::consts::ARCH;
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
    cargo.env(
        "CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS",
        format!("--cfg=bpf_target_arch=\"{arch}\" {FLAGS}"),
    );
    let folder = root.join("target/bpf");
    steps.compile(root, "BPF object", cargo.env("CARGO_TARGET_DIR", &folder))?;
    Ok(folder.join(TARGET).join("release/hydrofoil"))
}
