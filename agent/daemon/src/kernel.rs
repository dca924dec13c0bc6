//! Our links, routes and addresses in the kernel while the agent runs: listens to rtnetlink, observes
//! again when something changed that is ours or that ours goes with.
//!
//! A part of the node. What a change means is decided in `agent-plan` (`seen.rs`).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use agent_plan::conflict::{Listener, NodeSockets, Range};
use agent_plan::device;
use agent_plan::link::{Cidr, Hop, Route, SERVICE_LINK, Shape, role};
use agent_plan::outcome::Outcome;
use agent_plan::seen::{Expected, Link, Seen};
use agent_plan::settings::Settings;
use agent_sys::bpf::{BpfError, Datapath};
use agent_sys::link::{self, Changes, LinkError, Monitor};
use agent_sys::sockets;

use crate::devices;
use crate::event::Event;
use crate::startup::Sys;

/// Before another try when the kernel could not be listened to or asked.
const PAUSE: Duration = Duration::from_secs(1);

/// Why the kernel's state is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObserveError {
    /// Links and routes.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Programs.
    #[error(transparent)]
    Bpf(#[from] BpfError),
}

/// Asking the kernel, one question at a time.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    asking: bool,
    again: bool,
}

impl Kernel {
    /// Asks what there is; while an answer is awaited, once more after it.
    pub(crate) fn ask(
        &mut self,
        sys: &Arc<Sys>,
        datapath: &Arc<Datapath>,
        expected: impl FnOnce() -> Expected,
    ) {
        if std::mem::replace(&mut self.asking, true) {
            self.again = true;
            return;
        }
        let (sys, datapath) = (sys.clone(), datapath.clone());
        let expected = Box::new(expected());
        tokio::spawn(async move {
            let seen = loop {
                match look(&sys, &datapath, expected.host_ports).await {
                    Ok(seen) => break seen,
                    Err(error) => tracing::warn!(%error, "cannot observe links"),
                }
                tokio::time::sleep(PAUSE).await;
            };
            let seen = Box::new(seen);
            sys.tell(Outcome::Seen { expected, seen }).await;
        });
    }

    /// The answer came; true if it is to be asked again.
    pub(crate) fn answered(&mut self) -> bool {
        self.asking = false;
        std::mem::take(&mut self.again)
    }
}

/// Listens for as long as the agent runs, and tells the loop. `monitor` was opened
/// before the node was observed, so that no change falls between the two.
pub(crate) async fn listen(sys: Arc<Sys>, mut monitor: Monitor) {
    loop {
        match monitor.next().await {
            Ok(changes) => sys.tell(Event::Kernel(changes)).await,
            Err(error) => {
                tracing::error!(%error, "lost notifications of links and routes; subscribing again");
                monitor = reopened(&sys).await;
                // Messages were lost: observe everything.
                let missed = Changes {
                    routing: true,
                    ours: true,
                };
                sys.tell(Event::Kernel(missed)).await;
            }
        }
    }
}

/// Subscribes; changes of the node's own devices are told without delay.
pub(crate) fn monitor(settings: &Settings) -> Result<Monitor, LinkError> {
    let mut monitor = Monitor::open()?;
    monitor.watch(device::names(settings).map(str::to_owned));
    Ok(monitor)
}

async fn reopened(sys: &Sys) -> Monitor {
    loop {
        tokio::time::sleep(PAUSE).await;
        match monitor(&sys.settings) {
            Ok(monitor) => return monitor,
            Err(error) => tracing::error!(%error, "cannot open an rtnetlink socket"),
        }
    }
}

/// Asks the kernel once.
async fn look(sys: &Sys, datapath: &Datapath, host_ports: bool) -> Result<Seen, ObserveError> {
    let observed = sys.netlink.observe().await?;
    let mut seen = seen(&observed, &sys.settings, datapath)?;
    if host_ports {
        seen.sockets = node_sockets().await;
    }
    Ok(seen)
}

