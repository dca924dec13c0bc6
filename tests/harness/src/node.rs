//! One node of a test cluster: its folders, its agent's config file, and the agent.
//!
//! Not the namespace, which is the topology's. Called by `cluster`.

use crate::topology::{WIRE_IP, node_ip, node_name};
use crate::{NetNs, Output, Process, process, registry};
use std::fs;
use std::path::{Path, PathBuf};

/// Port of the control plane on [`WIRE_IP`].
pub const CONTROL_PORT: u16 = 7443;

/// Where things of one node are.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub ip: String,
    /// The agent's config file.
    pub config: PathBuf,
    /// bpffs folder of its pins.
    pub pins: PathBuf,
    /// Parent group, relative to each hierarchy's root: "/foil-1-0-n1".
    pub cgroup: String,
    log: PathBuf,
    pub(crate) agent: Option<Process>,
}

impl Node {
    /// Makes folders and the config file; `join` is what `foil-control join-token` printed.
    pub(crate) fn prepare(cluster: &str, root: &Path, index: usize, join: &str) -> Self {
        let name = node_name(index);
        let folder = root.join(&name);
        fs::create_dir_all(&folder).expect("folder of a node");
        let this = Self {
            ip: node_ip(index),
            config: Self::config_of(root, index),
            pins: root.join("bpf").join(&name),
            cgroup: format!("/{cluster}-{name}"),
            log: root.join(format!("agent-{name}.log")),
            agent: None,
            name,
        };
        this.write_config(&folder, join);
        this
    }

    fn write_config(&self, folder: &Path, join: &str) {
        let text = format!(
            "node_name = \"{name}\"\ncontrol = \"https://{WIRE_IP}:{CONTROL_PORT}\"\n\
             root = \"{folder}/lib\"\nrun = \"{folder}/run\"\nbpffs = \"{pins}\"\n\
             cgroup = \"{cgroup}\"\nresolv_conf = \"{folder}/resolv.conf\"\nuplinks = [\"eth0\"]\nnode_ip = \"{ip}\"\nflow_entries = 65536\n\
             restart_backoff_base_ms = 2000\nimage_backoff_base_ms = 2000\n\n\
             [pressure]\ndisk_available = \"1Gi\"\nimages_available = \"1Gi\"\n\n\
             [join]\n{join}\n\n[[registry]]\nhost = \"docker.io\"\nendpoint = \"http://{registry}\"\n",
            name = self.name,
            folder = folder.display(),
            pins = self.pins.display(),
            cgroup = self.cgroup,
            ip = self.ip,
            registry = registry::address(),
        );
        fs::write(&self.config, text).expect("config of an agent");
        let servers = format!("nameserver {WIRE_IP}\n");
        fs::write(folder.join("resolv.conf"), servers).expect("resolv.conf of a node");
    }

    /// Starts the agent in the node's namespace.
    ///
    /// # Panics
    /// If one is running already.
    pub(crate) fn start(&mut self, netns: &NetNs) {
        assert!(
            self.agent.is_none(),
            "the agent of {} runs already",
            self.name
        );
        let mut command = netns.command(crate::binary("foil-agent"));
        command.arg("--config").arg(&self.config);
        self.agent = Some(Process::spawn(
            &format!("agent {}", self.name),
            &mut command,
            &self.log,
        ));
    }

    /// Where the config file of a node is, whether it was made or not.
    pub(crate) fn config_of(root: &Path, index: usize) -> PathBuf {
        root.join(node_name(index)).join("agent.toml")
    }

    /// `foil-agent cleanup`: removes what an agent leaves so that pods outlive it.
    pub(crate) fn clean(config: &Path, netns: &NetNs) -> Output {
        let mut command = netns.command(crate::binary("foil-agent"));
        process::run(command.arg("--config").arg(config).arg("cleanup"))
    }

    /// The agent, which must be running.
    ///
    /// # Panics
    /// If it is not, with the end of its log.
    pub fn agent(&mut self) -> &mut Process {
        let tail = process::tail(&self.log, 30);
        let name = &self.name;
        let agent = self.agent.as_mut();
        let agent = agent.unwrap_or_else(|| panic!("no agent was started on {name}"));
        assert!(agent.is_running(), "the agent of {name} ended:\n{tail}");
        agent
    }

    /// All that the agent wrote since the cluster's start, over its restarts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The file that [`Self::log`] reads.
    pub fn log_file(&self) -> &Path {
        &self.log
    }
}
