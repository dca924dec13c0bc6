//! Running `foil` as a user does: arguments in; output, errors and exit code out.

use std::io::Write as _;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use proto::v1;
use serde_json::Value;
use tests_control::{Pki, Server};
use tokio::runtime::Runtime;

use crate::node::Node;

/// Where `foil` runs: a folder with its context file.
pub(crate) struct Workdir {
    pub(crate) folder: tempfile::TempDir,
}

/// A control plane, and a folder with a context for it.
pub(crate) struct Bench {
    workdir: Workdir,
    /// Of the control plane and the nodes: it ends with it, as with a killed process.
    runtime: Option<Runtime>,
    server: tokio::sync::Mutex<Server>,
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

impl Workdir {
    /// Without a control plane, and with an empty context file.
    pub(crate) fn new() -> Self {
        let workdir = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        workdir.write("config", "");
        workdir
    }

    /// Puts a file into the folder.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs `foil` with these words, in the folder.
    pub(crate) fn foil(&self, words: &[&str]) -> Ended {
        self.foil_with(words, "")
    }

    /// The same with something on standard input.
    pub(crate) fn foil_with(&self, words: &[&str], input: &str) -> Ended {
        let mut child = self.spawn(words);
        // A command that fails before it reads closes its end.
        drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
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

impl Deref for Bench {
    type Target = Workdir;

    fn deref(&self) -> &Workdir {
        &self.workdir
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

impl Bench {
    pub(crate) fn new() -> Self {
        let runtime = runtime();
        let server = runtime.block_on(tests_control::server());
        let bench = Self {
            workdir: Workdir::new(),
            runtime: Some(runtime),
            server: tokio::sync::Mutex::new(server),
        };
        let context = bench.with_server(async |server| {
            std::fs::read_to_string(server.folder.path().join("admin.conf")).unwrap()
        });
        // A look-up of "localhost" gives an address that the server does not listen on.
        bench.write("config", &context.replace("//localhost:", "//127.0.0.1:"));
        bench
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap()
    }

    /// Does something in the control plane's runtime.
    pub(crate) fn with_server<T>(&self, work: impl AsyncFnOnce(&mut Server) -> T) -> T {
        self.runtime().block_on(async {
            let mut server = self.server.lock().await;
            work(&mut server).await
        })
    }

    /// A node that the test plays.
    pub(crate) fn node(&self, name: &str) -> Node {
        self.with_server(async |server| Node::start(server, name).await)
    }

    /// Applies an object as another client than `foil`; gives it as it is stored.
    pub(crate) fn put(&self, object: &Value) -> Value {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("");
        let request = v1::ApplyRequest {
            json: object.to_string().into_bytes(),
            field_manager: "test".to_owned(),
            namespace: namespace.to_owned(),
            ..v1::ApplyRequest::default()
        };
        let answer = self.with_server(async |server| server.client.apply(request).await);
        let stored = answer.unwrap().into_inner().object.unwrap();
        serde_json::from_slice(&stored.json).unwrap()
    }

    /// An object of the namespace "default", or of none.
    pub(crate) fn get(&self, word: &str, name: &str) -> Value {
        self.with_server(async |server| server.get(word, name).await.unwrap())
    }

    /// Objects of a kind in all namespaces.
    pub(crate) fn list(&self, word: &str) -> Vec<Value> {
        self.with_server(async |server| server.list(word, "").await)
    }

    /// Waits until the objects of a kind satisfy a condition.
    pub(crate) fn until(&self, word: &str, what: &str, met: impl Fn(&[Value]) -> bool) {
        self.with_server(async |server| server.until(word, "", what, met).await);
    }

    /// Waits until these pods are ready.
    pub(crate) fn until_ready(&self, pods: usize) {
        self.until("pods", "ready pods", |found| {
            found.len() == pods && found.iter().all(tests_control::is_ready)
        });
    }

    /// Kills the control plane with all its connections; `start` begins another.
    pub(crate) fn kill(&mut self) -> std::net::SocketAddr {
        let address = self.with_server(async |server| server.running().address);
        let server = self.server.get_mut();
        server.running = None;
        self.runtime
            .take()
            .unwrap()
            .shutdown_timeout(std::time::Duration::from_secs(30));
        address
    }

    /// A control plane on the same store, at the same address.
    pub(crate) fn start(&mut self, address: std::net::SocketAddr) {
        self.runtime = Some(runtime());
        self.with_server(async |server| server.start_at(address).await);
    }
}

/// A context file.
pub(crate) fn context_file(server: &str, ca: &str, certificate: &str, key: &str) -> String {
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    format!(
        "apiVersion: v1
kind: Config
current-context: admin@test
clusters:
- name: test
  cluster:
    server: {server}
    certificate-authority-data: {}
users:
- name: admin
  user:
    client-certificate-data: {}
    client-key-data: {}
contexts:
- name: admin@test
  context: {{cluster: test, user: admin}}
",
        encode(ca),
        encode(certificate),
        encode(key)
    )
}

/// An authority of its own, with no server.
pub(crate) fn authority() -> (tempfile::TempDir, Pki) {
    let folder = tempfile::tempdir().unwrap();
    let pki = Pki::open(folder.path(), jiff::Timestamp::now()).unwrap();
    (folder, pki)
}

/// The context of an operator of this authority, whose certificate was made at this time.
pub(crate) fn context_of(server: &str, ca: &Pki, user: &Pki, made: jiff::Timestamp) -> String {
    let user = user.admin(made).unwrap();
    context_file(server, ca.ca_pem(), &user.chain_pem, &user.key_pem)
}

/// The cells of a table, which are two spaces or more apart. Ages ("5s", "2m10s") become "AGE".
pub(crate) fn cells(table: &str) -> Vec<Vec<String>> {
    let is_age = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_digit())
            && word.ends_with(['s', 'm', 'h', 'd'])
            && word
                .chars()
                .all(|c| c.is_ascii_digit() || "smhd".contains(c))
    };
    let cell = |cell: &str| {
        let words = cell.split(' ').map(|word| {
            let bare = word.trim_matches(['(', ')']);
            if is_age(bare) {
                word.replace(bare, "AGE")
            } else {
                word.to_owned()
            }
        });
        words.collect::<Vec<_>>().join(" ")
    };
    let row = |line: &str| {
        let cells = line.split("  ").map(str::trim);
        cells.filter(|text| !text.is_empty()).map(cell).collect()
    };
    table.lines().map(row).collect()
}
