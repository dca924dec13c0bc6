//! A node that the agent's tests stand on: a namespace with an uplink, an agent, a
//! control plane of a few lines, and pods as they are sent.

use std::fs;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::Command;

use agent_sys::image::{ImageStore, Reference};
use nix::fcntl::{FcntlArg, fcntl};
use proto::Message as _;
use proto::v1;
use proto::v1::change::Change;
use proto::v1::container_state::State;
use tests_harness::{NetNs, Process, binary, image, process, unique_name, wait_until};

use crate::control::{Control, TOKEN};

/// A node with its agent and its control plane. Removed when dropped.
pub(crate) struct Node {
    pub(crate) netns: NetNs,
    pub(crate) control: Control,
    pub(crate) folder: PathBuf,
    /// Of the parent group, among others.
    pub(crate) name: String,
    pub(crate) agent: Option<Process>,
}

impl Node {
    pub(crate) fn new() -> Self {
        let name = unique_name();
        let netns = NetNs::create("agent");
        netns.ip(&[
            "link", "add", "eth0", "type", "veth", "peer", "name", "wire",
        ]);
        netns.ip(&["address", "add", "172.31.0.11/24", "dev", "eth0"]);
        netns.ip(&["link", "set", "wire", "up"]);
        netns.ip(&["link", "set", "eth0", "up"]);
        let control = Control::start(&netns);
        let folder = std::env::temp_dir().join(&name);
        let layout = image::busybox_layout(&folder.join("image"));
        let store = ImageStore::open(&folder.join("lib/images")).expect("image store");
        let reference = Reference::parse("busybox").expect("reference");
        tokio::runtime::Runtime::new()
            .expect("runtime")
            .block_on(store.import(&layout, Some(&reference)))
            .expect("import busybox");
        let node = Self {
            netns,
            control,
            folder,
            name,
            agent: None,
        };
        node.configure(TOKEN, &node.control.ca_hash);
        node
    }

    pub(crate) fn configure(&self, token: &str, ca_hash: &str) {
        let folder = self.folder.display();
        let text = format!(
            "node_name = \"n1\"\ncontrol = \"https://127.0.0.1:{port}\"\n\
             root = \"{folder}/lib\"\nrun = \"{folder}/run\"\nbpffs = \"{folder}/bpf\"\n\
             cgroup = \"/{name}\"\nshim = {shim:?}\nbpf_object = {object:?}\n\
             restart_backoff_base_ms = 200\nimage_backoff_base_ms = 200\n\
             [join]\ntoken = {token:?}\nca_hash = {ca_hash:?}\n\
             [[registry]]\nhost = \"docker.io\"\nendpoint = \"http://127.0.0.1:1\"\n",
            port = self.control.port,
            name = self.name,
            shim = binary("foil-shim"),
            object = binary("hydrofoil.bpf.o"),
        );
        fs::write(self.config(), text).expect("configuration");
    }

    /// Adds a line to the top of the configuration.
    pub(crate) fn add_to_config(&self, line: &str) {
        let text = fs::read_to_string(self.config()).expect("configuration");
        fs::write(self.config(), format!("{line}\n{text}")).expect("configuration");
    }

