//! What changes in links, addresses, routes and neighbours, as the kernel tells it on
//! rtnetlink's multicast groups.
//!
//! Nothing is taken from the messages but what they are about: who is told observes
//! again. Many changes are one report, so that a routing daemon that moves ten
//! thousand routes costs a few reports a second. The caller is `kernel.rs` of the
//! daemon.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol};
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use tokio::time::Instant;

use super::{LinkError, PREFIX, PROTOCOL, observe};
use crate::clock;

/// linux/rtnetlink.h: RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _NEXTHOP.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 8, 32];
/// linux/rtnetlink.h: RTM_NEWNEXTHOP, RTM_DELNEXTHOP. The library does not know them.
const NEXTHOP: [u16; 2] = [104, 105];
/// The kernel's queue for us, bytes, if net.core.rmem_max allows. What does not fit
/// is dropped, and told by ENOBUFS.
const QUEUE: usize = 4 << 20;
/// Changes within this time are one report.
const CALM: Duration = Duration::from_millis(20);
/// Reports are at least so far apart, unless a watched link comes or goes.
const APART: Duration = Duration::from_millis(250);

/// What changed, by us or by others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// Something that decides where packets go and is not ours: routes, rules, nexthop
    /// objects, addresses, links.
    pub routing: bool,
    /// Our links, routes or neighbours, or something that the kernel removes them
    /// with, without a message: to be observed again.
    pub ours: bool,
}

impl Changes {
    /// What is true when messages were lost.
    const ALL: Changes = Changes {
        routing: true,
        ours: true,
    };

    fn any(self) -> bool {
        self.routing || self.ours
    }

    fn add(&mut self, other: Changes) {
        self.routing |= other.routing;
        self.ours |= other.ours;
    }
}

/// A subscription, of the network namespace in which it was opened.
pub struct Monitor {
    socket: TokioSocket,
    last: Option<Instant>,
    /// Indexes of our links.
    links: BTreeSet<u32>,
    /// Names of links whose coming and going is told without delay.
    watched: BTreeSet<String>,
}

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Told {
    changes: Changes,
    /// To be told before [`APART`] is over.
    soon: bool,
}

impl Told {
    fn add(&mut self, other: Told) {
        self.changes.add(other.changes);
        self.soon |= other.soon;
    }
}

impl From<Changes> for Told {
    fn from(changes: Changes) -> Self {
        let soon = false;
        Self { changes, soon }
    }
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}

impl Monitor {
    /// Subscribes; what changes from here on is told. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`LinkError::Open`].
    pub fn open() -> Result<Self, LinkError> {
        let open = || -> io::Result<TokioSocket> {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            socket.socket_ref().set_rx_buf_sz(QUEUE)?;
            for group in GROUPS {
                socket.socket_mut().add_membership(group)?;
            }
            Ok(socket)
        };
        let socket = open().map_err(|source| LinkError::Open { source })?;
        let mut this = Self {
            socket,
            last: None,
            links: BTreeSet::new(),
            watched: BTreeSet::new(),
        };
        this.list().map_err(|source| LinkError::List {
            what: "links",
            source,
        })?;
        Ok(this)
    }

    /// Tells changes of these links without delay, which would be an outage: packets pass an
    /// uplink that has no programs untranslated.
    pub fn watch(&mut self, names: impl IntoIterator<Item = String>) {
        self.watched.extend(names);
    }

    /// Finds our links; from there on messages say which come and go.
    fn list(&mut self) -> io::Result<()> {
        self.links = nix::net::if_::if_nameindex()?
            .iter()
            .filter(|link| link.name().to_bytes().starts_with(PREFIX.as_bytes()))
            .map(nix::net::if_::Interface::index)
            .collect();
        Ok(())
    }

