//! A cluster on one machine: topology, registry, control plane, agents, and `foil` to speak to it.
//!
//! Real binaries from [`crate::bin_dir`] with real config files below one temporary folder.
//! Called by the cluster tests, the demo and the benchmark; `Drop` leaves nothing behind.

use crate::node::{CONTROL_PORT, Node};
use crate::topology::{Topology, WIRE_IP};
use crate::{NetNs, Output, Process, image, leftovers, process, registry, wait, wait_until};
use nix::mount::{MsFlags, mount};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The whole, and the guard of all of it.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    root: PathBuf,
    topology: Topology,
    nodes: Vec<Node>,
    control: Option<Process>,
    registry: Option<Process>,
    /// What `foil` works in unless it is told otherwise.
    namespace: String,
    images: Vec<String>,
    cleaned: bool,
}

/// The namespace of a cluster's first context.
const DEFAULT_NAMESPACE: &str = "default";

impl Cluster {
    /// Namespaces, registry, control plane and `nodes` agents, all nodes Ready.
    ///
    /// # Panics
    /// With the logs, if anything does not come up.
    pub fn start(nodes: usize) -> Self {
        Self::start_with_spare(nodes, 0)
    }

    /// [`Self::start`], with namespaces for `spare` further nodes that have no agent yet.
    ///
    /// # Panics
    /// With the logs, if anything does not come up.
    pub fn start_with_spare(nodes: usize, spare: usize) -> Self {
        let mut this = Self::prepare(nodes + spare);
        this.start_registry();
        this.start_control();
        for index in 0..nodes {
            this.add_agent(index);
        }
        this.wait_nodes_ready();
        this
    }

    /// Namespaces and folders only.
    ///
    /// # Panics
    /// If they cannot be made.
    pub fn prepare(nodes: usize) -> Self {
        let name = crate::unique_name();
        let root = std::env::temp_dir().join(&name);
        fs::create_dir_all(root.join("bpf")).expect("folder of a cluster");
        let topology = Topology::create(&name, nodes);
        let this = Self {
            name,
            root,
            topology,
            nodes: Vec::new(),
            control: None,
            registry: None,
            namespace: DEFAULT_NAMESPACE.to_owned(),
            images: Vec::new(),
            cleaned: false,
        };
        let bpffs = this.root.join("bpf");
        mount(
            Some("bpf"),
            &bpffs,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap_or_else(|error| panic!("mount bpffs on {}: {error}", bpffs.display()));
        this
    }

    /// The registry, on the wire.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_registry(&mut self) {
        self.registry = Some(registry::start(self.topology.wire(), &self.root));
    }

    /// Builds the tests' images and pushes them into the registry.
    ///
    /// # Panics
    /// If busybox, `app` or skopeo is missing, or the registry refuses.
    pub fn push_images(&mut self) {
        self.images = image::push_all(self.wire(), &registry::address(), &self.root);
    }

    /// References of what was pushed, "172.31.0.1:5000/library/busybox:latest" and so on.
    pub fn images(&self) -> &[String] {
        &self.images
    }

    /// The control plane, on the wire; waits until `foil` gets an answer.
    ///
    /// # Panics
    /// With its log, if it does not come up.
    pub fn start_control(&mut self) {
        let config = self.root.join("control.toml");
        if !config.exists() {
            let text = format!(
                "listen = \"{WIRE_IP}:{CONTROL_PORT}\"\ndata = \"{}\"\nnames = [\"{WIRE_IP}\"]\n\
                 pod_cidr = \"10.244.0.0/16\"\nnode_prefix = 24\nservice_cidr = \"10.96.0.0/16\"\n\
                 load_balancer_pools = [\"198.51.100.0/28\"]\n",
                self.root.join("control").display()
            );
            fs::write(&config, text).expect("config of the control plane");
        }
        let mut command = self.topology.wire().command(crate::binary("foil-control"));
        command.arg("--config").arg(&config);
        self.control = Some(Process::spawn("control", &mut command, &self.control_log()));
        wait_until("control plane answers", || {
            let tail = process::tail(&self.control_log(), 30);
            assert!(
                self.control.as_mut().is_some_and(Process::is_running),
                "the control plane ended:\n{tail}"
            );
            if !self.admin_config().exists() {
                return Err(format!("no {} yet", self.admin_config().display()));
            }
            let out = self.foil(&["get", "nodes"]);
            if out.code == 0 {
                Ok(())
            } else {
                Err(out.stderr)
            }
        });
    }

