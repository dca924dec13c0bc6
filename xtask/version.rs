//! Build script of the three programs: `HYDROFOIL_VERSION` for `env!`, as Kubernetes writes
//! versions: `v0.1.0+COMMIT`, or `v0.1.0` outside of a git checkout.
//!
//! Of the programs only, so that a commit compiles no library anew.

use std::path::Path;
use std::process::Command;

fn main() {
    let version = env!("CARGO_PKG_VERSION");
    let full = match git(&["rev-parse", "--short=12", "HEAD"]) {
        Some(commit) => format!("v{version}+{commit}"),
        None => format!("v{version}"),
    };
    println!("cargo:rustc-env=HYDROFOIL_VERSION={full}");
    // Written by each commit, checkout and rebase.
    match git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        Some(log) if Path::new(&log).exists() => println!("cargo:rerun-if-changed={log}"),
        _ => println!("cargo:rerun-if-changed=Cargo.toml"),
    }
}

/// The output of a git command; `None` without git or outside of a checkout.
fn git(args: &[&str]) -> Option<String> {
    let out = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    out.status.success().then(|| text.trim().to_owned())
}
