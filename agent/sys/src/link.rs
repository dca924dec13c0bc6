//! Links, addresses, routes and neighbours, over rtnetlink.
//!
//! All that is here acts in the network namespace in which [`Netlink::open`]
//! was called (the node's), except for the pod's side of a pod link
//! (`link/pod.rs`). What there should be is decided in `agent-plan`
//! (`link.rs`); the caller is `agent/daemon/src/apply.rs`, and `observe.rs` for
//! [`Netlink::observe`].
//! Ours are links whose names begin with [`PREFIX`], and routes of protocol
//! [`PROTOCOL`]; nothing else is touched.

mod monitor;
mod observe;
mod pod;
mod route;
mod service;
mod sysctl;

pub use monitor::{Changes, Monitor};
pub use service::{ServiceLink, alias};
pub use sysctl::set_sysctl;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use futures::StreamExt;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkUnspec};

/// Names of our links begin with it.
pub const PREFIX: &str = "foil";
/// rtnetlink protocol number of our routes (`RTPROT`).
pub const PROTOCOL: u8 = 70;
/// The next hop of pods; no interface has it, a permanent neighbour entry answers.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// An Ethernet address, in the order in which it is written.
pub type Mac = [u8; 6];

/// What rtnetlink, or the kernel behind it, refused.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("open rtnetlink: {source}")]
    Open { source: io::Error },
    #[error("{verb} link {name}: {source}")]
    Link {
        verb: &'static str,
        name: String,
        source: io::Error,
    },
    #[error("link {name}: not found")]
    NoLink { name: String },
    #[error("create link {name}: another link has its interface index {index}")]
    IndexInUse { name: String, index: u32 },
    #[error("{verb} address {address} on link {name}: {source}")]
    Address {
        verb: &'static str,
        name: String,
        address: IpAddr,
        source: io::Error,
    },
    #[error("{verb} route {route}: {source}")]
    Route {
        verb: &'static str,
        route: String,
        source: io::Error,
    },
    #[error("{verb} neighbour {address} on link {name}: {source}")]
    Neighbour {
        verb: &'static str,
        name: String,
        address: IpAddr,
        source: io::Error,
    },
    #[error("namespace {path:?}: {source}")]
    Namespace { path: PathBuf, source: io::Error },
    #[error("sysctl {name}={value}: {source}")]
    Sysctl {
        name: String,
        value: String,
        source: io::Error,
    },
    #[error("list {what}: {source}")]
    List {
        what: &'static str,
        source: io::Error,
    },
}

/// One of our links, as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    pub index: u32,
    /// "veth"
    pub kind: String,
    pub mac: Mac,
    pub mtu: u32,
    pub up: bool,
    /// Index of a veth's other side in the namespace where that is.
    pub peer_index: Option<u32>,
    /// What ip-link(8) shows as its alias.
    pub alias: Option<String>,
}

/// A route in the main table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Destination and the number of bits that count.
    pub destination: (IpAddr, u8),
    /// Where packets go.
    pub hop: Hop,
}

/// What a route does with packets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hop {
    /// Out of a link.
    Link {
        /// Its name.
        name: String,
        /// Next hop; none: directly on the link.
        via: Option<IpAddr>,
        /// Source address that the node's own packets get.
        source: Option<IpAddr>,
    },
    /// They are answered with ICMP unreachable.
    Unreachable,
    /// To this host: the address is on a link of ours, with the scope of the host.
    Local {
        /// Name of the link.
        name: String,
    },
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (address, bits) = self.destination;
        match &self.hop {
            Hop::Unreachable => write!(f, "unreachable {address}/{bits}"),
            Hop::Local { name } => write!(f, "local {address}/{bits} dev {name}"),
            Hop::Link { name, via, source } => {
                write!(f, "{address}/{bits}")?;
                if let Some(via) = via {
                    write!(f, " via {via}")?;
                }
                write!(f, " dev {name}")?;
                if let Some(source) = source {
                    write!(f, " src {source}")?;
                }
                Ok(())
            }
        }
    }
}

/// A permanent neighbour entry on one of our links.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Neighbour {
    pub link: String,
    pub address: IpAddr,
    pub mac: Mac,
}

