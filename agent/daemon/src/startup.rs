//! Opens everything that the node works with, and says by name what is missing:
//! folders, disk, cgroups, links, the programs and their maps.
//!
//! Called by `main.rs`; an error here ends the agent before it has changed anything
//! of a pod.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use agent_plan::settings::{Resources, Settings};
use agent_sys::bpf::{BpfError, Config as BpfConfig, Datapath, FlowEntries, NodeFacts, Role};
use agent_sys::cgroup::{GroupError, Groups};
use agent_sys::clock;
use agent_sys::host_calls::HostCalls;
use agent_sys::image::{self, Image, ImageError, ImageStore};
use agent_sys::link::{LinkError, Netlink, Uplink, set_sysctl};
use agent_sys::resources;
use agent_sys::state::{self, Layout, StateError};
use agent_sys::tmpfs::InMemory;
use tokio::sync::{Semaphore, mpsc};

use crate::alone::{self, AloneError};
use crate::config::{Config, SwapBehavior};
use crate::event::Event;
use crate::flows;
use crate::pulls::Pulls;
use crate::record_queue::Queue;

/// The file that is written to see that the disk takes it.
pub(crate) const DISK_CHECK: &str = ".space";

/// So much is written to see it, bytes.
const SPACE: usize = 1 << 20;

/// Shims that are asked at a time what they have: more than a node usually has pods, for
/// one that is stopped keeps its place for seconds.
pub(crate) const ASKS: usize = 256;

