//! `cargo xtask demo`: sets up, builds, and becomes the demo's driver.
//!
//! The driver is a binary of `tests-cluster`, because it shares the tests' harness, which
//! this crate may not depend on.

use crate::setup::{self, For};
use crate::{build, command};
use anyhow::Context as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// Comes back only with an error: on success the driver's exit code is ours.
pub(crate) fn run(root: &Path) -> anyhow::Result<bool> {
    let tools = setup::run(root, For::Test)?;
    let folder = build::with(root, &tools)?;
    let mut cargo = command::cargo(root, &["build", "--quiet", "--locked"]);
    command::run_quietly(cargo.args(["-p", "tests-cluster", "--bin", "demo"]))?;
    // By exec, so that Ctrl-C reaches the one process that has something to clean up.
    let mut driver = Command::new(root.join("target/debug/demo"));
    let error = driver.env("HYDROFOIL_BIN", folder).current_dir(root).exec();
    Err(error).context("start target/debug/demo")
}
