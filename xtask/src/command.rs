//! Running other programs: echoed, streamed, and with their failure as an error.
//!
//! Called by every task.

use anyhow::{Context as _, bail};
use std::process::{Command, Stdio};

/// A cargo command in the workspace's root, by the cargo that runs us.
pub(crate) fn cargo(root: &std::path::Path, args: &[&str]) -> Command {
    #[expect(
        clippy::disallowed_methods,
        reason = "cargo tells the programs that it runs by this variable which cargo it is"
    )]
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(args).current_dir(root);
    // `cargo run` sets them for this program. Build scripts that watch them (ring's) would run
    // again whenever `cargo xtask` and `cargo` take turns, and most dependencies after them.
    for own in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH"] {
        command.env_remove(own);
    }
    command
}

/// Prints the command as `$ ...`, runs it with our own output, and fails if it does.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    eprintln!("$ {}", line_of(command));
    run_quietly(command)
}

/// [`run`] without the echo.
pub(crate) fn run_quietly(command: &mut Command) -> anyhow::Result<()> {
    let line = line_of(command);
    let status = command
        .status()
        .with_context(|| format!("start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Standard output of a command that must succeed; its standard error is shown.
pub(crate) fn read(command: &mut Command) -> anyhow::Result<String> {
    let line = line_of(command);
    let out = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start `{line}`"))?;
    if !out.status.success() {
        bail!("`{line}` failed ({})", out.status);
    }
    String::from_utf8(out.stdout).with_context(|| format!("output of `{line}`"))
}

/// True if it can be started and succeeds; says nothing.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// The command as one would type it, with the variables that it sets.
pub(crate) fn line_of(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(format!(
                "{}={}",
                name.display(),
                quoted(&value.to_string_lossy())
            ));
        }
    }
    let program = command.get_program().to_string_lossy();
    // The full path of a toolchain's cargo would only be noise.
    let cargo = program.ends_with("/cargo");
    words.push(if cargo {
        "cargo".to_owned()
    } else {
        program.into_owned()
    });
    words.extend(
        command
            .get_args()
            .map(|word| quoted(&word.to_string_lossy())),
    );
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{word}'")
    }
}
