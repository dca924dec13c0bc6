//! Which packets bypass the host's stack and which pass it, in both directions.

use crate::node::{HAIRPIN, Node, OTHER_VIP, PORT, TCP, UDP, VIP};
use crate::packet::{At, NEXT, REDIRECT, SHOT, at, echo, error, key, see, tcp, udp};
use agent_sys::bpf::Program;
use ebpf_common::conntrack::{SCOPE_HOST, action};
use ebpf_common::net::Be32;
use ebpf_common::network::{LOCAL, NetworkKey};
use ebpf_logic::parse::flag::{ACK, SYN};
use std::net::Ipv4Addr;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);
const OTHER_NODE: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 12);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn node() -> Node {
    let node = Node::new(&[CLIENT, SERVER]);
    let via = OTHER_NODE.to_string();
    for to in ["10.244.2.0/24", "default"] {
        node.netns.ip(&["route", "add", to, "via", &via]);
    }
    node
}

/// Packets of every kind in both directions, each of which bypasses the stack or passes it: all
/// of a pair do the same, and what passes the stack is as it was sent.
#[test]
fn both_directions_take_the_same_path() {
    let node = node();
    for (peer, verdict) in [(REMOTE, REDIRECT), (OTHER_NODE, NEXT), (OUTSIDE, NEXT)] {
        let (pod, peer) = (at(CLIENT, 40_000), at(peer, 8080));
        for again in 0..2 {
            for (out, back) in pairs(pod, peer) {
                let ran = node.from_pod(0, &out);
                assert_eq!(
                    (ran.verdict, &ran.packet),
                    (verdict, &out),
                    "{peer} {again}"
                );
                let ran = node.run(Program::FromNetdev, node.uplink, &back);
                assert_eq!(
                    (ran.verdict, &ran.packet),
                    (verdict, &back),
                    "{peer} {again}"
                );
                if verdict == NEXT {
                    let ran = node.run(Program::ToPod, node.pods[0].ifindex, &back);
                    assert_eq!((ran.verdict, &ran.packet), (NEXT, &back), "{peer} {again}");
                }
            }
        }
    }
}

fn pairs(pod: At, peer: At) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut fragments = [udp(pod, peer, b"query"), udp(peer, pod, b"answer")];
    for fragment in &mut fragments {
        fragment[20] |= 0x20;
    }
    let [first, second] = fragments;
    vec![
        (tcp(pod, peer, SYN, b""), tcp(peer, pod, SYN | ACK, b"")),
        (tcp(pod, peer, ACK, b""), tcp(peer, pod, ACK, b"data")),
        (udp(pod, peer, b"query"), udp(peer, pod, b"answer")),
        (echo(*pod.ip(), *peer.ip()), echo(*peer.ip(), *pod.ip())),
        (first, second),
    ]
}

/// A router's error about a flow takes the path of the flow, whose other packets the stack has
/// not seen, although the router is outside.
#[test]
fn an_error_takes_the_path_of_its_flow() {
    let node = node();
    for (peer, verdict) in [(REMOTE, REDIRECT), (OUTSIDE, NEXT)] {
        let (pod, peer) = (at(CLIENT, 40_000), at(peer, 8080));
        let out = udp(pod, peer, b"query");
        node.from_pod(0, &out);
        node.run(Program::FromNetdev, node.uplink, &udp(peer, pod, b"answer"));
        let error = error(OTHER_NODE, CLIENT, &out);
        let ran = node.run(Program::FromNetdev, node.uplink, &error);
        assert_eq!((ran.verdict, &ran.packet), (verdict, &error), "{peer}");
    }
}

/// A pod reaches a backend outside of the cluster, or in the host network of a node, by the
/// stack, which may masquerade it; the answer comes by the stack as well.
#[test]
fn a_service_with_backends_that_are_no_pods() {
    let node = node();
    let own = node.addr;
    for (number, backend) in [OUTSIDE, OTHER_NODE, own].into_iter().enumerate() {
        let number = number as u32;
        node.put_service(VIP, 1, TCP, &[(3 + number, backend, 8080)]);
        node.put_service(VIP, 2, UDP, &[(6 + number, backend, 8080)]);
        let (client, vip) = (at(CLIENT, 40_000 + number as u16), at(VIP, PORT));
        let server = at(backend, 8080);
        for (out, back) in [
            (
                tcp(client, vip, SYN, b""),
                tcp(server, client, SYN | ACK, b""),
            ),
            (
                tcp(client, vip, ACK, b""),
                tcp(server, client, ACK, b"data"),
            ),
            (
                tcp(client, vip, ACK, b"more"),
                tcp(server, client, ACK, b"data"),
            ),
            (udp(client, vip, b"query"), udp(server, client, b"answer")),
        ] {
            let ran = node.from_pod(0, &out);
            let seen = see(&ran.packet);
            assert_eq!((ran.verdict, seen.from, seen.to), (NEXT, client, server));
            if backend != own {
                let ran = node.run(Program::FromNetdev, node.uplink, &back);
                assert_eq!((ran.verdict, &ran.packet), (NEXT, &back));
            }
            let ran = node.run(Program::ToPod, node.pods[0].ifindex, &back);
            let seen = see(&ran.packet);
            assert_eq!((ran.verdict, seen.from, seen.to), (NEXT, vip, client));
        }
    }
}

