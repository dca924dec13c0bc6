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

/// linux/rtnetlink.h: RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE.
const GROUPS: [u32; 4] = [1, 3, 5, 7];
/// The kernel's queue for us, bytes, if net.core.rmem_max allows. What does not fit
/// is dropped, and told by ENOBUFS.
const QUEUE: usize = 4 << 20;
/// Changes within this time are one report.
const CALM: Duration = Duration::from_millis(20);
/// Reports are at least so far apart.
const APART: Duration = Duration::from_millis(250);

/// What changed, by us or by others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// Something that decides where packets go and is not ours: routes, addresses,
    /// links.
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
        };
        this.list().map_err(|source| LinkError::List {
            what: "links",
            source,
        })?;
        Ok(this)
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
            let received = match until {
                None => Ok(self.receive(&mut buffer).await),
                Some(until) => tokio::time::timeout_at(until, self.receive(&mut buffer)).await,
            };
            match received {
                Err(_elapsed) => {
                    self.last = Some(now());
                    return Ok(changes);
                }
                Ok(Ok(())) => changes.add(self.parse(&buffer)),
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.list()?;
                    changes = Changes::ALL;
                }
                Ok(Err(error)) => return Err(error),
            }
            if changes.any() && until.is_none() {
                let soonest = now() + CALM;
                until = Some(self.last.map_or(soonest, |last| soonest.max(last + APART)));
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
    fn parse(&mut self, datagram: &[u8]) -> Changes {
        let mut changes = Changes::default();
        let mut rest = datagram;
        while rest.len() >= 16 {
            match NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) {
                Ok(message) => {
                    let length = (message.header.length as usize).next_multiple_of(4);
                    changes.add(self.judge(&message.payload));
                    rest = rest.get(length.max(16)..).unwrap_or(&[]);
                }
                Err(error) => {
                    tracing::debug!(%error, "rtnetlink message");
                    return Changes::ALL;
                }
            }
        }
        changes
    }

    fn judge(&mut self, payload: &NetlinkPayload<RouteNetlinkMessage>) -> Changes {
        use RouteNetlinkMessage as Message;
        let NetlinkPayload::InnerMessage(message) = payload else {
            return Changes::default();
        };
        if let Message::NewLink(link) = message {
            let ours = observe::name_of(link).starts_with(PREFIX);
            if ours {
                self.links.insert(link.header.index);
            }
            of_link(ours)
        } else if let Message::DelLink(link) = message {
            of_link(self.links.remove(&link.header.index))
        } else if matches!(message, Message::NewAddress(_) | Message::DelAddress(_)) {
            // The kernel removes routes with this source without a word.
            Changes::ALL
        } else if let Message::NewRoute(route) | Message::DelRoute(route) = message {
            of_route(route)
        } else if let Message::NewNeighbour(neighbour) | Message::DelNeighbour(neighbour) = message
        {
            Changes {
                // The kernel resolves them for each packet.
                routing: false,
                // Elsewhere they are learnt, and come and go.
                ours: self.links.contains(&neighbour.header.ifindex),
            }
        } else {
            Changes::default()
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