    /// SIGKILL of the control plane.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill_control(&mut self) {
        self.control.take().expect("a running control plane").kill();
    }

    /// Makes node `index` known (folders, config with a fresh join token) and starts its agent.
    ///
    /// # Panics
    /// If the control plane gives no token.
    pub fn add_agent(&mut self, index: usize) {
        assert_eq!(index, self.nodes.len(), "nodes are added in order");
        let token = self.join_token();
        let mut node = Node::prepare(&self.name, &self.root, index, &token);
        node.start(self.topology.node(index));
        self.nodes.push(node);
    }

    /// An agent on a spare node, with `token = ".."` and `ca_hash = ".."` lines of one's own;
    /// it is not expected to become Ready, and ends with the guard that is given.
    pub fn spare_agent(&self, index: usize, join: &str) -> Node {
        let mut node = Node::prepare(&self.name, &self.root, index, join);
        node.start(self.topology.node(index));
        node
    }

    /// `foil-control join-token`: two TOML lines.
    ///
    /// # Panics
    /// If it fails.
    pub fn join_token(&self) -> String {
        let mut command = self.topology.wire().command(crate::binary("foil-control"));
        command
            .arg("--config")
            .arg(self.root.join("control.toml"))
            .arg("join-token");
        process::run(&mut command).success()
    }

    /// Starts the agent of a node again.
    ///
    /// # Panics
    /// If it runs already.
    pub fn start_agent(&mut self, index: usize) {
        self.nodes[index].agent = None;
        self.nodes[index].start(self.topology.node(index));
    }

    /// SIGKILL of a node's agent; its pods stay.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill_agent(&mut self, index: usize) {
        self.nodes[index].agent();
        self.nodes[index]
            .agent
            .take()
            .expect("a running agent")
            .kill();
    }

    /// Starts control plane and agents that are not running.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn ensure_running(&mut self) {
        if !self.control.as_mut().is_some_and(Process::is_running) {
            self.start_control();
        }
        for index in 0..self.nodes.len() {
            if !self.nodes[index]
                .agent
                .as_mut()
                .is_some_and(Process::is_running)
            {
                self.start_agent(index);
            }
        }
        self.wait_nodes_ready();
    }

    /// Waits until `foil get nodes` shows each node Ready.
    ///
    /// # Panics
    /// With the agents' logs, if that does not happen.
    pub fn wait_nodes_ready(&mut self) {
        let count = self.nodes.len();
        wait_until("all nodes Ready", || {
            for node in &mut self.nodes {
                node.agent();
            }
            let nodes = self.list("nodes");
            let ready = nodes.iter().filter(|node| condition(node, "Ready")).count();
            if ready == count {
                Ok(())
            } else {
                Err(format!("{ready} of {count} Ready"))
            }
        });
    }

    /// Unique name, part of every name and path of this cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Folder of all that this cluster writes.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Namespace of the control plane and the registry.
    pub fn wire(&self) -> &NetNs {
        self.topology.wire()
    }

    /// Namespace of a node, from 0.
    pub fn node_netns(&self, index: usize) -> &NetNs {
        self.topology.node(index)
    }

    pub fn node(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All that the control plane wrote, over its restarts.
    pub fn control_log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.control_log()).unwrap_or_default()).into_owned()
    }

    /// Pid of the control plane, if it runs.
    pub fn control_pid(&self) -> Option<u32> {
        self.control.as_ref().map(Process::pid)
    }

    fn control_log(&self) -> PathBuf {
        self.root.join("control.log")
    }

    /// The operator's context, made by the control plane's first start.
    pub fn admin_config(&self) -> PathBuf {
        self.root.join("control/admin.conf")
    }

    /// The namespace that `foil` works in unless it is told otherwise.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Makes a namespace, and a context for `foil` that works in it, and uses both from now on.
    ///
    /// # Panics
    /// If the namespace exists or cannot be made.
    pub fn enter_namespace(&mut self, name: &str) {
        self.foil(&["create", "namespace", name]).success();
        fs::copy(self.admin_config(), self.context_file(name)).expect("copy the context file");
        name.clone_into(&mut self.namespace);
        let namespace = format!("--namespace={name}");
        self.foil(&["config", "set-context", "--current", &namespace])
            .success();
    }

    /// Goes back to the default namespace; the one that was in use is deleted in the background.
    ///
    /// # Panics
    /// If it cannot be deleted.
    pub fn leave_namespace(&mut self) {
        let name = std::mem::replace(&mut self.namespace, DEFAULT_NAMESPACE.to_owned());
        self.foil(&["delete", "namespace", &name, "--wait=false"])
            .success();
    }

    fn context_file(&self, namespace: &str) -> PathBuf {
        if namespace == DEFAULT_NAMESPACE {
            self.admin_config()
        } else {
            self.root.join(format!("context-{namespace}"))
        }
    }

    /// A `foil` command on the wire, to be run or spawned by the caller.
    pub fn foil_command(&self, args: &[&str]) -> Command {
        let mut command = self.topology.wire().command(crate::binary("foil"));
        command
            .args(args)
            .env("FOIL_CONFIG", self.context_file(&self.namespace))
            .current_dir(crate::workspace());
        command
    }

    /// Runs `foil ARGS` to its end.
    pub fn foil(&self, args: &[&str]) -> Output {
        process::run(&mut self.foil_command(args))
    }

    /// `foil ARGS` with a manifest on standard input.
    pub fn foil_with_input(&self, args: &[&str], input: &str) -> Output {
        process::run_with(
            &mut self.foil_command(args),
            Some(input.as_bytes()),
            wait::GENEROUS,
        )
    }

    /// Objects of a kind in the namespace in use, or of a kind that has none.
    ///
    /// # Panics
    /// If `foil` fails or prints no JSON list.
    pub fn list(&self, kind: &str) -> Vec<Value> {
        self.listed(kind, &[])
    }

    /// Objects of a kind in all namespaces.
    ///
    /// # Panics
    /// If `foil` fails or prints no JSON list.
    pub fn list_all(&self, kind: &str) -> Vec<Value> {
        self.listed(kind, &["-A"])
    }

    fn listed(&self, kind: &str, options: &[&str]) -> Vec<Value> {
        let mut args = vec!["get", kind, "-o", "json"];
        args.extend(options);
        let text = self.foil(&args).success();
        let list: Value = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("`foil get {kind} -o json`: {error}\n{text}"));
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// One object of the namespace in use, or of a kind that has none; `None` when there is
    /// none of that name.
    ///
    /// # Panics
    /// If `foil` fails for another reason.
    pub fn get(&self, kind: &str, name: &str) -> Option<Value> {
        let out = self.foil(&["get", kind, name, "-o", "json"]);
        if out.code != 0 && out.stderr.to_lowercase().contains("not found") {
            return None;
        }
        let text = out.success();
        Some(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}")))
    }

    /// Ends the agents (pods stay), then `foil-agent cleanup` on each node, then the rest.
    /// Gives what each `clean` said, and what is left afterwards.
    pub fn tear_down(&mut self) -> (Vec<Output>, Vec<String>) {
        self.cleaned = true;
        let mut said = Vec::new();
        for node in &mut self.nodes {
            drop(node.agent.take());
        }
        // Also where an agent was refused: it had made its groups before it asked.
        for index in 0..self.topology.len() {
            let config = Node::config_of(&self.root, index);
            if config.exists() {
                said.push(Node::clean(&config, self.topology.node(index)));
            }
        }
        self.control = None;
        self.registry = None;
        let mut left = leftovers::of(&self.name);
        let bpffs = self.root.join("bpf");
        left.retain(|line| {
            // Ours of the harness, and removed by its guards below.
            !line.starts_with("network namespace") && *line != format!("mount {}", bpffs.display())
        });
        // The root of each bpffs has files of the kernel's own: look into the nodes' folders.
        for node in &self.nodes {
            let pins = leftovers::files(&node.pins).into_iter();
            left.extend(pins.map(|pin| format!("pin {}/{}", node.name, pin.display())));
        }
        (said, left)
    }

    /// The end of each log, for the message of a failed test.
    pub fn logs(&self, lines: usize) -> String {
        let mut out = format!(
            "control.log:\n{}",
            process::tail(&self.control_log(), lines)
        );
        for node in &self.nodes {
            out.push_str(&format!("{}:\n", node.log_file().display()));
            out.push_str(&process::tail(node.log_file(), lines));
        }
        out
    }
}

/// True if the object has that condition with status "True".
pub fn condition(object: &Value, kind: &str) -> bool {
    object["status"]["conditions"]
        .as_array()
        .is_some_and(|conditions| {
            conditions
                .iter()
                .any(|one| one["type"] == kind && one["status"] == "True")
        })
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs(60));
        }
        if !self.cleaned {
            // Agents first: a living agent would bring pods back.
            for node in &mut self.nodes {
                drop(node.agent.take());
            }
            self.control = None;
            self.registry = None;
        }
        leftovers::remove(&self.name);
        if let Err(error) = fs::remove_dir_all(&self.root) {
            eprintln!("{} stays: {error}", self.root.display());
        }
    }
}
