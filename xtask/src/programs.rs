//! Test programs: compiled by one call of cargo, then started as `cargo test` would.
//!
//! Not what they say, which `test` reads.

use crate::command;
use crate::steps::{MESSAGES, Steps};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One executable with tests.
pub(crate) struct Program {
    /// Of its crate, from the root: "agent/plan".
    pub(crate) folder: String,
    path: PathBuf,
}

impl Program {
    /// Whether it is of a crate's library, and not of one of its binaries.
    pub(crate) fn is_library_of(&self, folder: &str) -> bool {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.folder == folder && name.starts_with(&format!("{}-", folder.replace('/', "_")))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its command line, with the working folder that cargo promises.
    pub(crate) fn command(&self, root: &Path) -> Command {
        let folder = root.join(&self.folder);
        let mut command = Command::new(&self.path);
        command
            .env("CARGO_MANIFEST_DIR", &folder)
            .current_dir(folder);
        command
    }
}

/// Compiles all that `cargo test SELECTION` would run.
pub(crate) fn compile(
    root: &Path,
    selection: &[&str],
    steps: &mut Steps,
) -> anyhow::Result<Vec<Program>> {
    let mut cargo = command::cargo(root, &["test", "--no-run", MESSAGES]);
    let messages = steps.compile(root, "test programs", cargo.args(selection))?;
    let mut programs: Vec<Program> = messages
        .iter()
        .filter_map(|message| program(root, message))
        .collect();
    programs.sort_by(|a, b| a.folder.cmp(&b.folder).then(a.path.cmp(&b.path)));
    Ok(programs)
}

/// The executable that a message of cargo is about, if it has tests.
fn program(root: &Path, message: &Value) -> Option<Program> {
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let manifest = Path::new(message["manifest_path"].as_str()?);
    let folder = manifest.parent()?.strip_prefix(root).ok()?;
    let path = PathBuf::from(message["executable"].as_str()?);
    Some(Program {
        folder: folder.display().to_string(),
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_with_tests_are_taken() {
        let text = r#"{"reason":"compiler-artifact","manifest_path":"/w/agent/plan/Cargo.toml",
            "profile":{"test":true},"executable":"/w/target/debug/deps/agent_plan-1"}"#;
        let message: Value = serde_json::from_str(text).expect("JSON");
        let found = program(Path::new("/w"), &message).expect("a program");
        assert_eq!(found.folder, "agent/plan");
        let library = text.replace("\"test\":true", "\"test\":false");
        let library: Value = serde_json::from_str(&library).expect("JSON");
        assert!(program(Path::new("/w"), &library).is_none());
    }
}
