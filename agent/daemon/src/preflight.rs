//! `foil-agent check`: whether the agent could start here, without changing anything.
//!
//! Checks what `startup.rs` needs, by the same functions where they change nothing, and goes
//! on after a failure. The programs are loaded on a bpffs of their own, which is removed
//! again. An agent that is running is not disturbed. Called by `main.rs`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use agent_sys::bpf::{self, Datapath, NodeFacts};
use agent_sys::cgroup::{Groups, Version};
use agent_sys::link::Netlink;
use agent_sys::maps::Maps;
use agent_sys::state::{self, Layout};
use agent_sys::tmpfs::{self, Need};
use proto::error::chain;
use proto::v1;
use proto::v1::node_client::NodeClient;
use tonic::Code;

use crate::config::Config;
use crate::startup::{self, StartError};
use crate::{clock, firewall, join, local_ports, record, renew, tls};

/// Free space below which no pod can be started, bytes.
const LEAST_SPACE: u64 = 1 << 20;
/// Entries of the flow map that is made to load the programs.
const FLOW_ENTRIES: u32 = 16;

/// One thing that the agent needs.
#[derive(Debug)]
pub(crate) struct Check {
    /// "kernel", "cgroups", ...
    what: String,
    found: Finding,
}

#[derive(Debug)]
enum Finding {
    Good(String),
    /// It may stop pods, and not the agent: what was found, and what to do about it.
    Doubtful(String, String),
    /// What is wrong, and what to do about it.
    Bad(String, String),
}

impl Check {
    fn ok(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            found: Finding::Good(found.into()),
        }
    }

    fn bad(what: impl Into<String>, wrong: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            found: Finding::Bad(wrong.into(), cure.into()),
        }
    }

    fn of<T>(
        what: &str,
        result: Result<T, impl std::error::Error + 'static>,
        found: impl FnOnce(T) -> String,
        cure: &str,
    ) -> Self {
        match result {
            Ok(value) => Self::ok(what, found(value)),
            Err(error) => Self::bad(what, chain(&error), cure),
        }
    }

    /// True if the agent would start as far as this goes.
    pub(crate) fn is_ok(&self) -> bool {
        !matches!(self.found, Finding::Bad(..))
    }
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.found {
            Finding::Good(found) => write!(f, "ok      {}: {found}", self.what),
            Finding::Doubtful(found, cure) => {
                write!(f, "warning {}: {found}\n        {cure}", self.what)
            }
            Finding::Bad(wrong, cure) => {
                write!(f, "not ok  {}: {wrong}\n        {cure}", self.what)
            }
        }
    }
}

/// Everything, in the order of a start.
pub(crate) async fn run(config: &Config) -> Vec<Check> {
    let layout = Layout::new(&config.root, &config.run);
    let mut checks = vec![
        program(config.shim.as_ref(), "foil-shim", "shim"),
        program(config.bpf_object.as_ref(), "hydrofoil.bpf.o", "bpf_object"),
        folder("root", layout.root()),
        folder("run", layout.run()),
        memory_backed(layout.run()),
        cgroups(config),
        capacity(config),
    ];
    checks.extend(network(config).await);
    checks.push(firewall());
    checks.push(local_ports(&layout));
    checks.push(kernel());
    if checks
        .iter()
        .all(|check| check.what != "kernel" || check.is_ok())
    {
        checks.push(programs(config));
    }
    checks.push(pinned_maps(&config.bpffs));
    checks.push(images(&layout.images()));
    checks.push(records(&layout));
    checks.push(control_plane(config).await);
    checks
}

fn program(named: Option<&PathBuf>, name: &'static str, key: &'static str) -> Check {
    Check::of(
        name,
        startup::program(named, name, key),
        |path| path.display().to_string(),
        "Install the files of one build together.",
    )
}

