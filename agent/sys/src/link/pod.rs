//! The pod's side of a pod link, and the messages both sides need.
//!
//! Runs on a thread of its own, which enters the pod's network namespace and
//! ends there. All changes go to the kernel in one write.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteProtocol, RouteScope, RouteType};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::{
    AddressMessageBuilder, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use super::{GATEWAY, LinkError, Mac, PROTOCOL, PodLink, set_sysctl};

/// Name of the pod's side, as in every other system.
const NAME: &str = "eth0";
/// Of the loopback interface, in every namespace.
const LO_INDEX: u32 = 1;

/// Both sides of the pair, the pod's in the namespace `netns`.
pub(super) fn veth_message(link: &PodLink, netns: &File) -> LinkMessage {
    let peer = LinkMessageBuilder::<LinkUnspec>::default()
        .name(NAME.to_owned())
        .address(link.pod_mac.to_vec())
        .mtu(link.mtu)
        .append_extra_attribute(LinkAttribute::NetNsFd(netns.as_raw_fd()))
        .build();
    LinkVeth::new(&link.name, NAME)
        .address(link.host_mac.to_vec())
        .mtu(link.mtu)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build()
}

/// Both sides here.
pub(super) fn pair_message(name: &str, peer: &str, mtu: u32) -> LinkMessage {
    let other = LinkMessageBuilder::<LinkUnspec>::default()
        .name(peer.to_owned())
        .mtu(mtu)
        .build();
    LinkVeth::new(name, peer)
        .mtu(mtu)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(other)))
        .build()
}

/// A permanent entry: there is no ARP request that could be answered wrongly.
pub(super) fn neighbour_message(index: u32, address: Ipv4Addr, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unspec;
    message
        .attributes
        .push(NeighbourAttribute::Destination(NeighbourAddress::Inet(
            address,
        )));
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    message
}

/// No address that the kernel would make by itself, and no wait for duplicates.
/// A kernel without IPv6 has nothing to be quietened.
pub(super) fn quiet_ipv6(link: &str) -> Result<(), LinkError> {
    if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
        return Ok(());
    }
    for (name, value) in
        // addr_gen_mode 1: no link-local address.
        [
            ("accept_ra", "0"),
            ("autoconf", "0"),
            ("accept_dad", "0"),
            ("addr_gen_mode", "1"),
        ]
    {
        set_sysctl(&format!("net/ipv6/conf/{link}/{name}"), value)?;
    }
    Ok(())
}

/// Enters the pod's namespace (the calling thread stays there) and sets its
/// side up: lo, eth0, addresses, the gateway's neighbour entry, default route.
pub(super) fn configure(link: &PodLink) -> Result<(), LinkError> {
    let namespace = |source: io::Error| LinkError::Namespace {
        path: link.netns.clone(),
        source,
    };
    let netns = File::open(&link.netns).map_err(namespace)?;
    setns(&netns, CloneFlags::CLONE_NEWNET).map_err(|errno| namespace(errno.into()))?;
    quiet_ipv6(NAME)?;
    let index = nix::net::if_::if_nametoindex(NAME).map_err(|errno| LinkError::Link {
        verb: "find the pod's side of",
        name: link.name.clone(),
        source: errno.into(),
    })?;
    let steps = steps(link, index);
    let refused = send(&steps).map_err(namespace)?;
    match refused.into_iter().next() {
        None => Ok(()),
        Some((step, source)) => Err(LinkError::Link {
            verb: step,
            name: link.name.clone(),
            source,
        }),
    }
}

type Step = (&'static str, RouteNetlinkMessage, u16);

fn steps(link: &PodLink, index: u32) -> Vec<Step> {
    let add = NLM_F_CREATE | NLM_F_REPLACE;
    let up = |index| RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).up().build());
    let mut steps = vec![("set up lo beside", up(LO_INDEX), 0)];
    for address in &link.addresses {
        let message = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(*address, 32)
            .build();
        steps.push((
            "add the address of",
            RouteNetlinkMessage::NewAddress(message),
            add,
        ));
    }
    steps.push(("set up the pod's side of", up(index), 0));
    let neighbour = neighbour_message(index, GATEWAY, link.host_mac);
    steps.push((
        "add the gateway of",
        RouteNetlinkMessage::NewNeighbour(neighbour),
        add,
    ));
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
        .gateway(GATEWAY)
        .output_interface(index)
        .protocol(RouteProtocol::Other(PROTOCOL))
        .scope(RouteScope::Universe)
        .onlink()
        .build();
    steps.push((
        "add the default route of",
        RouteNetlinkMessage::NewRoute(route),
        add,
    ));
    steps
}

/// Sends all steps in one write, collects all answers, returns what was refused.
pub(super) fn send(steps: &[Step]) -> io::Result<Vec<(&'static str, io::Error)>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = Vec::new();
    for (number, (_, body, flags)) in (1..).zip(steps) {
        let mut message = NetlinkMessage::from(body.clone());
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.header.sequence_number = number;
        message.finalize();
        let start = request.len();
        request.resize(start + message.buffer_len(), 0);
        message.serialize(&mut request[start..]);
        request.resize(request.len().next_multiple_of(4), 0);
    }
    socket.send(&request, 0)?;

    let mut refused = Vec::new();
    let mut open = steps.len();
    while open > 0 {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while rest.len() >= 16 {
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(io::Error::other)?;
            let length = (answer.header.length as usize).next_multiple_of(4);
            let number = answer.header.sequence_number as usize;
            if let NetlinkPayload::Error(error) = answer.payload {
                open = open.saturating_sub(1);
                if error.code.is_some()
                    && let Some((step, _, _)) = steps.get(number.wrapping_sub(1))
                {
                    refused.push((*step, error.to_io()));
                }
            }
            rest = rest.get(length.max(16)..).unwrap_or(&[]);
        }
    }
    Ok(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_side_is_made_in_its_namespace_at_once() {
        let link = PodLink {
            name: "foil0123456789".to_owned(),
            host_mac: [2, 0, 0, 0, 0, 1],
            pod_mac: [2, 0, 0, 0, 0, 2],
            mtu: 1450,
            addresses: vec![Ipv4Addr::new(10, 0, 0, 2)],
            node_ip: None,
            netns: "/proc/self/ns/net".into(),
        };
        let netns = File::open(&link.netns).unwrap();
        let text = format!("{:?}", veth_message(&link, &netns));
        for part in ["foil0123456789", "eth0", "NetNsFd", "Mtu(1450)"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