    fn config(&self) -> PathBuf {
        self.folder.join("agent.toml")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    pub(crate) fn start(&mut self) {
        self.start_until(None);
    }

    /// Starts an agent that dies at a place (`agent/daemon/src/failpoint.rs`).
    pub(crate) fn start_until(&mut self, place: Option<&str>) {
        let mut command = self.netns.command(binary("foil-agent"));
        command
            .arg("--config")
            .arg(self.config())
            .env("RUST_LOG", "info,foil_agent=debug")
            .envs(place.map(|place| ("FOIL_FAILPOINT", place)));
        self.agent = Some(Process::spawn("agent", &mut command, &self.log()));
    }

    /// Starts an agent below a service manager, which listens at `notify` in the node's folder
    /// and has kept these sockets of cluster DNS.
    pub(crate) fn start_kept(&mut self, sockets: &[OwnedFd]) {
        let copies = inheritable(sockets);
        // LISTEN_PID is known only in the process that becomes the agent.
        let mut script = String::new();
        if !copies.is_empty() {
            let names = vec!["dns"; copies.len()].join(":");
            script += &format!(
                "export LISTEN_FDS={} LISTEN_FDNAMES={names}\n",
                copies.len()
            );
            script += "export LISTEN_PID=$$\n";
        }
        for (number, copy) in (3..).zip(&copies) {
            script += &format!("exec {number}<&{copy} {copy}<&-\n");
        }
        script += "exec \"$@\"";
        let mut command = self.netns.command("bash");
        command
            .args(["-c", &script, "bash"])
            .arg(binary("foil-agent"))
            .arg("--config")
            .arg(self.config())
            .env("RUST_LOG", "info,foil_agent=debug")
            .env("NOTIFY_SOCKET", self.folder.join("notify"));
        self.agent = Some(Process::spawn("agent", &mut command, &self.log()));
        for copy in copies {
            nix::unistd::close(copy).expect("close a copy");
        }
    }

    /// A subcommand of the agent, beside the one that runs.
    pub(crate) fn agent_command(&self, subcommand: &str) -> Command {
        let mut command = self.netns.command(binary("foil-agent"));
        command.arg("--config").arg(self.config()).arg(subcommand);
        command
    }

    /// Waits until this revision is on the agent's disk; it is written a moment after
    /// it came.
    pub(crate) fn saved(&self, revision: u64) {
        let path = self.folder.join("lib/state/pushed");
        wait_until("the revision on disk", || {
            let kept = agent_sys::journal::read(&path).map_err(|error| error.to_string())?;
            let head = kept.get("").ok_or("no revision")?;
            let record = v1::NodeRecord::decode(&head[..]).map_err(|error| error.to_string())?;
            if record.revision >= revision {
                Ok(())
            } else {
                Err(format!("{}", record.revision))
            }
        });
    }

    pub(crate) fn kill(&mut self) {
        self.agent.take().expect("an agent that runs").kill();
    }

    pub(crate) fn push_config(&self) {
        self.control.push(vec![Change::Config(v1::ClusterConfig {
            pod_cidrs: vec!["10.244.0.0/16".into()],
            service_cidrs: vec!["10.96.0.0/16".into()],
            node_pod_cidrs: vec!["10.244.1.0/24".into()],
            ..Default::default()
        })]);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("agent's log:\n{}", process::tail(&self.log(), 80));
        }
        drop(self.agent.take());
        let mut command = self.netns.command(binary("foil-agent"));
        command.arg("--config").arg(self.config()).arg("cleanup");
        let out = process::run(&mut command);
        let removed = fs::remove_dir_all(&self.folder);
        if !std::thread::panicking() {
            assert_eq!(out.code, 0, "cleanup: {}", out.stderr);
            removed.expect("remove the test's folder");
        }
    }
}

pub(crate) fn pod(uid: &str, last: u8, command: &str) -> v1::PodSpec {
    v1::PodSpec {
        uid: uid.into(),
        namespace: "default".into(),
        name: uid.into(),
        generation: 1,
        ips: vec![format!("10.244.1.{last}")],
        hostname: uid.into(),
        identity: 100,
        restart_policy: "Always".into(),
        termination_grace_period_seconds: 30,
        qos_class: "BestEffort".into(),
        containers: vec![v1::ContainerSpec {
            name: "main".into(),
            image: "busybox".into(),
            image_pull_policy: "IfNotPresent".into(),
            command: vec!["/bin/sh".into(), "-ec".into(), command.into()],
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub(crate) fn stopped(mut spec: v1::PodSpec, grace: i64) -> Change {
    spec.generation += 1;
    spec.stop_grace_seconds = Some(grace);
    Change::Pod(spec)
}

pub(crate) fn ready(status: &v1::PodStatus) -> bool {
    status
        .conditions
        .iter()
        .any(|c| c.r#type == "Ready" && c.status == "True")
}

pub(crate) fn started_ms(status: &v1::PodStatus) -> i64 {
    match status.containers[0]
        .state
        .as_ref()
        .and_then(|s| s.state.as_ref())
    {
        Some(State::Running(running)) => running.started_ms,
        other => panic!("not running: {other:?}"),
    }
}

/// How the container ended, now or the last time.
pub(crate) fn ended(status: &v1::PodStatus) -> v1::container_state::Terminated {
    let container = &status.containers[0];
    let states = [&container.state, &container.last_state];
    let found = states
        .into_iter()
        .flatten()
        .find_map(|s| match s.state.as_ref() {
            Some(State::Terminated(t)) => Some(t.clone()),
            Some(State::Waiting(_) | State::Running(_)) | None => None,
        });
    found.unwrap_or_else(|| panic!("no end: {status:#?}"))
}

pub(crate) fn waits(status: &v1::PodStatus, reason: &str) -> bool {
    matches!(
        status.containers[0].state.as_ref().and_then(|s| s.state.as_ref()),
        Some(State::Waiting(waiting)) if waiting.reason == reason
    )
}

/// Copies that a child inherits, from number 100 on.
fn inheritable(fds: &[OwnedFd]) -> Vec<RawFd> {
    let copy = |fd: &OwnedFd| fcntl(fd.as_fd(), FcntlArg::F_DUPFD(100)).expect("copy a socket");
    fds.iter().map(copy).collect()
}