/// Ports that the node itself uses; `None` if they cannot be read, as nothing depends on them but
/// events.
pub(crate) async fn node_sockets() -> Option<NodeSockets> {
    let read = || Ok::<_, io::Error>((sockets::listeners()?, sockets::local_ports()?));
    let read = tokio::task::spawn_blocking(read).await;
    let range = |ports: &RangeInclusive<u16>| Range {
        first: *ports.start(),
        last: *ports.end(),
    };
    match read.map_err(io::Error::other).flatten() {
        Ok((listeners, local)) => Some(NodeSockets {
            listeners: listeners
                .into_iter()
                .map(|listener| Listener {
                    protocol: listener.protocol,
                    address: listener.address,
                    port: listener.port,
                })
                .collect(),
            local_ports: Some(range(&local.range)),
            reserved: local.reserved.iter().map(range).collect(),
        }),
        Err(error) => {
            tracing::warn!(%error, "cannot read which ports the node uses");
            None
        }
    }
}

/// The devices of the node, as far as they are there.
fn devices(
    observed: &link::Observed,
    settings: &Settings,
    datapath: &Datapath,
) -> Result<BTreeMap<String, Shape>, ObserveError> {
    let all = || observed.links.iter().chain(&observed.others);
    let mut shapes = BTreeMap::new();
    for name in device::names(settings) {
        let Some(link) = all().find(|link| link.name == name) else {
            continue;
        };
        let mut others = observed.links.iter();
        let paired = others.any(|other| {
            other.up && Some(other.index) == link.peer_index && other.peer_index == Some(link.index)
        });
        let role = devices::role_of(role(name));
        let shape = Shape {
            ifindex: link.index,
            up: link.up,
            mac: link.mac,
            paired,
            attached: datapath.is_attached(link.index, role)?,
        };
        shapes.insert(name.to_owned(), shape);
    }
    Ok(shapes)
}

/// As the plans have it.
///
/// # Errors
/// When the pinned links of programs cannot be opened.
pub(crate) fn seen(
    observed: &link::Observed,
    settings: &Settings,
    datapath: &Datapath,
) -> Result<Seen, ObserveError> {
    let uplink = settings.uplink.as_str();
    let mut links: BTreeMap<String, Link> = observed
        .links
        .iter()
        .map(|l| {
            let link = Link {
                ifindex: l.index,
                up: l.up,
                ..Link::default()
            };
            (l.name.clone(), link)
        })
        .collect();
    let mut routes = BTreeMap::new();
    for route in &observed.routes {
        let (IpAddr::V4(address), bits) = route.destination else {
            continue;
        };
        let destination = Cidr { address, bits };
        let v4 = |ip: Option<IpAddr>| match ip {
            Some(IpAddr::V4(v4)) => Some(v4),
            Some(IpAddr::V6(_)) | None => None,
        };
        let hop = match &route.hop {
            link::Hop::Unreachable => Hop::Unreachable,
            link::Hop::Local { name } if name == SERVICE_LINK => Hop::Local,
            link::Hop::Local { .. } => continue,
            link::Hop::Link { name, via, source }
                if [SERVICE_LINK, uplink].contains(&name.as_str()) =>
            {
                Hop::Link {
                    name: name.clone(),
                    via: v4(*via),
                    source: v4(*source),
                }
            }
            // Pods' routes come and go with their links.
            link::Hop::Link { name, source, .. } => {
                if let Some(link) = links.get_mut(name).filter(|_| bits == 32) {
                    link.routed.push((address, v4(*source)));
                }
                continue;
            }
        };
        routes.insert(destination, Route { destination, hop });
    }
    for neighbour in &observed.neighbours {
        if let (Some(link), IpAddr::V4(address)) =
            (links.get_mut(&neighbour.link), neighbour.address)
        {
            link.neighbours.push((address, neighbour.mac));
        }
    }
    Ok(Seen {
        links,
        routes,
        devices: devices(observed, settings, datapath)?,
        without_address: !observed.addresses.contains(&settings.node_ip.into()),
        addresses: reachable(&observed.addresses).collect(),
        sockets: None,
    })
}

/// Addresses that are more than this machine's own: at them node ports are reached.
fn reachable(all: &[IpAddr]) -> impl Iterator<Item = Ipv4Addr> + '_ {
    let v4 = all.iter().filter_map(|ip| match ip {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    });
    v4.filter(|ip| !ip.is_loopback() && !ip.is_link_local())
}
