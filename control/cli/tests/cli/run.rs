//! Running `foil` as a user does: arguments in; output, errors and exit code out.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::fake::Control;
use crate::pki::{self, Authority};

/// A control plane, and a context file for it.
pub(crate) struct Bench {
    pub(crate) control: Control,
    pub(crate) folder: tempfile::TempDir,
}

/// How a command ended.
#[derive(Debug, PartialEq)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// Output of a command that must have succeeded without a word of complaint.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{self:?}");
        self.out
    }

    /// What was complained about by a command that must have failed with 1.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        assert_eq!(self.code, 1, "{self:?}");
        self.err
    }
}

impl Bench {
    pub(crate) fn new() -> Self {
        let authority = Authority::new();
        let control = Control::start(&authority.sign("127.0.0.1", (2020, 2060)), &authority);
        let bench = Self {
            control,
            folder: tempfile::tempdir().unwrap(),
        };
        let user = authority.sign("admin", (2020, 2060));
        let server = format!("https://{}", bench.control.address);
        bench.write(
            "config",
            &pki::context_file(&server, &authority.pem(), &user),
        );
        bench
    }

    /// Puts a file into the test's folder.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Puts an object into the control plane as it is.
    pub(crate) fn put(&self, object: Value) {
        self.control.store.lock().unwrap().put(object);
    }

    /// Runs `foil` with these words, in the test's folder.
    pub(crate) fn foil(&self, words: &[&str]) -> Ended {
        self.foil_with(words, "")
    }

    /// The same with something on standard input.
    pub(crate) fn foil_with(&self, words: &[&str], input: &str) -> Ended {
        let mut child = self.spawn(words);
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        Ended {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Starts it and lets it run.
    pub(crate) fn spawn(&self, words: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_foil"))
            .args(words)
            .current_dir(self.folder.path())
            .env_clear()
            .env("FOIL_CONFIG", self.folder.path().join("config"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}