/// The folder can be written, or made.
fn folder(key: &str, path: &Path) -> Check {
    let what = format!("{key} {}", path.display());
    let Some(existing) = path.ancestors().find(|path| path.exists()) else {
        return Check::bad(what, "not an absolute path", format!("Correct `{key}`."));
    };
    let cure =
        format!("Name another folder as `{key}`, or correct this one; foil-agent runs as root.");
    if !existing.is_dir() {
        return Check::bad(
            what,
            format!("{} is not a folder", existing.display()),
            cure,
        );
    }
    if let Err(error) = state::is_writable(existing) {
        return Check::bad(what, chain(&error), cure);
    }
    match agent_sys::resources::disk(existing) {
        Ok(disk) if disk.bytes.available < LEAST_SPACE => Check::bad(
            what,
            "no space left on device",
            "Free space on its file system.",
        ),
        Ok(disk) => {
            let free = disk.bytes.available >> 20;
            let state = if existing == path {
                "writable"
            } else {
                "will be made"
            };
            Check::ok(what, format!("{state}, {free} MiB free"))
        }
        Err(error) => Check::bad(what, error.to_string(), cure),
    }
}

fn memory_backed(run: &Path) -> Check {
    Check::of(
        "file system of run",
        tmpfs::need(run),
        |need| {
            let found = match need {
                Need::Mount => "a tmpfs will be mounted there",
                Need::Nothing { may_swap: false } => "in memory",
                Need::Nothing { may_swap: true } => "in memory, or in swap if there is some",
            };
            found.to_owned()
        },
        "Drain the node, stop its pods and empty the folder, or name one on a tmpfs as `run`.",
    )
}

fn cgroups(config: &Config) -> Check {
    let opened = Groups::open(&config.cgroup)
        .map_err(StartError::from)
        .and_then(|groups| startup::connect_group(config, &groups).map(|_group| groups));
    let found = |groups: Groups| {
        let version = match groups.version() {
            Version::V1 => "version 1",
            Version::V2 => "version 2",
        };
        format!("{version}, pods below {}", config.cgroup)
    };
    Check::of(
        "cgroups",
        opened,
        found,
        "Mount cgroup2 on /sys/fs/cgroup, as systemd does, or on /sys/fs/cgroup/unified beside \
         version 1.",
    )
}

fn capacity(config: &Config) -> Check {
    Check::of(
        "reserved",
        startup::capacity(config),
        |(capacity, reserved)| {
            let allocatable = config.pressure.allocatable(capacity, reserved);
            format!(
                "allocatable: {}m CPU, {}Mi memory",
                allocatable.cpu_millis,
                allocatable.memory_bytes >> 20
            )
        },
        "Lower [reserved] or [pressure] memory_available.",
    )
}

async fn network(config: &Config) -> Vec<Check> {
    let netlink = match Netlink::open() {
        Ok(netlink) => netlink,
        Err(error) => return vec![Check::bad("links", chain(&error), "Run it as root.")],
    };
    let cure = "`ip -br addr` lists links and addresses; name them as `uplinks` and `node_ip`.";
    match startup::addresses(&netlink, config).await {
        Err(error) => vec![Check::bad("uplinks", chain(&error), cure)],
        Ok((uplinks, node_ip)) => {
            let mut checks: Vec<Check> = uplinks
                .iter()
                .map(|uplink| {
                    let what = format!("uplink {}", uplink.name);
                    if uplink.up {
                        Check::ok(what, format!("up, MTU {}", uplink.mtu))
                    } else {
                        let cure = format!("ip link set {} up", uplink.name);
                        Check::bad(what, "down", cure)
                    }
                })
                .collect();
            checks.push(Check::ok("node_ip", node_ip.to_string()));
            checks
        }
    }
}

/// Whether it accepts the pods' packets by rules is not known: the pod range is the control
/// plane's to tell.
fn firewall() -> Check {
    let firewall = firewall::read();
    let what = "firewall".to_owned();
    let unread = match firewall.failed.as_slice() {
        [] => String::new(),
        failed => format!("; not read: {}", failed.join("; ")),
    };
    let asked = firewall.asked.join(", ");
    let found = if let Some(closed) = firewall.closed.text() {
        let cure = "Accept packets from and to the pods there: README.md, \"Firewall\".";
        Finding::Doubtful(closed, cure.to_owned())
    } else if firewall.asked.is_empty() {
        Finding::Good(format!("not checked{unread}"))
    } else {
        Finding::Good(format!(
            "forwarded and incoming packets are not refused in general ({asked}){unread}"
        ))
    };
    Check { what, found }
}

