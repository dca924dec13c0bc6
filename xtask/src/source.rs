//! Source files as `tidy` and `circles` read them.

use anyhow::Context as _;
use std::fs;
use std::path::Path;

/// A source file: path from the root, and its text.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    /// Lines before the module of tests.
    pub(crate) fn product(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut lines: Vec<&str> = self.text.lines().collect();
        let mut end = lines.len();
        for (at, line) in lines.iter().enumerate() {
            let mut after = lines[at..].iter().skip_while(|line| line.starts_with("#["));
            if *line == "#[cfg(test)]" && after.next().is_some_and(|line| line.contains("mod ")) {
                end = at;
                break;
            }
        }
        lines.truncate(end);
        lines
            .into_iter()
            .enumerate()
            .map(|(at, line)| (at + 1, line))
    }

    /// A file that is only tests of the crate it is in.
    pub(crate) fn is_test_module(&self) -> bool {
        self.path.ends_with("tests.rs") || self.path.contains("/tests/")
    }
}

/// All source files of a folder, by path.
pub(crate) fn collect(root: &Path, folder: &str, into: &mut Vec<Source>) -> anyhow::Result<()> {
    let entries = fs::read_dir(root.join(folder)).with_context(|| format!("read {folder}"))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("read {folder}"))?;
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            collect(root, &path, into)?;
        } else if path.ends_with(".rs") {
            let text = fs::read_to_string(entry.path()).with_context(|| format!("read {path}"))?;
            into.push(Source { path, text });
        }
    }
    into.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(())
}
