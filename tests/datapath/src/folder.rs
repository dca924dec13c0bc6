//! Folders for pins.

use std::path::{Path, PathBuf};
use tests_harness::unique_name;

/// A folder for pins, removed with all that is in it.
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// A unique name; the folder is made by the first that pins into it.
    pub fn new() -> Self {
        Self {
            path: std::env::temp_dir().join(format!("{}-pins", unique_name())),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        match agent_sys::bpf::remove(&self.path) {
            Err(error) if std::thread::panicking() => eprintln!("pins stay: {error}"),
            removed => removed.expect("remove all pins"),
        }
    }
}
