//! Our links, routes and neighbours in the kernel, and facts of the uplink.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};

use super::{
    Hop, Link, LinkError, Mac, Neighbour, Netlink, Observed, PREFIX, PROTOCOL, Route, Uplink,
};

impl Netlink {
    /// Everything that is ours, and the other links.
    ///
    /// # Errors
    /// [`LinkError::List`].
    pub async fn observe(&self) -> Result<Observed, LinkError> {
        let failed = |what| {
            move |error| LinkError::List {
                what,
                source: io::Error::other(error),
            }
        };
        let messages: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("links"))?;
        // Routes name links by index, also links that are not ours (the uplink).
        let names: BTreeMap<u32, String> = messages
            .iter()
            .map(|message| (message.header.index, name_of(message)))
            .collect();
        let mut links: Vec<Link> = messages.iter().map(link_of).collect();
        links.sort_by(|a, b| a.name.cmp(&b.name));
        let (links, others) = links
            .into_iter()
            .partition(|link| link.name.starts_with(PREFIX));

        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            // The kernel passes over the routes of others, however many there are.
            let mut query = RouteMessage::default();
            query.header.address_family = family;
            query.header.protocol = RouteProtocol::Other(PROTOCOL);
            let found: Vec<RouteMessage> = self
                .strict
                .route()
                .get(query)
                .execute()
                .try_collect()
                .await
                .map_err(failed("routes"))?;
            routes.extend(found.iter().filter_map(|message| route_of(message, &names)));
        }
        let addressed = self.address_messages().await?;
        routes.extend(
            addressed
                .iter()
                .filter_map(|message| local_route(message, &names)),
        );
        routes.sort();

        let found: Vec<NeighbourMessage> = self
            .handle
            .neighbours()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("neighbours"))?;
        let mut neighbours: Vec<Neighbour> = found
            .iter()
            .filter_map(|message| neighbour_of(message, &names))
            .collect();
        neighbours.sort();
        Ok(Observed {
            links,
            others,
            routes,
            neighbours,
            addresses: addressed.iter().filter_map(local_of).collect(),
        })
    }

    /// All addresses of this namespace's links.
    ///
    /// # Errors
    /// [`LinkError::List`].
    pub async fn addresses(&self) -> Result<Vec<IpAddr>, LinkError> {
        let messages = self.address_messages().await?;
        Ok(messages.iter().filter_map(local_of).collect())
    }

    async fn address_messages(&self) -> Result<Vec<AddressMessage>, LinkError> {
        self.handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| LinkError::List {
                what: "addresses",
                source: io::Error::other(error),
            })
    }

    /// Facts of an interface that is not ours.
    ///
    /// # Errors
    /// [`LinkError::NoLink`], [`LinkError::List`].
    pub async fn uplink(&self, name: &str) -> Result<Uplink, LinkError> {
        let link = link_of(&self.link_message(name).await?);
        let messages: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(link.index)
            .execute()
            .try_collect()
            .await
            .map_err(|error| LinkError::List {
                what: "addresses",
                source: io::Error::other(error),
            })?;
        let mut addresses: Vec<(bool, IpAddr, u8)> =
            messages.iter().filter_map(address_of).collect();
        // Stable: the kernel lists an interface's addresses in their own order.
        addresses.sort_by_key(|(secondary, address, _)| (*secondary, address.is_ipv6()));
        Ok(Uplink {
            name: link.name,
            index: link.index,
            mac: link.mac,
            mtu: link.mtu,
            up: link.up,
            addresses: addresses
                .into_iter()
                .map(|(_, address, bits)| (address, bits))
                .collect(),
        })
    }
}

pub(super) fn name_of(message: &LinkMessage) -> String {
    message
        .attributes
        .iter()
        .find_map(|attribute| {
            if let LinkAttribute::IfName(name) = attribute {
                Some(name.clone())
            } else {
                None
            }
        })
        .unwrap_or_default()
}

