//! What IPv6 packets become: services, refusals, ICMPv6, extension headers, hostile packets.

use crate::node::{Node, OTHER_VIP, PORT, TCP, UDP, VIP, dropped, link};
use crate::packet::{NEXT, REDIRECT, SHOT, at, tcp};
use crate::packet6::{At6, Seen6, at6, error6, extended, icmp6, see_error6, see6, tcp6, udp6};
use crate::six::{HAIRPIN6, six};
use agent_sys::bpf::Program;
use agent_sys::maps::Counted;
use ebpf_common::address::Address as _;
use ebpf_common::conntrack::{ALL_FLOWS, FlowKey6, scope, state};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::{Addr, Be16, MacAddr};
use ebpf_logic::icmp;
use ebpf_logic::parse::flag::{ACK, RST, SYN};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);
const NODE: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 11);
const PEER: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 12);

const HOP_BY_HOP: u8 = 0;
const DESTINATION: u8 = 60;
const FRAGMENT: u8 = 44;

fn node() -> Node {
    Node::dual(NODE, &[CLIENT, SERVER])
}

fn client(port: u16) -> At6 {
    at6(six(CLIENT), port)
}

fn vip() -> At6 {
    at6(six(VIP), PORT)
}

fn server() -> At6 {
    at6(six(SERVER), 8080)
}

fn key(from: u32, protocol: u8, src: At6, dst: At6) -> FlowKey6 {
    FlowKey6 {
        src: IpAddr::from(*src.ip()).into(),
        dst: IpAddr::from(*dst.ip()).into(),
        sport: Be16::new(src.port()),
        dport: Be16::new(dst.port()),
        scope: scope(from, protocol),
    }
}

fn seen(from: At6, to: At6, protocol: u8, flags: u8) -> Seen6 {
    Seen6 {
        from,
        to,
        protocol,
        flags,
    }
}

/// Packets of the kernel itself (listeners of groups, neighbours) are decided as well, so only
/// drops are compared.
fn drops(node: &Node) -> Vec<(Counted, Hook, u64)> {
    let all = node.counters().into_iter();
    all.filter(|(what, ..)| *what != Counted::Decided).collect()
}

/// The client opens a connection to the service, which the server accepts.
fn open(node: &Node, port: u16) {
    let (client, vip, server) = (client(port), vip(), server());
    for (pod, from, to, flags, out) in [
        (0, client, vip, SYN, (client, server)),
        (1, server, client, SYN | ACK, (vip, client)),
        (0, client, vip, ACK, (client, server)),
    ] {
        let ran = node.from_pod(pod, &tcp6(from, to, flags, b""));
        assert_eq!(ran.verdict, REDIRECT, "{from} to {to}");
        assert_eq!(see6(&ran.packet), seen(out.0, out.1, TCP, flags));
    }
}

#[test]
fn a_connection_through_a_service() {
    let node = node();
    node.put_service6(VIP, 1, TCP, &[(3, SERVER, 8080)], 0);
    open(&node, 40_000);
    assert_eq!(node.connections(3), 1);
    let maps = node.datapath.maps();
    let own = key(node.pods[0].ifindex, TCP, client(40_000), vip());
    let flow = maps.flow6(&own).unwrap().expect("an entry");
    assert_eq!((flow.backend, flow.state), (3, state::ESTABLISHED));
    let answer = maps.flow6(&flow.answer_key(&own)).unwrap();
    assert!(answer.is_some_and(|answer| answer.is_reply()));
    // Established, both ways: odd lengths as well.
    for payload in [&b"data"[..], b"odd"] {
        let there = node.from_pod(0, &tcp6(client(40_000), vip(), ACK, payload));
        assert_eq!(
            see6(&there.packet),
            seen(client(40_000), server(), TCP, ACK)
        );
        let back = node.from_pod(1, &tcp6(server(), client(40_000), ACK, payload));
        assert_eq!(see6(&back.packet), seen(vip(), client(40_000), TCP, ACK));
    }
    let counted = maps.flow6(&own).unwrap().expect("an entry");
    assert_eq!(counted.packets, flow.packets + 2);
    assert!(drops(&node).is_empty(), "{:?}", drops(&node));
}

