//! Malformed packets: each dropped with its reason, counted and reported; the host's left alone.

use crate::node::{Node, PORT, TCP, VIP, decided, dropped};
use crate::packet::{NEXT, REDIRECT, SHOT, at, see, tcp, udp};
use agent_sys::bpf::Program;
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::event::DROPPED;
use ebpf_logic::parse::flag::{ACK, FIN, SYN};
use std::net::Ipv4Addr;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);

/// One change to a good packet: what, which packet, the change, the reason.
///
/// Half an IP header is a row of `ebpf-logic`'s own test: test_run takes no such packet.
type Row = (&'static str, Vec<u8>, fn(&mut Vec<u8>), Drop);

fn rows() -> Vec<Row> {
    let syn = tcp(at(CLIENT, 40_000), at(SERVER, 8080), SYN, b"");
    let data = tcp(at(CLIENT, 40_001), at(SERVER, 8080), ACK, b"data");
    let query = udp(at(CLIENT, 40_000), at(SERVER, 8080), b"");
    vec![
        (
            "IPv6",
            syn.clone(),
            |b| (b[12], b[13]) = (0x86, 0xdd),
            Drop::NotIp,
        ),
        (
            "half a TCP header",
            syn.clone(),
            |b| (b[17] = 30, b.truncate(44)).0,
            Drop::Truncated,
        ),
        (
            "half a UDP header",
            query.clone(),
            |b| (b[17] = 24, b.truncate(38)).0,
            Drop::Truncated,
        ),
        (
            "version 5",
            syn.clone(),
            |b| b[14] = 0x55,
            Drop::BadIpHeader,
        ),
        (
            "IP header of 16",
            syn.clone(),
            |b| b[14] = 0x44,
            Drop::BadIpHeader,
        ),
        (
            "IP header over end",
            syn.clone(),
            |b| b[14] = 0x4f,
            Drop::BadIpLength,
        ),
        (
            "total under header",
            syn.clone(),
            |b| b[17] = 19,
            Drop::BadIpLength,
        ),
        (
            "total over frame",
            syn.clone(),
            |b| b[17] = 41,
            Drop::BadIpLength,
        ),
        (
            "total over frame, data",
            data.clone(),
            |b| b[17] = 200,
            Drop::BadIpLength,
        ),
        ("options", syn.clone(), |b| b[14] = 0x46, Drop::IpOptions),
        (
            "TCP offset 4",
            syn.clone(),
            |b| b[46] = 0x40,
            Drop::BadTcpHeader,
        ),
        (
            "TCP offset 4, data",
            data.clone(),
            |b| b[46] = 0x40,
            Drop::BadTcpHeader,
        ),
        (
            "TCP offset over end",
            data,
            |b| b[46] = 0xf0,
            Drop::BadTcpHeader,
        ),
        (
            "SYN and FIN",
            syn.clone(),
            |b| b[47] = SYN | FIN,
            Drop::BadTcpFlags,
        ),
        ("no flags", syn, |b| b[47] = 0, Drop::BadTcpFlags),
        (
            "UDP over IP",
            query.clone(),
            |b| b[39] = 9,
            Drop::BadUdpLength,
        ),
        ("UDP under 8", query, |b| b[39] = 7, Drop::BadUdpLength),
    ]
}

/// From a pod all of them are dropped, before and after the flow is known, and each is counted
/// once and reported once.
#[test]
fn malformed_packets_of_a_pod_have_their_reason() {
    let node = Node::new(&[CLIENT, SERVER]);
    let mut events = node.datapath.maps().events().unwrap();
    for packet in [
        tcp(at(CLIENT, 40_001), at(SERVER, 8080), ACK, b"data"),
        udp(at(CLIENT, 40_000), at(SERVER, 8080), b""),
    ] {
        assert_eq!(node.from_pod(0, &packet).verdict, REDIRECT);
        events.next_event().expect("a decision");
    }
    let mut counted = vec![decided(Hook::FromPod, 2)];
    for (what, mut packet, change, reason) in rows() {
        change(&mut packet);
        let ran = node.from_pod(0, &packet);
        assert_eq!((ran.verdict, &ran.packet), (SHOT, &packet), "{what}");
        let wanted = dropped(reason, Hook::FromPod, 1);
        match counted.iter_mut().find(|(what, _, _)| *what == wanted.0) {
            Some((_, _, packets)) => *packets += 1,
            None => counted.push(wanted),
        }
        node.assert_counters(counted.clone());
        let event = events
            .next_event()
            .unwrap_or_else(|| panic!("{what}: no event"));
        assert_eq!(
            (event.kind, event.reason),
            (DROPPED, reason as u8),
            "{what}"
        );
        assert_eq!(event.ifindex, node.pods[0].ifindex);
        assert_eq!(event.len as usize, packet.len());
        assert!(events.next_event().is_none(), "{what}: two events");
    }
}

/// From the network: dropped when it is for a pod, the host's own business otherwise.
#[test]
fn malformed_packets_from_the_network() {
    let node = Node::new(&[SERVER]);
    let outside = at(Ipv4Addr::new(192, 0, 2, 1), 40_000);
    for (what, mut packet, change, reason) in rows() {
        packet[26..30].copy_from_slice(&outside.ip().octets());
        change(&mut packet);
        let before = node.counters();
        let ran = node.run(Program::FromNetdev, node.uplink, &packet);
        let for_pod = packet.len() >= 34 && reason != Drop::NotIp;
        let wanted = if for_pod { SHOT } else { NEXT };
        assert_eq!(ran.verdict, wanted, "{what}");
        assert_ne!(node.counters(), before, "{what}");
        if packet.len() >= 34 {
            packet[30..34].copy_from_slice(&node.addr.octets());
            let ran = node.run(Program::FromNetdev, node.uplink, &packet);
            assert_eq!(
                (ran.verdict, &ran.packet),
                (NEXT, &packet),
                "{what} for the host"
            );
        }
    }
}

/// Data behind the IP packet (Ethernet pads short frames) is not part of it.
#[test]
fn padded_frames_go() {
    let node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    let mut packet = tcp(at(CLIENT, 40_000), at(VIP, PORT), SYN, b"");
    packet.extend([0; 6]);
    let ran = node.from_pod(0, &packet);
    assert_eq!(ran.verdict, REDIRECT);
    assert_eq!(see(&ran.packet).to, at(SERVER, 8080));
}

/// A fragment goes where it says, unless it would have to be translated.
#[test]
fn fragments() {
    let node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, crate::node::UDP, &[(3, SERVER, 8080)]);
    let fragment = |to, more: bool| {
        let mut packet = udp(at(CLIENT, 40_000), to, b"0123456789abcdef");
        (packet[20], packet[21]) = if more { (0x20, 0) } else { (0, 2) };
        packet
    };
    for more in [true, false] {
        let ran = node.from_pod(0, &fragment(at(SERVER, 8080), more));
        assert_eq!(ran.verdict, REDIRECT);
        assert_eq!(ran.packet, fragment(at(SERVER, 8080), more));
        let ran = node.from_pod(0, &fragment(at(VIP, PORT), more));
        assert_eq!(ran.verdict, SHOT);
    }
    // The answer of a translated flow, too large for one packet.
    node.from_pod(0, &udp(at(CLIENT, 40_000), at(VIP, PORT), b"query"));
    let mut answer = udp(at(SERVER, 8080), at(CLIENT, 40_000), b"0123456789abcdef");
    answer[20] = 0x20;
    assert_eq!(node.from_pod(1, &answer).verdict, SHOT);
    node.assert_counters(vec![
        decided(Hook::FromPod, 3),
        dropped(Drop::Fragment, Hook::FromPod, 3),
    ]);
}
