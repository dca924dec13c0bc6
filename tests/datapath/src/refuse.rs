//! What senders are told when there is no backend: at once, by the packet that their stack expects.

use crate::node::{Node, PORT, TCP, UDP, VIP, decided, dropped};
use crate::packet::{REDIRECT, SHOT, at, see, tcp, udp};
use agent_sys::bpf::Program;
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::service::{TERMINATING, algorithm};
use ebpf_logic::parse::flag::{ACK, RST, SYN};
use etherparse::{Icmpv4Type, NetSlice, SlicedPacket, TransportSlice, icmpv4};
use std::net::Ipv4Addr;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);

#[test]
fn tcp_to_a_service_without_backends_is_reset() {
    let node = Node::new(&[CLIENT]);
    node.put_service(VIP, 1, TCP, &[]);
    let client = at(CLIENT, 40_000);
    for (to, reason) in [
        (at(VIP, PORT), Drop::NoBackend),
        (at(VIP, 81), Drop::NoFrontend),
    ] {
        let ran = node.from_pod(0, &tcp(client, to, SYN, b""));
        let seen = see(&ran.packet);
        assert_eq!((ran.verdict, seen.from, seen.to), (REDIRECT, to, client));
        assert_eq!((seen.flags, ran.packet.len()), (RST | ACK, 54));
        // It acknowledges the SYN, whose number was 1,000.
        assert_eq!(ran.packet[42..46], 1_001u32.to_be_bytes());
        // In the middle of a connection, with data: where the sender reads, 77.
        let ran = node.from_pod(0, &tcp(client, to, ACK, &[7; 1000]));
        assert_eq!(see(&ran.packet).flags, RST);
        assert_eq!((ran.packet[41], ran.packet.len()), (77, 54));
        // A reset is not answered.
        let ran = node.from_pod(0, &tcp(client, to, RST, b""));
        assert_eq!(ran.verdict, SHOT);
        let counted = node.counters();
        assert!(
            counted.contains(&dropped(reason, Hook::FromPod, 3)),
            "{counted:?}"
        );
    }
    assert!(node.datapath.maps().flows().unwrap().is_empty());
}

#[test]
fn udp_to_a_service_without_backends_is_told_by_icmp() {
    let node = Node::new(&[CLIENT]);
    node.put_service(VIP, 1, UDP, &[]);
    for payload in [&b""[..], b"query", &[7; 1000]] {
        let packet = udp(at(CLIENT, 40_000), at(VIP, PORT), payload);
        let ran = node.from_pod(0, &packet);
        assert_eq!(ran.verdict, REDIRECT);
        let sliced = SlicedPacket::from_ethernet(&ran.packet).unwrap();
        let Some(NetSlice::Ipv4(ip)) = &sliced.net else {
            panic!("not IPv4");
        };
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(
            (header.source, header.destination),
            (VIP.octets(), CLIENT.octets())
        );
        let Some(TransportSlice::Icmpv4(icmp)) = &sliced.transport else {
            panic!("not ICMP");
        };
        let wanted = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
        assert_eq!(icmp.icmp_type(), wanted);
        assert_eq!(icmp.header().checksum, wanted.calc_checksum(icmp.payload()));
        assert_eq!(icmp.payload(), &packet[14..42]);
    }
    node.assert_counters(vec![dropped(Drop::NoBackend, Hook::FromPod, 3)]);
}

/// The node's own processes are told through the service device.
#[test]
fn the_node_itself_is_told_too() {
    let node = Node::new(&[]);
    node.put_service(VIP, 1, TCP, &[]);
    let packet = tcp(at(node.addr, 40_000), at(VIP, PORT), SYN, b"");
    let ran = node.run(Program::ToNetdev, node.service, &packet);
    assert_eq!((ran.verdict, see(&ran.packet).flags), (REDIRECT, RST | ACK));
    assert_eq!(
        ran.packet[..6],
        node.config().node.service_device.unwrap().1
    );
}

/// A backend is taken away: established TCP is reset in either direction at its next packet,
/// UDP goes on with another backend.
#[test]
fn a_backend_that_is_gone() {
    let node = Node::new(&[CLIENT, SERVER]);
    let maps = node.datapath.maps();
    let (client, vip, server) = (at(CLIENT, 40_000), at(VIP, PORT), at(SERVER, 8080));
    for (sender, from, to) in [(0, client, vip), (1, server, client)] {
        node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
        for (pod, from, to, flags) in [
            (0, client, vip, SYN),
            (1, server, client, SYN | ACK),
            (0, client, vip, ACK),
        ] {
            node.from_pod(pod, &tcp(from, to, flags, b""));
        }
        maps.delete_backend(3).unwrap();
        let ran = node.from_pod(sender, &tcp(from, to, ACK, b"data"));
        let seen = see(&ran.packet);
        assert_eq!((ran.verdict, seen.flags), (REDIRECT, RST));
        assert_eq!((seen.from, seen.to), (to, from));
        assert!(maps.flows().unwrap().is_empty());
    }
    node.put_service(VIP, 2, UDP, &[(4, SERVER, 8080)]);
    let query = udp(client, vip, b"query");
    assert_eq!(see(&node.from_pod(0, &query).packet).to, server);
    node.put_service(VIP, 2, UDP, &[(5, SERVER, 9090)]);
    maps.delete_backend(4).unwrap();
    let late = node.from_pod(1, &udp(server, client, b"late answer"));
    assert_eq!(late.verdict, SHOT);
    assert_eq!(see(&node.from_pod(0, &query).packet).to, at(SERVER, 9090));
    node.assert_counters(vec![
        decided(Hook::FromPod, 8),
        dropped(Drop::BackendGone, Hook::FromPod, 3),
    ]);
}

/// A backend that is only terminating keeps its connections; new ones go elsewhere.
#[test]
fn a_backend_that_is_terminating() {
    let node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    let maps = node.datapath.maps();
    let (client, vip) = (at(CLIENT, 40_000), at(VIP, PORT));
    node.from_pod(0, &tcp(client, vip, SYN, b""));
    let (_, mut backend) = maps.backends().unwrap()[0];
    backend.state = TERMINATING;
    maps.put_backend(3, &backend, "test/backend-3").unwrap();
    node.put_choices(1, algorithm::HASH, &[]);
    let ran = node.from_pod(0, &tcp(client, vip, ACK, b"data"));
    assert_eq!(
        (ran.verdict, see(&ran.packet).to),
        (REDIRECT, at(SERVER, 8080))
    );
    assert_eq!(node.connections(3), 1);
    let ran = node.from_pod(0, &tcp(at(CLIENT, 40_001), vip, SYN, b""));
    assert_eq!(see(&ran.packet).flags, RST | ACK);
}