#[test]
fn datagrams_and_one_client_with_affinity() {
    let node = node();
    let backends: Vec<_> = (3..11).map(|id| (id, SERVER, 8000 + id as u16)).collect();
    node.put_service6(VIP, 1, UDP, &backends, 60);
    node.put_service6(OTHER_VIP, 2, UDP, &backends, 0);
    let chosen = |vip: At6| -> std::collections::BTreeSet<u16> {
        let ports = (0..32).map(|n| {
            let ran = node.from_pod(0, &udp6(client(40_000 + n), vip, b"query"));
            assert_eq!(ran.verdict, REDIRECT);
            see6(&ran.packet).to.port()
        });
        ports.collect()
    };
    assert_eq!(chosen(vip()).len(), 1);
    assert!(chosen(at6(six(OTHER_VIP), PORT)).len() > 4);
}

#[test]
fn a_pod_that_is_its_own_backend() {
    let node = node();
    node.put_service6(VIP, 1, TCP, &[(3, CLIENT, 8080)], 0);
    let ran = node.from_pod(0, &tcp6(client(40_000), vip(), SYN, b""));
    assert_eq!(ran.verdict, REDIRECT);
    let hairpin = at6(HAIRPIN6, 40_000);
    let backend = at6(six(CLIENT), 8080);
    assert_eq!(see6(&ran.packet), seen(hairpin, backend, TCP, SYN));
    let ran = node.from_pod(0, &tcp6(backend, hairpin, SYN | ACK, b""));
    assert_eq!(ran.verdict, REDIRECT);
    assert_eq!(
        see6(&ran.packet),
        seen(vip(), client(40_000), TCP, SYN | ACK)
    );
}

#[test]
fn without_a_backend_the_sender_is_told() {
    let node = node();
    node.put_service6(VIP, 1, TCP, &[], 0);
    node.put_service6(VIP, 2, UDP, &[], 0);
    let ran = node.from_pod(0, &tcp6(client(40_000), vip(), SYN, b""));
    assert_eq!(ran.verdict, REDIRECT);
    assert_eq!(
        see6(&ran.packet),
        seen(vip(), client(40_000), TCP, RST | ACK)
    );
    // No data, as much as is quoted, and more.
    for data in [&b""[..], b"query", &[7; 300]] {
        let ran = node.from_pod(0, &udp6(client(40_000), vip(), data));
        assert_eq!(ran.verdict, REDIRECT);
        let wanted = ((1, 4), six(VIP), six(CLIENT), client(40_000), vip());
        assert_eq!(see_error6(&ran.packet), wanted);
    }
    // No service at all.
    let ran = node.from_pod(0, &tcp6(client(40_000), at6(six(OTHER_VIP), 81), SYN, b""));
    assert_eq!(see6(&ran.packet).flags, RST | ACK);
    let wanted = vec![
        dropped(Drop::NoFrontend, Hook::FromPod, 1),
        dropped(Drop::NoBackend, Hook::FromPod, 4),
    ];
    assert_eq!(drops(&node), wanted);
}

/// The backend's own, and a router's about a backend of another node.
#[test]
fn errors_are_translated_inside_and_outside() {
    let node = node();
    node.put_service6(VIP, 1, UDP, &[(3, SERVER, 8080)], 0);
    let query = node
        .from_pod(0, &udp6(client(40_000), vip(), b"query"))
        .packet;
    let ran = node.from_pod(1, &error6(six(SERVER), six(CLIENT), &query));
    assert_eq!(ran.verdict, REDIRECT);
    let wanted = ((1, 4), six(VIP), six(CLIENT), client(40_000), vip());
    assert_eq!(see_error6(&ran.packet), wanted);
    let via = six(PEER).to_string();
    let remote = format!("{}/120", six(Ipv4Addr::new(10, 244, 2, 0)));
    let route = ["-6", "route", "add", &remote, "via", &via, "dev", "eth0"];
    node.netns.ip(&route);
    node.put_service6(OTHER_VIP, 2, UDP, &[(4, REMOTE, 8080)], 0);
    let other = at6(six(OTHER_VIP), PORT);
    let ran = node.from_pod(0, &udp6(client(40_001), other, b"query"));
    assert_eq!(ran.verdict, REDIRECT);
    assert_eq!(see6(&ran.packet).to, at6(six(REMOTE), 8080));
    let router = six(Ipv4Addr::new(172, 31, 0, 1));
    let error = error6(router, six(CLIENT), &ran.packet);
    let ran = node.run(Program::FromNetdev, node.uplink, &error);
    assert_eq!(ran.verdict, REDIRECT);
    let wanted = ((1, 4), router, six(CLIENT), client(40_001), other);
    assert_eq!(see_error6(&ran.packet), wanted);
}

