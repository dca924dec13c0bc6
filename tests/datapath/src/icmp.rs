//! ICMP errors about flows: translated outside and inside, or left alone.

use crate::node::{HAIRPIN, Node, PORT, TCP, UDP, VIP, dropped};
use crate::packet::{NEXT, REDIRECT, SHOT, at, error, see, see_error, tcp, udp};
use agent_sys::bpf::Program;
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_logic::parse::flag::SYN;
use std::net::Ipv4Addr;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);
const ROUTER: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);

/// The backend's own answer: it seems to come from the service, and is about the service.
#[test]
fn an_error_of_the_backend() {
    let node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, UDP, &[(3, SERVER, 8080)]);
    let (client, vip) = (at(CLIENT, 40_000), at(VIP, PORT));
    let query = node.from_pod(0, &udp(client, vip, b"query")).packet;
    let ran = node.from_pod(1, &error(SERVER, CLIENT, &query));
    assert_eq!(ran.verdict, REDIRECT);
    assert_eq!(see_error(&ran.packet), (VIP, CLIENT, client, vip));
}

/// A router's, about a backend of another node: the router keeps its address.
#[test]
fn an_error_of_a_router() {
    let node = Node::new(&[CLIENT]);
    node.netns.ip(&[
        "route",
        "add",
        "10.244.2.0/24",
        "via",
        "172.31.0.12",
        "dev",
        "eth0",
    ]);
    node.put_service(VIP, 1, TCP, &[(3, REMOTE, 8080)]);
    for client in [at(CLIENT, 40_000), at(node.addr, 50_000)] {
        let (program, ifindex) = if *client.ip() == CLIENT {
            (Program::FromPod, node.pods[0].ifindex)
        } else {
            (Program::ToNetdev, node.service)
        };
        let sent = node.run(program, ifindex, &tcp(client, at(VIP, PORT), SYN, b""));
        assert_eq!(see(&sent.packet).to, at(REMOTE, 8080));
        let error = error(ROUTER, *client.ip(), &sent.packet);
        let ran = node.run(Program::FromNetdev, node.uplink, &error);
        assert_eq!(ran.verdict, REDIRECT);
        let wanted = (ROUTER, *client.ip(), client, at(VIP, PORT));
        assert_eq!(see_error(&ran.packet), wanted);
    }
}

/// The client's, about an answer of the service: it reaches the backend, about the backend.
#[test]
fn an_error_of_the_client() {
    let node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, UDP, &[(3, SERVER, 8080)]);
    let (client, vip, server) = (at(CLIENT, 40_000), at(VIP, PORT), at(SERVER, 8080));
    node.from_pod(0, &udp(client, vip, b"query"));
    let answer = node.from_pod(1, &udp(server, client, b"answer")).packet;
    assert_eq!(see(&answer).from, vip);
    let ran = node.from_pod(0, &error(CLIENT, VIP, &answer));
    assert_eq!(ran.verdict, REDIRECT);
    assert_eq!(see_error(&ran.packet), (CLIENT, SERVER, server, client));
}

/// A pod that is its own backend tells itself.
#[test]
fn an_error_of_a_pod_to_itself() {
    let node = Node::new(&[CLIENT]);
    node.put_service(VIP, 1, UDP, &[(3, CLIENT, 8080)]);
    let (client, vip) = (at(CLIENT, 40_000), at(VIP, PORT));
    let query = node.from_pod(0, &udp(client, vip, b"query")).packet;
    assert_eq!(see(&query).from, at(HAIRPIN, 40_000));
    let ran = node.from_pod(0, &error(CLIENT, HAIRPIN, &query));
    assert_eq!(ran.verdict, REDIRECT);
    assert_eq!(see_error(&ran.packet), (VIP, CLIENT, client, vip));
}

/// What was not translated is not translated back; what is about nothing goes nowhere.
#[test]
fn errors_about_other_things() {
    let node = Node::new(&[CLIENT, SERVER]);
    let direct = udp(at(CLIENT, 40_000), at(SERVER, 8080), b"query");
    node.from_pod(0, &direct);
    let packet = error(SERVER, CLIENT, &direct);
    let ran = node.from_pod(1, &packet);
    assert_eq!((ran.verdict, &ran.packet), (REDIRECT, &packet));
    let outside = udp(at(SERVER, 8080), at(ROUTER, 53), b"query");
    let packet = error(SERVER, ROUTER, &outside);
    let ran = node.from_pod(1, &packet);
    assert_eq!((ran.verdict, &ran.packet), (NEXT, &packet));
    let unknown = udp(at(VIP, PORT), at(CLIENT, 40_001), b"answer");
    let ran = node.from_pod(0, &error(CLIENT, VIP, &unknown));
    assert_eq!(ran.verdict, SHOT);
    let counted = node.counters();
    assert!(
        counted.contains(&dropped(Drop::IcmpNoFlow, Hook::FromPod, 1)),
        "{counted:?}"
    );
}