    /// Waits for changes and tells them together. Where messages were lost, all is
    /// said to have changed.
    ///
    /// # Errors
    /// The socket is of no use any more.
    pub async fn next(&mut self) -> io::Result<Changes> {
        let mut changes = Changes::default();
        let mut buffer = Vec::with_capacity(64 << 10);
        let mut until: Option<Instant> = None;
        loop {
            let mut soon = false;
            let received = match until {
                None => Ok(self.receive(&mut buffer).await),
                Some(until) => tokio::time::timeout_at(until, self.receive(&mut buffer)).await,
            };
            match received {
                Err(_elapsed) => {
                    self.last = Some(now());
                    return Ok(changes);
                }
                Ok(Ok(())) => {
                    let told = self.parse(&buffer);
                    changes.add(told.changes);
                    soon = told.soon;
                }
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.list()?;
                    changes = Changes::ALL;
                }
                Ok(Err(error)) => return Err(error),
            }
            if changes.any() && (soon || until.is_none()) {
                let soonest = now() + CALM;
                let at = match self.last {
                    Some(last) if !soon => soonest.max(last + APART),
                    _ => soonest,
                };
                until = Some(until.map_or(at, |until| until.min(at)));
            }
        }
    }

    async fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.clear();
        let from =
            futures::future::poll_fn(|context| self.socket.poll_recv_from(context, buffer)).await?;
        // Another process may send to us; only the kernel is believed.
        if from.port_number() != 0 {
            buffer.clear();
        }
        Ok(())
    }
}

fn now() -> Instant {
    Instant::from_std(clock::now())
}

impl Monitor {
    /// The messages of one datagram. One that does not parse counts as everything.
    fn parse(&mut self, datagram: &[u8]) -> Told {
        let mut told = Told::default();
        let mut rest = datagram;
        // struct nlmsghdr: length (4 bytes), type (2), of 16 in all.
        while let Some(&[a, b, c, d, e, f]) = rest.first_chunk()
            && rest.len() >= 16
        {
            let length = u32::from_ne_bytes([a, b, c, d]) as usize;
            if NEXTHOP.contains(&u16::from_ne_bytes([e, f])) {
                told.changes.routing = true;
            } else {
                match NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) {
                    Ok(message) => told.add(self.judge(&message.payload)),
                    Err(error) => {
                        tracing::debug!(%error, "rtnetlink message");
                        told.changes = Changes::ALL;
                        return told;
                    }
                }
            }
            let length = length.next_multiple_of(4).max(16);
            rest = rest.get(length..).unwrap_or(&[]);
        }
        told
    }

    fn judge(&mut self, payload: &NetlinkPayload<RouteNetlinkMessage>) -> Told {
        use RouteNetlinkMessage as Message;
        let NetlinkPayload::InnerMessage(message) = payload else {
            return Told::default();
        };
        if let Message::NewLink(link) = message {
            let name = observe::name_of(link);
            let ours = name.starts_with(PREFIX);
            if ours {
                self.links.insert(link.header.index);
            }
            Told {
                changes: of_link(ours),
                soon: self.watched.contains(&name),
            }
        } else if let Message::DelLink(link) = message {
            Told {
                changes: of_link(self.links.remove(&link.header.index)),
                soon: self.watched.contains(&observe::name_of(link)),
            }
        } else if matches!(message, Message::NewAddress(_) | Message::DelAddress(_)) {
            // The kernel removes routes with this source without a word.
            Changes::ALL.into()
        } else if let Message::NewRoute(route) | Message::DelRoute(route) = message {
            of_route(route).into()
        } else if matches!(message, Message::NewRule(_) | Message::DelRule(_)) {
            Changes {
                routing: true,
                ours: false,
            }
            .into()
        } else if let Message::NewNeighbour(neighbour) | Message::DelNeighbour(neighbour) = message
        {
            Changes {
                // The kernel resolves them for each packet.
                routing: false,
                // Elsewhere they are learnt, and come and go.
                ours: self.links.contains(&neighbour.header.ifindex),
            }
            .into()
        } else {
            Told::default()
        }
    }
}

fn of_link(ours: bool) -> Changes {
    Changes {
        routing: !ours,
        // Routes over a link that goes down are removed without a word.
        ours: true,
    }
}

fn of_route(route: &RouteMessage) -> Changes {
    let ours = route.header.protocol == RouteProtocol::Other(PROTOCOL);
    Changes {
        routing: !ours,
        ours,
    }
}