/// All that is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Sorted by name.
    pub links: Vec<Link>,
    /// Links that are not ours, uplinks among them; sorted by name.
    pub others: Vec<Link>,
    /// Of protocol [`PROTOCOL`], sorted.
    pub routes: Vec<Route>,
    /// Permanent ones on our links, sorted.
    pub neighbours: Vec<Neighbour>,
    /// Of all links of the namespace, others' included.
    pub addresses: Vec<IpAddr>,
}

/// What the node's own interface to the others is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    pub name: String,
    pub index: u32,
    pub mac: Mac,
    pub mtu: u32,
    pub up: bool,
    /// Global addresses with their prefix lengths, primary ones first.
    pub addresses: Vec<(IpAddr, u8)>,
}

/// A veth pair between the node and a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLink {
    /// Of the host's side; the pod's is always "eth0".
    pub name: String,
    pub host_mac: Mac,
    pub pod_mac: Mac,
    pub mtu: u32,
    /// The pod's addresses; each gets a host prefix.
    pub addresses: Vec<Ipv4Addr>,
    /// Source address of the node's own packets to the pod.
    pub node_ip: Option<Ipv4Addr>,
    /// File of the pod's network namespace.
    pub netns: PathBuf,
}

/// An rtnetlink connection. Clones share it.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
    /// For dumps that the kernel filters (NETLINK_GET_STRICT_CHK).
    strict: Handle,
}

impl Netlink {
    /// Connects in the calling thread's network namespace; needs a tokio runtime.
    ///
    /// # Errors
    /// [`LinkError::Open`].
    pub fn open() -> Result<Self, LinkError> {
        let failed = |source| LinkError::Open { source };
        let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
        let (filtered, strict, _) =
            rtnetlink::new_connection_with_strict_check().map_err(failed)?;
        // They end by themselves with the last handle.
        tokio::spawn(connection);
        tokio::spawn(filtered);
        Ok(Self { handle, strict })
    }

    /// Makes the whole link of a pod, both sides configured and up, its route
    /// last: a pod link without its route is not whole. On failure nothing of it
    /// is left. Returns the index of the host's side.
    ///
    /// # Errors
    /// [`LinkError`]; `Link` with `AlreadyExists` when there is one of that name.
    pub async fn add_pod_link(&self, link: &PodLink) -> Result<u32, LinkError> {
        self.create_veth(link).await?;
        match self.configure_pod_link(link).await {
            Ok(index) => Ok(index),
            Err(error) => {
                // The first error is the one to tell of; the link goes with its namespace at the latest.
                if let Err(second) = self.delete_link(&link.name).await {
                    tracing::warn!(link = link.name, error = %second, "half-made link is left");
                }
                Err(error)
            }
        }
    }

    /// Makes a pod link whole that is there: both sides, neighbours and routes are
    /// configured again, and connections over it live on. Returns the index of the
    /// host's side.
    ///
    /// # Errors
    /// [`LinkError`]; then it has to be made anew.
    pub async fn repair_pod_link(&self, link: &PodLink) -> Result<u32, LinkError> {
        self.configure_pod_link(link).await
    }