#[test]
fn extension_headers_and_fragments() {
    let node = node();
    node.put_service6(VIP, 1, UDP, &[(3, SERVER, 8080)], 0);
    let direct = udp6(client(40_000), server(), b"query");
    let served = udp6(client(40_000), vip(), b"query");
    let options = [0, 0, 1, 4, 0, 0, 0, 0];
    let fragment = |offset: u16| {
        let [high, low] = offset.to_be_bytes();
        [0, 0, high, low, 0, 0, 0, 9]
    };
    for (kind, header, reason) in [
        (HOP_BY_HOP, options, Drop::IpOptions),
        (DESTINATION, options, Drop::IpOptions),
        (FRAGMENT, fragment(0), Drop::IpOptions),
        (FRAGMENT, fragment(1), Drop::Fragment),
        (FRAGMENT, fragment(64), Drop::Fragment),
    ] {
        let packet = extended(&direct, kind, header);
        let ran = node.from_pod(0, &packet);
        assert_eq!((ran.verdict, ran.packet), (REDIRECT, packet), "{kind}");
        let before = drops(&node);
        let packet = extended(&served, kind, header);
        let ran = node.from_pod(0, &packet);
        assert_eq!((ran.verdict, ran.packet), (SHOT, packet), "{kind}");
        let after = drops(&node);
        let number = |of: &[(Counted, Hook, u64)]| {
            let found = of
                .iter()
                .find(|(what, ..)| *what == Counted::Dropped(reason));
            found.map_or(0, |(.., packets)| *packets)
        };
        assert_eq!(number(&after), number(&before) + 1, "{kind}");
    }
    // Six go, seven do not.
    let mut many = direct;
    for _ in 0..6 {
        many = extended(&many, DESTINATION, options);
    }
    assert_eq!(node.from_pod(0, &many).verdict, REDIRECT);
    let more = extended(&many, DESTINATION, options);
    assert_eq!(node.from_pod(0, &more).verdict, SHOT);
    // A header that says that it is longer than the packet.
    let long = extended(&more[..L4_AND_ONE], DESTINATION, [0, 255, 0, 0, 0, 0, 0, 0]);
    assert_eq!(node.from_pod(0, &long).verdict, SHOT);
    let wanted = dropped(Drop::ExtensionHeaders, Hook::FromPod, 2);
    assert!(drops(&node).contains(&wanted), "{:?}", drops(&node));
}

/// An IPv6 header and an extension header.
const L4_AND_ONE: usize = 62;