fn local_ports(layout: &Layout) -> Check {
    let found = match local_ports::read(layout) {
        Ok(ports) => match ports.overlap() {
            None => Finding::Good(format!("{ports}, apart from node ports")),
            Some(others) => Finding::Doubtful(
                format!(
                    "{ports} overlaps with {others}: connections of this node that get such a \
                     port may break"
                ),
                "Set net.ipv4.ip_local_port_range to \"32768 60999\" in /etc/sysctl.d, or add \
                 the ports to net.ipv4.ip_local_reserved_ports."
                    .to_owned(),
            ),
        },
        Err(error) => Finding::Good(format!("not checked: {error}")),
    };
    Check {
        what: "ip_local_port_range".to_owned(),
        found,
    }
}

fn kernel() -> Check {
    let lacks = bpf::probe();
    if lacks.is_empty() {
        return Check::ok("kernel", "has all BPF features that are needed");
    }
    let lacks: Vec<String> = lacks
        .iter()
        .map(|lack| format!("{} ({})", lack.what, lack.answer))
        .collect();
    Check::bad(
        "kernel",
        format!("lacks {}", lacks.join(", ")),
        "Run it as root, on Linux 6.6 or newer with CONFIG_DEBUG_INFO_BTF.",
    )
}

/// Loads the programs as the start does, for the verifier's opinion.
fn programs(config: &Config) -> Check {
    let cure =
        "Install hydrofoil.bpf.o of the same build; on a supported kernel, report this as a bug.";
    let object = match startup::program(config.bpf_object.as_ref(), "hydrofoil.bpf.o", "bpf_object")
    {
        Ok(object) => object,
        Err(error) => return Check::bad("BPF programs", chain(&error), cure),
    };
    let folder = std::env::temp_dir().join(format!("foil-check-{}", std::process::id()));
    let opened = Datapath::open(&bpf::Config {
        object,
        folder: folder.clone(),
        flow_entries: bpf::FlowEntries::Exactly(FLOW_ENTRIES),
        node: NodeFacts {
            address: std::net::Ipv4Addr::LOCALHOST,
            address6: None,
            service_device: None,
            flow_events: false,
        },
    });
    let verified = opened.map(|datapath| datapath.verified().len());
    let removed = bpf::remove(&folder);
    let check = Check::of(
        "BPF programs",
        verified,
        |programs| format!("{programs} programs pass the verifier"),
        cure,
    );
    match removed {
        Ok(()) => check,
        Err(error) => Check::bad(
            "BPF programs",
            chain(&error),
            format!("Remove {}.", folder.display()),
        ),
    }
}

