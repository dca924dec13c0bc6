//! A container's last words: its termination log, or the end of its log, as
//! kubelet takes them into the status.
//!
//! Called by `shims.rs` when a container has ended.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use agent_plan::action::Instance;
use agent_plan::world::container_id;

use crate::startup::Sys;

/// Longest message, bytes.
const MOST: u64 = 4096;
/// From the log at most so much, bytes, and so many lines.
const FROM_LOG: (u64, usize) = (2048, 80);

/// Where the container writes them.
pub(crate) fn path(sys: &Sys, instance: &Instance) -> PathBuf {
    let id = container_id(&instance.uid, &instance.container, instance.attempt);
    sys.layout
        .bundle(&instance.uid, &id)
        .join("termination-log")
}

/// Where [`read`] finds the log to fall back to, if the policy says so.
fn fallback(sys: &Sys, instance: &Instance) -> PathBuf {
    path(sys, instance).with_file_name("fallback-log")
}

/// Makes the file for a container about to be made. `log`: fall back to this one.
pub(crate) fn prepare(sys: &Sys, instance: &Instance, log: Option<&Path>) -> std::io::Result<()> {
    let path = path(sys, instance);
    fs::write(&path, b"")?;
    // Whoever the container runs as shall be able to write it.
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions(&path, permissions)?;
    match log {
        Some(log) => std::os::unix::fs::symlink(log, fallback(sys, instance)),
        None => Ok(()),
    }
}

fn end_of(path: &Path, most: u64) -> Option<String> {
    let mut file = fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last words, empty if there are none.
pub(crate) fn read(sys: &Sys, instance: &Instance) -> String {
    let own = end_of(&path(sys, instance), MOST).unwrap_or_default();
    if !own.is_empty() {
        return own;
    }
    let Some(log) = end_of(&fallback(sys, instance), FROM_LOG.0) else {
        return own;
    };
    content(&log)
}

/// The texts of CRI log lines, without time and stream.
fn content(log: &str) -> String {
    let lines: Vec<&str> = log
        .lines()
        .filter_map(|line| line.splitn(4, ' ').nth(3))
        .collect();
    lines[lines.len().saturating_sub(FROM_LOG.1)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_a_log() {
        let log =
            "2026-01-01T00:00:00.0Z stdout F one\n2026-01-01T00:00:00.1Z stderr F two words\ncut";
        assert_eq!(content(log), "one\ntwo words");
    }
}
