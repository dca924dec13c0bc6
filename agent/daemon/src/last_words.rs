//! A container's last words: its termination log, or the end of its log, as
//! kubelet takes them into the status.
//!
//! Called by `shims.rs` when a container has ended.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use agent_plan::action::Instance;
use agent_plan::world::container_id;

use crate::log_file::{Filter, LogFile};
use crate::startup::Sys;

/// Longest message, bytes.
const MOST: u64 = 4096;
/// From the log at most so much, bytes, and so many lines.
const FROM_LOG: (usize, u64) = (2048, 80);

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

/// The last words, empty if there are none. The log's end only of a container that
/// `failed`, as in Kubernetes.
pub(crate) fn read(sys: &Sys, instance: &Instance, failed: bool) -> String {
    words(&path(sys, instance), &fallback(sys, instance), failed)
}

fn words(own: &Path, fallback: &Path, failed: bool) -> String {
    let own = end_of(own, MOST).unwrap_or_default();
    if !own.is_empty() || !failed {
        return own;
    }
    // The link, and not the log itself, says that there is something to fall back to.
    match fs::read_link(fallback) {
        Ok(log) => end_of_log(&log).unwrap_or_default(),
        Err(_no_link) => String::new(),
    }
}

/// The last lines, wherever the log was rotated, without time and stream.
fn end_of_log(path: &Path) -> std::io::Result<String> {
    let (bytes, lines) = FROM_LOG;
    let mut log = LogFile::open(path)?;
    log.skip_to_last(lines)?;
    let mut text = Vec::new();
    while log.read(&Filter::default(), false, &mut text)? {}
    if text.ends_with(b"\n") {
        text.pop();
    }
    let cut = text.len().saturating_sub(bytes);
    Ok(String::from_utf8_lossy(&text[cut..]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_fallen_back_to_on_errors_alone() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (own, link) = (at("termination-log"), at("fallback-log"));
        fs::write(at("0.log"), "2026-01-01T00:00:00.0Z stdout F hi\n").unwrap();
        fs::write(&own, "").unwrap();
        assert_eq!(words(&own, &link, true), "", "no policy, no link");
        std::os::unix::fs::symlink(at("0.log"), &link).unwrap();
        assert_eq!(words(&own, &link, true), "hi");
        assert_eq!(words(&own, &link, false), "");
        fs::write(&own, "own").unwrap();
        for failed in [true, false] {
            assert_eq!(words(&own, &link, failed), "own");
        }
    }

    #[test]
    fn the_end_of_a_log_that_was_rotated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let line = |text: &str| format!("2026-01-01T00:00:00.0Z stdout F {text}\n");
        assert_eq!(end_of_log(&path).unwrap(), "");
        fs::write(folder.path().join("0.log.1"), line("one")).unwrap();
        fs::write(&path, line("two words")).unwrap();
        assert_eq!(end_of_log(&path).unwrap(), "one\ntwo words");
        let many: String = (0..200).map(|n| line(&n.to_string())).collect();
        fs::write(&path, many).unwrap();
        let end = end_of_log(&path).unwrap();
        assert_eq!((end.lines().count(), end.lines().next()), (80, Some("120")));
        fs::write(&path, line(&"x".repeat(5000))).unwrap();
        assert_eq!(end_of_log(&path).unwrap().len(), 2048);
    }
}