/// Why the node cannot run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// Our own program is nowhere.
    #[error("cannot find the path of this program: {0}")]
    OwnProgram(io::Error),
    /// The shim or the BPF object is missing.
    #[error("{what} not found at {path}: install it there, or set `{key}` in the configuration")]
    Missing {
        /// Which.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// The key that names it.
        key: &'static str,
    },
    /// A folder below `root` or `run`.
    #[error(transparent)]
    State(#[from] StateError),
    /// The disk is read-only or broken.
    #[error("{path} is not usable: {source}")]
    Disk {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent works with the same folders, or in the same network namespace.
    #[error(transparent)]
    NotAlone(#[from] AloneError),
    /// Cgroups.
    #[error(transparent)]
    Cgroup(#[from] GroupError),
    /// Only version 1 of the cgroups is mounted, and programs on sockets need version 2.
    #[error(
        "connect_translation needs cgroup v2, which is not mounted: mount it at \
         /sys/fs/cgroup/unified, or set connect_translation = false"
    )]
    NoGroupOfVersion2,
    /// Links.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The uplink has no address that others could reach us by.
    #[error("uplink {uplink} has no IPv4 address; set node_ip")]
    NoAddress {
        /// The device.
        uplink: String,
    },
    /// No link has the node's address.
    #[error("node_ip {address} is not an address of this node: no link has it")]
    NodeIp {
        /// As configured.
        address: Ipv4Addr,
    },
    /// All of it is reserved.
    #[error("nothing is left for pods: the node's whole {what} is reserved")]
    Reserved {
        /// "cpu" or "memory"
        what: &'static str,
    },
    /// Images.
    #[error(transparent)]
    Images(#[from] ImageError),
    /// The programs, or a kernel without what they need.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// A fact of the node that the kernel did not tell.
    #[error("{path}: {source}")]
    Fact {
        /// The file.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// What tasks share. Handles of maps and programs are not here: the loop owns them.
#[derive(Debug)]
pub(crate) struct Sys {
    /// Where everything lies.
    pub(crate) layout: Layout,
    /// The folder of secrets, as it was at the start; `None` where none is written.
    pub(crate) run: Option<Arc<InMemory>>,
    /// Our part of the cgroups.
    pub(crate) groups: Groups,
    /// rtnetlink.
    pub(crate) netlink: Netlink,
    /// Images.
    pub(crate) images: ImageStore,
    /// Calls for paths that pods name.
    pub(crate) host: HostCalls,
    /// Pulls under way.
    pub(crate) pulls: Pulls,
    /// Where to ask for which registry's images.
    pub(crate) endpoints: Vec<image::Endpoint>,
    /// The shim's program.
    pub(crate) shim: PathBuf,
    /// Which DNS servers the node asks.
    pub(crate) resolv_conf: PathBuf,
    /// The facts and choices that plans take.
    pub(crate) settings: Settings,
    /// Images that were found for containers about to be made, by digest.
    pub(crate) found: Mutex<HashMap<String, Arc<Image>>>,
    /// Which boot monotonic times count from.
    pub(crate) boot_id: String,
    /// Whose `foil0` is, as its alias says.
    pub(crate) owner: String,
    /// So many shims are asked at a time what they have.
    pub(crate) asks: Semaphore,
    /// Pods' records on their way to the disk.
    pub(crate) records: Queue,
    /// Where results go.
    pub(crate) events: mpsc::Sender<Event>,
}

impl Sys {
    /// Sends an event to the loop; lost when the loop has ended, and with it all need.
    pub(crate) async fn tell(&self, event: impl Into<Event>) {
        if self.events.send(event.into()).await.is_err() {
            tracing::debug!("the loop has ended");
        }
    }

    /// Whether what is written below `run` stays in memory. Before each such write.
    ///
    /// # Errors
    /// [`StateError::Lost`]
    pub(crate) fn in_memory(&self) -> Result<(), StateError> {
        self.run.as_ref().map_or(Ok(()), |run| run.check())
    }

    /// Runs blocking work on a thread for that.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Sys) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let sys = self.clone();
        match tokio::task::spawn_blocking(move || work(&sys)).await {
            Ok(result) => result,
            Err(error) => Err(format!("the work was cut off: {error}")),
        }
    }
}

/// The shim or the BPF object: named by the configuration, or beside `foil-agent`.
pub(crate) fn program(
    named: Option<&PathBuf>,
    name: &'static str,
    key: &'static str,
) -> Result<PathBuf, StartError> {
    let path = match named {
        Some(path) => path.clone(),
        None => {
            let own = std::env::current_exe().map_err(StartError::OwnProgram)?;
            own.with_file_name(name)
        }
    };
    if !path.is_file() {
        return Err(StartError::Missing {
            what: name,
            path,
            key,
        });
    }
    Ok(path)
}

/// Makes sure that what must not reach a disk is in memory. Before the lock
/// is taken, which is there too.
pub(crate) fn in_memory(config: &Config) -> Result<InMemory, StartError> {
    state::create_folder(&config.run)?;
    let run = agent_sys::tmpfs::keep_in_memory(&config.run)?;
    if run.is_new() {
        tracing::info!(run = %config.run.display(), "mounted a tmpfs");
    }
    if run.may_swap && swap()? > 0 {
        tracing::warn!(
            run = %config.run.display(),
            "this machine has swap, and the tmpfs of `run` no option noswap: environments and \
             secrets of pods may be written to the swap device"
        );
    }
    Ok(run)
}

fn swap() -> Result<u64, StartError> {
    resources::swap().map_err(|source| StartError::Fact {
        path: "/proc/meminfo",
        source,
    })
}

/// The disk takes what we will write. A full one does not keep the agent from its start: it
/// is the agent that ends the pods that fill it. Until there is space again, what cannot be
/// written fails where it is wanted, and the node has DiskPressure.
fn check_disk(folder: &Path) -> Result<(), StartError> {
    let path = folder.join(DISK_CHECK);
    let written = std::fs::File::create(&path).and_then(|mut file| {
        file.write_all(&vec![b'x'; SPACE])
            .and_then(|()| file.sync_all())
    });
    let removed = match std::fs::remove_file(&path) {
        // Not even the name of it was written.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    match written {
        Err(error) if state::is_full(&error) => {
            tracing::error!(
                folder = %folder.display(), %error,
                "no space left: no pod can be started until there is"
            );
            removed
        }
        written => written.and(removed),
    }
    .map_err(|source| StartError::Disk {
        path: folder.into(),
        source,
    })
}

/// What the node has, and what of it is reserved; something must be left for pods.
pub(crate) fn capacity(config: &Config) -> Result<(Resources, Resources), StartError> {
    let memory = resources::memory().map_err(|source| StartError::Fact {
        path: "/proc/meminfo",
        source,
    })?;
    let capacity = Resources {
        cpu_millis: resources::cpus() as u64 * 1000,
        memory_bytes: memory.capacity,
    };
    let reserved = config.reserved.of(capacity);
    let allocatable = config.pressure.allocatable(capacity, reserved);
    let rows = [
        ("cpu", allocatable.cpu_millis),
        ("memory", allocatable.memory_bytes),
    ];
    match rows.iter().find(|(_, left)| *left == 0) {
        Some((what, _)) => Err(StartError::Reserved { what }),
        None => Ok((capacity, reserved)),
    }
}

/// The uplinks, and the node's address on them.
pub(crate) async fn addresses(
    netlink: &Netlink,
    config: &Config,
) -> Result<(Vec<Uplink>, Ipv4Addr), StartError> {
    let mut node_ip = config.node_ip;
    if let Some(address) = node_ip
        && !netlink.addresses().await?.contains(&IpAddr::V4(address))
    {
        return Err(StartError::NodeIp { address });
    }
    let mut uplinks = Vec::new();
    for name in &config.uplinks {
        let uplink = netlink.uplink(name).await?;
        if node_ip.is_none() {
            node_ip = uplink
                .addresses
                .iter()
                .find_map(|(address, _)| match address {
                    IpAddr::V4(v4) => Some(*v4),
                    IpAddr::V6(_) => None,
                });
        }
        uplinks.push(uplink);
    }
    match node_ip {
        Some(node_ip) => Ok((uplinks, node_ip)),
        None => Err(StartError::NoAddress {
            uplink: config.uplinks.first().cloned().unwrap_or_default(),
        }),
    }
}

/// Opens all of it, in the network namespace of the caller.
pub(crate) async fn open(
    config: &Config,
    run: Arc<InMemory>,
    events: mpsc::Sender<Event>,
) -> Result<(Arc<Sys>, Datapath), StartError> {
    let shim = program(config.shim.as_ref(), "foil-shim", "shim")?;
    let object = program(config.bpf_object.as_ref(), "hydrofoil.bpf.o", "bpf_object")?;
    let layout = Layout::new(&config.root, &config.run);
    layout.create()?;
    check_disk(layout.root())?;
    check_disk(layout.run())?;
    let groups = Groups::open(&config.cgroup)?;
    let netlink = Netlink::open()?;
    let images = ImageStore::open(&layout.images())?;
    // The grammar of image names is compiled at its first use, which takes longer
    // than all else of a pod's start.
    drop(tokio::task::spawn_blocking(|| {
        image::Reference::parse("busybox").is_ok()
    }));
    alone::in_namespace(&netlink, &config.run).await?;
    set_sysctl("net/ipv4/ip_forward", "1")?;

    let (uplinks, node_ip) = addresses(&netlink, config).await?;
    let first = uplinks.first().ok_or_else(|| StartError::NoAddress {
        uplink: String::new(),
    })?;
    let (capacity, reserved) = capacity(config)?;
    let owner = alone::owner(&config.run);
    let service = alone::service_link(&netlink, first.mtu, &owner, None).await?;
    let settings = Settings {
        node_name: config.node_name.clone(),
        node_ip,
        uplink: first.name.clone(),
        uplinks: uplinks.iter().map(|u| u.name.clone()).collect(),
        service,
        mtu: first.mtu,
        capacity,
        reserved,
        restart_backoff_base_ms: config.restart_backoff_base_ms.into(),
        restart_backoff_max_ms: config.restart_backoff_max_ms.into(),
        image_backoff_base_ms: config.image_backoff_base_ms.into(),
        image_backoff_max_ms: config.image_backoff_max_ms.into(),
        log_max_bytes: config.log_max_bytes,
        pod_pids_limit: config.pod_pids_limit,
        swap_bytes: match config.swap_behavior {
            SwapBehavior::NoSwap => 0,
            SwapBehavior::LimitedSwap => swap()?,
        },
    };
    // Without the limit pods can take what is reserved, but a node without an agent is
    // worse: version 1 refuses a limit that is less than what is used.
    if let Err(error) = groups.create_parent(&agent_plan::cgroup::parent(&settings)) {
        tracing::error!(%error, "cannot limit pods to the node's allocatable resources");
    }
    let datapath = open_datapath(object, config, node_ip, (service.ifindex, service.mac))?;
    match connect_group(config, &groups)? {
        Some(group) => datapath.attach_group(&group)?,
        None => datapath.detach_group()?,
    }
    datapath.attach(service.ifindex, Role::Service)?;
    for uplink in &uplinks {
        datapath.attach(uplink.index, Role::Uplink)?;
    }
    let endpoints = config
        .registries
        .iter()
        .map(|r| image::Endpoint {
            host: r.host.clone(),
            url: r.endpoint.clone(),
        })
        .collect();
    let boot_id = clock::boot_id().map_err(|source| StartError::Fact {
        path: "/proc/sys/kernel/random/boot_id",
        source,
    })?;
    let found = Mutex::default();
    let sys = Sys {
        layout,
        run: Some(run),
        groups,
        netlink,
        images,
        host: HostCalls::default(),
        pulls: Pulls::default(),
        endpoints,
        shim,
        resolv_conf: config.resolv_conf.clone(),
        settings,
        found,
        asks: Semaphore::new(ASKS),
        boot_id,
        owner,
        records: Queue::default(),
        events,
    };
    Ok((Arc::new(sys), datapath))
}

/// A size that follows from the memory is that of a new map only: another size of a map with
/// connections in it would be refused.
fn flow_entries(config: &Config, ipv6: bool) -> Result<FlowEntries, StartError> {
    if let Some(entries) = config.flow_entries {
        return Ok(FlowEntries::Exactly(entries));
    }
    let memory = resources::memory().map_err(|source| StartError::Fact {
        path: "/proc/meminfo",
        source,
    })?;
    Ok(FlowEntries::IfNew(flows::entries_for(
        memory.capacity,
        ipv6,
    )))
}

/// The folder of the group whose connections are translated at `connect`, if any are to be.
pub(crate) fn connect_group(
    config: &Config,
    groups: &Groups,
) -> Result<Option<PathBuf>, StartError> {
    if !config.connect_translation {
        return Ok(None);
    }
    let group = groups.parent_in_version_2();
    group.map(Some).ok_or(StartError::NoGroupOfVersion2)
}

fn open_datapath(
    object: PathBuf,
    config: &Config,
    address: Ipv4Addr,
    service_device: (u32, [u8; 6]),
) -> Result<Datapath, StartError> {
    let node = NodeFacts {
        address,
        address6: None,
        service_device: Some(service_device),
        flow_events: false,
    };
    Ok(Datapath::open(&BpfConfig {
        object,
        folder: config.bpffs.clone(),
        flow_entries: flow_entries(config, node.address6.is_some())?,
        node,
    })?)
}