    /// The pair, with the pod's side in its namespace from the first moment.
    async fn create_veth(&self, link: &PodLink) -> Result<(), LinkError> {
        let netns = std::fs::File::open(&link.netns).map_err(|source| LinkError::Namespace {
            path: link.netns.clone(),
            source,
        })?;
        let message = pod::veth_message(link, &netns);
        self.request(
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
        .map_err(|source| LinkError::Link {
            verb: "create",
            name: link.name.clone(),
            source,
        })
    }

    async fn configure_pod_link(&self, link: &PodLink) -> Result<u32, LinkError> {
        let index = self.index_of(&link.name).await?;
        // The pod's side on a thread of its own: entering a namespace is per
        // thread, and a runtime's worker must never be seen in another one.
        let job = link.clone();
        let (done, result) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("pod-link".to_owned())
            .spawn(move || {
                // The caller may be gone; the answer is dropped then.
                drop(done.send(pod::configure(&job)));
            })
            .map_err(|source| LinkError::Namespace {
                path: link.netns.clone(),
                source,
            })?;
        let host_side = self.configure_host_side(link, index).await;
        // The thread always answers; if it panicked, the sender is dropped.
        let pod_side = result.await.map_err(|_gone| LinkError::Namespace {
            path: link.netns.clone(),
            source: io::Error::other("the thread that configures it died"),
        })?;
        pod_side?;
        host_side?;
        for address in &link.addresses {
            self.replace_route_at(
                &Route {
                    destination: (IpAddr::V4(*address), 32),
                    hop: Hop::Link {
                        name: link.name.clone(),
                        via: None,
                        source: link.node_ip.map(IpAddr::V4),
                    },
                },
                Some(index),
            )
            .await?;
        }
        Ok(index)
    }

    /// Sysctls before the link is up, so that nothing is sent by itself.
    async fn configure_host_side(&self, link: &PodLink, index: u32) -> Result<(), LinkError> {
        let name = &link.name;
        for (sysctl, value) in [
            // Replies to the node's service flows arrive here with a pod's
            // address and are translated afterwards.
            (format!("net/ipv4/conf/{name}/rp_filter"), "0"),
            (format!("net/ipv4/conf/{name}/proxy_arp"), "0"),
        ] {
            set_sysctl(&sysctl, value)?;
        }
        pod::quiet_ipv6(name)?;
        let up = LinkUnspec::new_with_index(index).up().build();
        self.request(RouteNetlinkMessage::SetLink(up), 0)
            .await
            .map_err(|source| LinkError::Link {
                verb: "set up",
                name: name.clone(),
                source,
            })?;
        for address in &link.addresses {
            let message = pod::neighbour_message(index, *address, link.pod_mac);
            self.request(
                RouteNetlinkMessage::NewNeighbour(message),
                NLM_F_CREATE | NLM_F_REPLACE,
            )
            .await
            .map_err(|source| LinkError::Neighbour {
                verb: "add",
                name: name.clone(),
                address: IpAddr::V4(*address),
                source,
            })?;
        }
        Ok(())
    }

    /// Deletes a link, and with it its other side, routes and neighbours.
    /// One that is not there is success.
    ///
    /// # Errors
    /// [`LinkError::Link`].
    pub async fn delete_link(&self, name: &str) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_name(name).build();
        let failed = |source| LinkError::Link {
            verb: "delete",
            name: name.to_owned(),
            source,
        };
        // The kernel answers once no reader can see the link any more, which takes
        // it 10 ms and more: on a thread that may block, not on the runtime's.
        let refused = tokio::task::spawn_blocking(move || {
            pod::send(&[("delete", RouteNetlinkMessage::DelLink(message), 0)])
        })
        .await
        .map_err(|gone| failed(io::Error::other(gone)))?
        .map_err(failed)?;
        match refused.into_iter().next() {
            Some((_, source)) if source.raw_os_error() != Some(libc::ENODEV) => Err(failed(source)),
            _ => Ok(()),
        }
    }

    /// Index of the link of that name.
    async fn index_of(&self, name: &str) -> Result<u32, LinkError> {
        Ok(self.link_message(name).await?.header.index)
    }

    async fn link_message(&self, name: &str) -> Result<LinkMessage, LinkError> {
        let mut query = LinkMessage::default();
        query
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        let failed = |source| LinkError::Link {
            verb: "get",
            name: name.to_owned(),
            source,
        };
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetLink(query));
        message.header.flags = NLM_F_REQUEST;
        let mut answers = self
            .handle
            .clone()
            .request(message)
            .map_err(|e| failed(io::Error::other(e)))?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = answer.payload
            {
                return Ok(link);
            } else if let NetlinkPayload::Error(error) = answer.payload {
                if error.raw_code() == -libc::ENODEV {
                    break;
                }
                return Err(failed(error.to_io()));
            }
        }
        Err(LinkError::NoLink {
            name: name.to_owned(),
        })
    }

    /// Sends one request and waits for the kernel's acknowledgement.
    async fn request(&self, body: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut message = NetlinkMessage::from(body);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self
            .handle
            .clone()
            .request(message)
            .map_err(io::Error::other)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(error.to_io());
            }
        }
        Ok(())
    }
}