/// Each is dropped, unchanged, and counted for its reason.
#[test]
fn hostile_packets_of_a_pod() {
    let node = node();
    let good = tcp6(client(40_000), server(), ACK, b"data");
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut packet = good.clone();
        change(&mut packet);
        packet
    };
    let from = |src: Ipv6Addr| tcp6(at6(src, 40_000), server(), SYN, b"");
    let to = |dst: Ipv6Addr| tcp6(client(40_000), at6(dst, 8080), SYN, b"");
    let rows = [
        ("version 4", changed(|b| b[14] = 0x45), Drop::BadIpHeader),
        ("too long", changed(|b| b[18] = 1), Drop::BadIpLength),
        (
            "half a TCP header",
            changed(|b| b[19] = 19),
            Drop::Truncated,
        ),
        ("no flags", changed(|b| b[67] = 0), Drop::BadTcpFlags),
        (
            "another pod's source",
            from(six(SERVER)),
            Drop::SpoofedSource,
        ),
        (
            "no source",
            from(Ipv6Addr::UNSPECIFIED),
            Drop::SpoofedSource,
        ),
        (
            "mapped source",
            from(CLIENT.to_ipv6_mapped()),
            Drop::MappedAddress,
        ),
        (
            "mapped destination",
            to(SERVER.to_ipv6_mapped()),
            Drop::MappedAddress,
        ),
        (
            "router advertisement",
            icmp6("fe80::1".parse().unwrap(), "ff02::1".parse().unwrap(), 134),
            Drop::RouterMessage,
        ),
        (
            "redirect",
            icmp6(six(CLIENT), six(SERVER), 137),
            Drop::RouterMessage,
        ),
    ];
    for (what, packet, reason) in rows {
        let before = drops(&node);
        let ran = node.from_pod(0, &packet);
        assert_eq!((ran.verdict, ran.packet), (SHOT, packet), "{what}");
        let after: Vec<_> = drops(&node)
            .into_iter()
            .filter(|row| !before.contains(row))
            .collect();
        assert_eq!(after.len(), 1, "{what}");
        assert_eq!(after[0].0, Counted::Dropped(reason), "{what}");
    }
}

/// What neighbours say to each other goes to the stack, from the addresses of their interface: each
/// source would be a neighbour of the host, of which there are a thousand at most.
#[test]
fn neighbours_of_a_link_are_heard() {
    let node = node();
    let (_, bytes) = link(&node.pods[0].netns, "eth0");
    let IpAddr::V6(link_local) = icmp::link_local(MacAddr { bytes }).into() else {
        panic!("an IPv4 address");
    };
    let groups: Ipv6Addr = "ff02::16".parse().unwrap();
    for (src, dst, kind) in [
        (
            Ipv6Addr::UNSPECIFIED,
            "ff02::1:ff00:5".parse().unwrap(),
            135,
        ),
        (link_local, "fe80::a9fe:101".parse().unwrap(), 136),
        (link_local, "ff02::2".parse().unwrap(), 133),
        (six(CLIENT), "fe80::a9fe:101".parse().unwrap(), 135),
        (link_local, groups, 143),
    ] {
        let packet = icmp6(src, dst, kind);
        assert_eq!(node.from_pod(0, &packet).verdict, NEXT, "{kind}");
    }
    // As Linux sends it: behind a router alert.
    let report = extended(
        &icmp6(link_local, groups, 143),
        HOP_BY_HOP,
        [0, 0, 5, 2, 0, 0, 1, 0],
    );
    assert_eq!(node.from_pod(0, &report).verdict, NEXT);
    assert!(drops(&node).is_empty(), "{:?}", drops(&node));
    // To an address that is routed they need one that is.
    for (src, dst) in [
        (link_local, six(SERVER)),
        ("fe80::5".parse().unwrap(), groups),
        (six(SERVER), groups),
    ] {
        let ran = node.from_pod(0, &icmp6(src, dst, 135));
        assert_eq!(ran.verdict, SHOT, "{src} {dst}");
    }
    assert_eq!(
        drops(&node),
        [dropped(Drop::SpoofedSource, Hook::FromPod, 3)]
    );
}

#[test]
fn martians_from_the_network() {
    let node = node();
    node.put_service6(VIP, 1, TCP, &[(3, SERVER, 8080)], 0);
    let peer = at6(six(REMOTE), 40_000);
    for (src, reason) in [
        (six(CLIENT), Drop::SpoofedSource),
        (six(VIP), Drop::MartianSource),
        (six(NODE), Drop::MartianSource),
        (HAIRPIN6, Drop::MartianSource),
    ] {
        let packet = tcp6(at6(src, 40_000), server(), SYN, b"");
        let ran = node.run(Program::FromNetdev, node.uplink, &packet);
        assert_eq!(ran.verdict, SHOT, "{src}");
        let counted = drops(&node)
            .into_iter()
            .any(|(what, hook, _)| (what, hook) == (Counted::Dropped(reason), Hook::FromNetdev));
        assert!(counted, "{src}");
    }
    // A pod of another node reaches a pod, but no service address.
    let ran = node.run(
        Program::FromNetdev,
        node.uplink,
        &tcp6(peer, server(), SYN, b""),
    );
    assert_eq!(ran.verdict, REDIRECT);
    let ran = node.run(
        Program::FromNetdev,
        node.uplink,
        &tcp6(peer, vip(), SYN, b""),
    );
    assert_eq!(ran.verdict, SHOT);
}