pub(super) fn link_of(message: &LinkMessage) -> Link {
    let mut link = Link {
        name: String::new(),
        index: message.header.index,
        kind: String::new(),
        mac: Mac::default(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        peer_index: None,
        alias: None,
    };
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name.clone_from(name);
        } else if let LinkAttribute::Address(bytes) = attribute {
            link.mac = mac_of(bytes).unwrap_or_default();
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = *mtu;
        } else if let LinkAttribute::Link(peer) = attribute {
            link.peer_index = Some(*peer);
        } else if let LinkAttribute::IfAlias(alias) = attribute {
            link.alias = Some(alias.clone());
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            for info in infos {
                if let LinkInfo::Kind(kind) = info {
                    link.kind = kind.to_string();
                }
            }
        }
    }
    link
}

fn mac_of(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok()
}

fn route_of(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<Route> {
    let ours = message.header.protocol == RouteProtocol::Other(PROTOCOL)
        && message.header.table == RouteHeader::RT_TABLE_MAIN;
    if !ours {
        return None;
    }
    let unspecified = if message.header.address_family == AddressFamily::Inet6 {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    };
    let mut route = Route {
        destination: (unspecified, message.header.destination_prefix_length),
        hop: Hop::Unreachable,
    };
    let (mut link, mut via, mut source) = (None, None, None);
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(address) = attribute {
            route.destination.0 = ip_of(address)?;
        } else if let RouteAttribute::Oif(index) = attribute {
            let name = names.get(index).cloned();
            link = Some(name.unwrap_or_else(|| index.to_string()));
        } else if let RouteAttribute::Gateway(address) = attribute {
            via = ip_of(address);
        } else if let RouteAttribute::PrefSource(address) = attribute {
            source = ip_of(address);
        }
    }
    if message.header.kind != RouteType::Unreachable {
        route.hop = Hop::Link {
            name: link.unwrap_or_default(),
            via,
            source,
        };
    }
    Some(route)
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(v4) = address {
        Some(IpAddr::V4(*v4))
    } else if let RouteAddress::Inet6(v6) = address {
        Some(IpAddr::V6(*v6))
    } else {
        None
    }
}

fn neighbour_of(message: &NeighbourMessage, names: &BTreeMap<u32, String>) -> Option<Neighbour> {
    let link = names.get(&message.header.ifindex)?;
    if message.header.state != NeighbourState::Permanent || !link.starts_with(PREFIX) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        if let NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) = attribute {
            address = Some(IpAddr::V4(*v4));
        } else if let NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) = attribute {
            address = Some(IpAddr::V6(*v6));
        } else if let NeighbourAttribute::LinkLayerAddress(bytes) = attribute {
            mac = mac_of(bytes);
        }
    }
    // Multicast entries of a dummy have no address of their own.
    Some(Neighbour {
        link: link.clone(),
        address: address?,
        mac: mac?,
    })
}

/// An address of ours, as a route to this host.
fn local_route(message: &AddressMessage, names: &BTreeMap<u32, String>) -> Option<Route> {
    let name = names.get(&message.header.index)?;
    let ours = name.starts_with(PREFIX) && message.header.scope == AddressScope::Host;
    ours.then_some(())?;
    Some(Route {
        destination: (local_of(message)?, message.header.prefix_len),
        hop: Hop::Local { name: name.clone() },
    })
}

/// The interface's own address.
fn local_of(message: &AddressMessage) -> Option<IpAddr> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        if let AddressAttribute::Local(ip) = attribute {
            local = Some(*ip);
        } else if let AddressAttribute::Address(ip) = attribute {
            address = Some(*ip);
        }
    }
    // On point-to-point links IFA_ADDRESS is the other side's.
    local.or(address)
}

/// (secondary, address, prefix length) of a global address.
fn address_of(message: &AddressMessage) -> Option<(bool, IpAddr, u8)> {
    if message.header.scope != AddressScope::Universe {
        return None;
    }
    let mut secondary = false;
    for attribute in &message.attributes {
        if let AddressAttribute::Flags(flags) = attribute {
            secondary = flags.contains(AddressFlags::Secondary);
        }
    }
    Some((secondary, local_of(message)?, message.header.prefix_len))
}