/// Maps of an agent that ran before must be of a version that this one takes over.
fn pinned_maps(bpffs: &Path) -> Check {
    let what = format!("maps in {}", bpffs.display());
    match fs::read_dir(bpffs).map(|mut entries| entries.next().is_some()) {
        Ok(true) => Check::of(
            &what,
            Maps::open(bpffs),
            |_maps| "of this version".to_owned(),
            "Drain the node with the version that made them, then remove that folder or reboot.",
        ),
        Ok(false) => Check::ok(what, "none yet"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Check::ok(what, "none yet"),
        Err(error) => Check::bad(what, error.to_string(), "Run it as root."),
    }
}

fn images(folder: &Path) -> Check {
    let what = "image store";
    match fs::read_dir(folder.join("blobs/sha256")) {
        Ok(entries) => Check::ok(what, format!("{} blobs", entries.count())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Check::ok(what, "empty"),
        Err(error) => Check::bad(
            what,
            format!("{}: {error}", folder.display()),
            "Correct the folder's permissions, or remove it: images are pulled again.",
        ),
    }
}

fn records(layout: &Layout) -> Check {
    let what = "records of pods";
    if !layout.pods().exists() {
        return Check::ok(what, "none yet");
    }
    let boot_id = agent_sys::clock::boot_id().unwrap_or_default();
    match state::uids(&layout.pods()) {
        // What is wrong with a record goes to the log.
        Ok(uids) => {
            let readable = record::pods(layout, &boot_id, clock::moment()).len();
            Check::ok(what, format!("{readable} of {} readable", uids.len()))
        }
        Err(error) => Check::bad(what, chain(&error), "Run it as root, or correct the disk."),
    }
}

async fn control_plane(config: &Config) -> Check {
    let what = format!(
        "control plane {}:{}",
        config.control.host, config.control.port
    );
    let reach =
        "Is foil-control running there, is `control` right, and does a firewall allow the port?";
    match join::kept(config) {
        Err(error) => Check::bad(what, chain(&error), "Run it as root."),
        Ok(Some(identity)) => {
            if renew::is_over(&identity) {
                let cure =
                    "Give the node a new [join] section: foil-control join-token --node NAME.";
                return Check::bad(what, "the node's certificate has expired", cure);
            }
            match greet(config, &identity).await {
                Ok(()) => Check::ok(what, "reachable, accepts the node's certificate"),
                Err(Greeting::Tls(error)) if error.other_ca().is_some() => Check::bad(
                    what,
                    chain(&error),
                    "It is another cluster's, or was set up anew: run `foil-agent cleanup`, and \
                     join by what `foil-control join-token` prints there.",
                ),
                Err(Greeting::Tls(error)) => Check::bad(what, chain(&error), reach),
                Err(Greeting::Refused(status)) => Check::bad(
                    what,
                    tls::status_text(&status),
                    "Was the Node object deleted? Then run `foil-agent cleanup`, and join again.",
                ),
            }
        }
        Ok(None) => {
            let Some(section) = &config.join else {
                let cure = "Add what `foil-control join-token` prints.";
                return Check::bad(what, "no certificate yet, and no [join] section", cure);
            };
            let connected = async {
                let trust = tls::first_contact(&section.ca_hash)?;
                tls::connect(&config.control, trust).await
            };
            let connected = connected.await;
            let cure = match &connected {
                Err(error) if error.other_ca().is_some() => {
                    "Its CA is not that of ca_hash: replace the [join] section by what \
                     `foil-control join-token` prints there."
                }
                Ok(_) | Err(_) => reach,
            };
            Check::of(
                &what,
                connected,
                |_channel| "reachable, has the CA of ca_hash; the token was not used".to_owned(),
                cure,
            )
        }
    }
}

/// Why the control plane does not take the node.
enum Greeting {
    Tls(tls::TlsError),
    Refused(tonic::Status),
}

/// Asks for a stream that does not exist: "not found" comes only if the certificate is good.
async fn greet(config: &Config, identity: &tls::Identity) -> Result<(), Greeting> {
    let trust = tls::mutual(identity).map_err(Greeting::Tls)?;
    let connected = tls::connect(&config.control, trust).await;
    let (channel, _) = connected.map_err(Greeting::Tls)?;
    let id = v1::AttachUp {
        up: Some(v1::attach_up::Up::Id("check".to_owned())),
    };
    let mut client = NodeClient::new(channel);
    match client.attach(tokio_stream::iter([id])).await {
        Err(status) if status.code() != Code::NotFound => Err(Greeting::Refused(status)),
        Ok(_) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(checks: &[Check], what: &str) -> String {
        let check = checks.iter().find(|check| check.what.starts_with(what));
        check.map(Check::to_string).unwrap_or_default()
    }

    /// As any user, with nothing there: each line says what to do, and nothing is made.
    #[tokio::test]
    async fn each_failure_has_its_cure() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "").unwrap();
        // A port that was free a moment ago.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let text = format!(
            "node_name = \"n1\"\ncontrol = \"https://127.0.0.1:{port}\"\nuplinks = [\"foil-none\"]\n\
             root = {:?}\nrun = {:?}\nbpffs = {:?}\nshim = {:?}\nbpf_object = {:?}\n\
             [join]\ntoken = \"a.b\"\nca_hash = \"sha256:{}\"\n",
            at("root"),
            at("file/run"),
            at("bpffs"),
            at("no-shim"),
            at("no-object"),
            "0".repeat(64),
        );
        let config = crate::config::parse(&text).unwrap();
        let checks = run(&config).await;
        for (what, begin, part) in [
            ("foil-shim", "not ok", "Install the files"),
            ("hydrofoil.bpf.o", "not ok", "Install the files"),
            ("root ", "ok", "will be made"),
            ("run ", "not ok", "is not a folder"),
            ("uplinks", "not ok", "foil-none"),
            ("maps in", "ok", "none yet"),
            ("image store", "ok", "empty"),
            ("records of pods", "ok", "none yet"),
            ("control plane", "not ok", "Is foil-control running there"),
        ] {
            let line = line(&checks, what);
            assert!(
                line.starts_with(begin) && line.contains(part),
                "{what}: {line}"
            );
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