/// Connections to one backend through two services, with one client port.
#[test]
fn two_services_one_backend_one_client_port() {
    let node = node();
    node.put_service6(VIP, 1, TCP, &[(3, SERVER, 8080)], 0);
    node.put_service6(OTHER_VIP, 2, TCP, &[(4, SERVER, 8080)], 0);
    open(&node, 40_000);
    let other = at6(six(OTHER_VIP), PORT);
    let ran = node.from_pod(0, &tcp6(client(40_000), other, SYN, b""));
    assert_eq!(ran.verdict, REDIRECT);
    let moved = see6(&ran.packet);
    assert_eq!((moved.to, *moved.from.ip()), (server(), six(CLIENT)));
    assert_ne!(moved.from.port(), 40_000);
    for (answered, from) in [(client(40_000), vip()), (moved.from, other)] {
        let ran = node.from_pod(1, &tcp6(server(), answered, ACK, b"data"));
        assert_eq!(see6(&ran.packet), seen(from, client(40_000), TCP, ACK));
    }
}

/// A backend that was removed: the next packet is answered with a reset.
#[test]
fn a_backend_that_is_gone() {
    let node = node();
    node.put_service6(VIP, 1, TCP, &[(3, SERVER, 8080)], 0);
    open(&node, 40_000);
    node.put_service6(VIP, 1, TCP, &[], 0);
    node.datapath.maps().delete_backend(3).expect("delete");
    let ran = node.from_pod(0, &tcp6(client(40_000), vip(), ACK, b"data"));
    assert_eq!(ran.verdict, REDIRECT);
    assert_eq!(see6(&ran.packet), seen(vip(), client(40_000), TCP, RST));
    assert_eq!(node.datapath.maps().flows6().expect("flows").len(), 0);
}

/// Flows of each family have a map and counts of their own; a pass of the sweep is over both.
#[test]
fn each_family_has_its_counts_and_both_one_sweep() {
    let node = node();
    node.put_service6(VIP, 1, TCP, &[(3, SERVER, 8080)], 0);
    open(&node, 40_000);
    let syn = tcp(at(CLIENT, 40_000), at(SERVER, 8080), SYN, b"");
    assert_eq!(node.from_pod(0, &syn).verdict, REDIRECT);
    let maps = node.datapath.maps();
    let used = |index: u32| maps.flow_usage(index).expect("usage").entries();
    let counts = || {
        let pod = u32::from(node.pods[0].id);
        [ALL_FLOWS, pod].map(|id| (used(id), used(Addr::USAGE + id)))
    };
    assert_eq!(counts(), [(2, 2), (2, 2)]);
    assert_eq!(node.sweep().removed, 0);
    for (key, mut flow) in maps.flows6().expect("flows") {
        flow.state = state::CLOSED;
        flow.last_seen = flow.last_seen.wrapping_sub(1 << 20);
        maps.put_flows6(&[(key, flow)]).expect("put");
    }
    assert_eq!(node.sweep().removed, 2);
    assert_eq!(counts(), [(2, 0), (2, 0)]);
    assert_eq!(maps.flows6().expect("flows").len(), 0);
    assert_eq!(maps.flows().expect("flows").len(), 2);
}

/// A pod's endpoint goes with both addresses.
#[test]
fn an_endpoint_has_both_addresses() {
    let node = node();
    node.datapath
        .maps()
        .delete_endpoint(node.pods[1].ifindex)
        .expect("delete");
    let ran = node.from_pod(1, &tcp6(server(), client(40_000), SYN, b""));
    assert_eq!(ran.verdict, SHOT);
    // Not known any more as an address of this node.
    let packet = tcp6(server(), client(40_000), SYN, b"");
    let ran = node.run(Program::FromNetdev, node.uplink, &packet);
    assert_eq!(ran.verdict, REDIRECT);
}
