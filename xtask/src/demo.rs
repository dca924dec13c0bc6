//! `cargo xtask demo`: sets up, builds, and becomes the demo's driver.
//!
//! The driver is a binary of `tests-cluster`, because it shares the tests' harness, which
//! this crate may not depend on.

use crate::build::{self, Profile};
use crate::setup::{self, For};
use crate::steps::Steps;
use anyhow::Context as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// Comes back only with an error: on success the driver's exit code is ours.
pub(crate) fn run(root: &Path) -> anyhow::Result<bool> {
    let mut steps = Steps::default();
    let tools = setup::run(root, For::Test, &mut steps)?;
    let folder = build::with(root, &tools, Profile::Dev, &mut steps)?;
    steps.print();
    // By exec, so that Ctrl-C reaches the one process that has something to clean up.
    let mut driver = Command::new(folder.join("demo"));
    let error = driver.env("HYDROFOIL_BIN", folder).current_dir(root).exec();
    Err(error).context("start the demo's driver")
}