/// A process of the node whose backend is in the host network of the same node: into the stack
/// again, from an address that leads the answers back to the service device.
#[test]
fn a_process_of_the_node_and_a_backend_in_its_host_network() {
    let node = node();
    let second = Ipv4Addr::new(172, 31, 0, 77);
    node.netns
        .ip(&["addr", "add", &format!("{second}/32"), "dev", "eth0"]);
    for (number, backend) in [node.addr, second].into_iter().enumerate() {
        let number = number as u32;
        let vip = at([VIP, OTHER_VIP][number as usize], PORT);
        node.put_service(*vip.ip(), 1 + number, TCP, &[(3 + number, backend, 8080)]);
        let client = at(node.addr, 40_000);
        let (source, server) = (at(HAIRPIN, 40_000), at(backend, 8080));
        for (out, back) in [(SYN, SYN | ACK), (ACK, ACK), (ACK, ACK)] {
            let out = tcp(client, vip, out, b"");
            let ran = node.run(Program::ToNetdev, node.service, &out);
            let seen = see(&ran.packet);
            assert_eq!(
                (ran.verdict, seen.from, seen.to),
                (REDIRECT, source, server)
            );
            let mac = node.config().node.service_device.unwrap().1;
            assert_eq!(ran.packet[..6], mac);
            let back = tcp(server, source, back, b"");
            let ran = node.run(Program::ToNetdev, node.service, &back);
            let seen = see(&ran.packet);
            assert_eq!((ran.verdict, seen.from, seen.to), (REDIRECT, vip, client));
        }
        let key = key(SCOPE_HOST, TCP, client, vip);
        assert_eq!(node.states(&key), ["ESTAB", "ESTAB"]);
        let flow = node.datapath.maps().flow(&key).unwrap().unwrap();
        assert_eq!(
            flow.action,
            action::SERVICE | action::NAT | action::ANSWERS_HOST
        );
        assert_eq!(flow.src, Be32::from(HAIRPIN));
    }
}

/// The node answers at an address of the services' range itself: its pods' packets to there
/// and the answers are the stack's, unchanged and without a flow; nothing else reaches it.
#[test]
fn an_address_that_the_node_answers_at() {
    let node = node();
    let dns = Ipv4Addr::new(10, 96, 0, 10);
    let block = NetworkKey::new(dns.into(), 32);
    node.datapath.maps().put_network(&block, LOCAL).unwrap();
    let (client, server) = (at(CLIENT, 40_000), at(dns, 53));
    for (out, back) in [
        (
            udp(client, server, b"query"),
            udp(server, client, b"answer"),
        ),
        (
            tcp(client, server, SYN, b""),
            tcp(server, client, SYN | ACK, b""),
        ),
        (echo(CLIENT, dns), echo(dns, CLIENT)),
    ] {
        for _again in 0..2 {
            let ran = node.from_pod(0, &out);
            assert_eq!((ran.verdict, &ran.packet), (NEXT, &out));
            let ran = node.run(Program::ToPod, node.pods[0].ifindex, &back);
            assert_eq!((ran.verdict, &ran.packet), (NEXT, &back));
        }
    }
    assert!(node.datapath.maps().flows().unwrap().is_empty());
    // A question from outside, and an answer that is not the node's.
    let stranger = udp(at(OUTSIDE, 40_000), server, b"query");
    let forged = udp(server, client, b"answer");
    for packet in [stranger, forged] {
        let ran = node.run(Program::FromNetdev, node.uplink, &packet);
        assert_eq!(ran.verdict, SHOT, "{packet:?}");
    }
}

/// What a pod sends to an address that no pod has any more is the stack's, which tells it so.
#[test]
fn an_unreachable_address_is_answered_by_the_stack() {
    let node = node();
    let dead = Ipv4Addr::new(10, 244, 1, 99);
    node.netns
        .ip(&["route", "add", "unreachable", "10.244.1.0/24"]);
    let (client, server) = (at(CLIENT, 40_000), at(dead, 8080));
    for packet in [
        tcp(client, server, SYN, b""),
        udp(client, server, b"query"),
        echo(CLIENT, dead),
    ] {
        let ran = node.from_pod(0, &packet);
        assert_eq!((ran.verdict, &ran.packet), (NEXT, &packet));
    }
    assert!(node.datapath.maps().flows().unwrap().is_empty());
}
