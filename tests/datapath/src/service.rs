//! Service choice, translation and its reverse, the fast path behind it.

use crate::balance::table;
use crate::node::{HAIRPIN, Node, OTHER_VIP, PORT, TCP, UDP, VIP, decided, dropped, frontend_key};
use crate::packet::{NEXT, REDIRECT, SHOT, at, key, see, tcp, udp};
use agent_sys::bpf::Program;
use ebpf_common::conntrack::{SCOPE_HOST, SCOPE_NETDEV, action, state};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::service::algorithm;
use ebpf_logic::parse::flag::{ACK, FIN, RST, SYN};
use ebpf_logic::service::{choose, hash};
use std::net::Ipv4Addr;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);

/// From the first SYN to an established connection, all packets and all entries.
#[test]
fn a_connection_through_a_service_to_a_pod_of_this_node() {
    let node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    let (client, vip, server) = (at(CLIENT, 40_000), at(VIP, PORT), at(SERVER, 8080));

    let syn = node.from_pod(0, &tcp(client, vip, SYN, b""));
    assert_eq!(syn.verdict, REDIRECT);
    let seen = see(&syn.packet);
    assert_eq!((seen.from, seen.to, seen.flags), (client, server, SYN));
    let forward = key(node.pods[0].ifindex, TCP, client, vip);
    let flow = node
        .datapath
        .maps()
        .flow(&forward)
        .unwrap()
        .expect("forward entry");
    assert_eq!(flow.action, action::PEER | action::NAT);
    assert_eq!(
        (flow.ifindex, flow.peer),
        (node.pods[1].ifindex, node.pods[1].id)
    );
    assert_eq!(
        (flow.state, flow.backend, flow.packets),
        (state::SYN_SENT, 3, 1)
    );

    let answer = node.from_pod(1, &tcp(server, client, SYN | ACK, b""));
    assert_eq!(answer.verdict, REDIRECT);
    let seen = see(&answer.packet);
    assert_eq!((seen.from, seen.to), (vip, client));
    let reverse = key(node.pods[1].ifindex, TCP, server, client);
    assert_eq!(flow.answer_key(&forward), reverse);
    let back = node
        .datapath
        .maps()
        .flow(&reverse)
        .unwrap()
        .expect("reply entry");
    assert_eq!(back.action, action::PEER | action::NAT | action::REPLY);
    assert_eq!(back.answer_key(&reverse), forward);
    assert_eq!(back.state, state::SYN_RECEIVED);

    // The acknowledgement is the last that the slow path sees.
    node.from_pod(0, &tcp(client, vip, ACK, b""));
    node.assert_counters(vec![decided(Hook::FromPod, 3)]);
    for payload in [&b""[..], b"x", b"odd", &[7; 1400]] {
        let out = node.from_pod(0, &tcp(client, vip, ACK, payload));
        assert_eq!((out.verdict, see(&out.packet).to), (REDIRECT, server));
        let out = node.from_pod(1, &tcp(server, client, ACK, payload));
        assert_eq!((out.verdict, see(&out.packet).from), (REDIRECT, vip));
    }
    node.assert_counters(vec![decided(Hook::FromPod, 3)]);
    let flow = node.datapath.maps().flow(&forward).unwrap().unwrap();
    assert_eq!((flow.state, flow.packets), (state::ESTABLISHED, 6));
    let bytes: usize = [0, 0, 0, 1, 3, 1400]
        .iter()
        .map(|payload| 40 + payload)
        .sum();
    assert_eq!(flow.bytes, bytes as u64);
    assert_eq!(node.connections(3), 1);

    for (pod, from, to, flags, after) in [
        (0, client, vip, FIN | ACK, state::FIN_SENT),
        (1, server, client, FIN | ACK, state::TIME_WAIT),
        (0, client, vip, RST, state::CLOSED),
    ] {
        assert_eq!(
            node.from_pod(pod, &tcp(from, to, flags, b"")).verdict,
            REDIRECT
        );
        let flow = node.datapath.maps().flow(&forward).unwrap().unwrap();
        assert_eq!(flow.state, after);
    }
}

/// Every connection goes where the pure function says, every backend gets some, and the
/// counters in the maps say how many.
#[test]
fn choice_is_what_the_logic_says() {
    let node = Node::new(&[CLIENT, SERVER]);
    let backends = [(11, SERVER, 8080), (12, SERVER, 8081), (13, SERVER, 8082)];
    node.put_service(VIP, 1, UDP, &backends);
    let mut wanted = [0u64; 3];
    for port in 40_000..40_060u16 {
        let client = at(CLIENT, port);
        let flow = key(node.pods[0].ifindex, UDP, client, at(VIP, PORT));
        let index = choose(hash(&flow, u32::from(node.addr)), 3) as usize - 1;
        wanted[index] += 1;
        for _ in 0..2 {
            let out = node.from_pod(0, &udp(client, at(VIP, PORT), b"query"));
            let seen = see(&out.packet);
            assert_eq!(
                (seen.from, seen.to),
                (client, at(SERVER, backends[index].2))
            );
        }
    }
    assert!(wanted.iter().all(|hits| *hits > 0), "{wanted:?}");
    assert_eq!(backends.map(|(id, _, _)| node.connections(id)), wanted);
    node.assert_counters(vec![decided(Hook::FromPod, 60)]);
}

/// A packet for a backend of another node leaves by the uplink; the answer comes in there.
#[test]
fn a_backend_of_another_node() {
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
    let (client, vip, server) = (at(CLIENT, 40_000), at(VIP, PORT), at(REMOTE, 8080));
    let out = node.from_pod(0, &tcp(client, vip, SYN, b""));
    assert_eq!((out.verdict, see(&out.packet).to), (REDIRECT, server));
    let forward = key(node.pods[0].ifindex, TCP, client, vip);
    let flow = node.datapath.maps().flow(&forward).unwrap().unwrap();
    assert_eq!(
        flow.action,
        action::NEIGH | action::NAT | action::ANSWERS_NETDEV
    );
    assert_eq!(flow.ifindex, node.uplink);
    assert_eq!(Ipv4Addr::from(flow.nexthop), Ipv4Addr::new(172, 31, 0, 12));
    let reverse = key(SCOPE_NETDEV, TCP, server, client);
    assert!(node.datapath.maps().flow(&reverse).unwrap().is_some());
    let out = node.run(
        Program::FromNetdev,
        node.uplink,
        &tcp(server, client, SYN | ACK, b""),
    );
    let seen = see(&out.packet);
    assert_eq!((out.verdict, seen.from, seen.to), (REDIRECT, vip, client));
}

/// The node's own processes: out through the service device, back in through it.
#[test]
fn a_process_of_the_node() {
    let node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    let (client, vip, server) = (at(node.addr, 40_000), at(VIP, PORT), at(SERVER, 8080));
    let out = node.run(Program::ToNetdev, node.service, &tcp(client, vip, SYN, b""));
    assert_eq!((out.verdict, see(&out.packet).to), (REDIRECT, server));
    let forward = key(SCOPE_HOST, TCP, client, vip);
    let flow = node.datapath.maps().flow(&forward).unwrap().unwrap();
    assert_eq!(flow.action, action::POD_NEIGH | action::NAT);
    let out = node.from_pod(1, &tcp(server, client, SYN | ACK, b""));
    let seen = see(&out.packet);
    assert_eq!((out.verdict, seen.from, seen.to), (REDIRECT, vip, client));
    let config = node.config();
    assert_eq!(out.packet[..6], config.node.service_device.unwrap().1);
    // Packets that leave by the uplink are not checked here.
    let out = node.run(Program::ToNetdev, node.uplink, &tcp(client, vip, SYN, b""));
    assert_eq!(out.verdict, NEXT);
    node.assert_counters(vec![decided(Hook::ToNetdev, 1), decided(Hook::FromPod, 1)]);
}

/// The pod's own hook lets pass what the service device's has translated.
#[test]
fn a_translated_packet_is_not_decided_twice() {
    let node = Node::new(&[CLIENT, SERVER]);
    let packet = tcp(at(node.addr, 40_000), at(SERVER, 8080), SYN, b"");
    let ran = node.netns.enter(|| {
        let mark = ebpf_common::config::TRANSLATED_MARK;
        let ifindex = node.pods[1].ifindex;
        node.datapath
            .test_run(Program::ToPod, &packet, ifindex, mark, 1)
    });
    assert_eq!(ran.unwrap().verdict, NEXT);
    node.assert_counters(vec![]);
    assert!(node.datapath.maps().flows().unwrap().is_empty());
}

/// A pod that is its own backend sees a link-local client, and its answers find back.
#[test]
fn hairpin() {
    let node = Node::new(&[CLIENT]);
    node.put_service(VIP, 1, TCP, &[(3, CLIENT, 8080)]);
    let (client, vip) = (at(CLIENT, 40_000), at(VIP, PORT));
    let out = node.from_pod(0, &tcp(client, vip, SYN, b""));
    let seen = see(&out.packet);
    assert_eq!(out.verdict, REDIRECT);
    assert_eq!(
        (seen.from, seen.to),
        (at(HAIRPIN, 40_000), at(CLIENT, 8080))
    );
    let out = node.from_pod(
        0,
        &tcp(at(CLIENT, 8080), at(HAIRPIN, 40_000), SYN | ACK, b""),
    );
    let seen = see(&out.packet);
    assert_eq!((out.verdict, seen.from, seen.to), (REDIRECT, vip, client));
}

/// UDP without a checksum has none afterwards; with one it has the right one.
#[test]
fn udp_without_checksum_stays_without() {
    let node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, UDP, &[(3, SERVER, 8080)]);
    let mut packet = udp(at(CLIENT, 40_000), at(VIP, PORT), b"query");
    (packet[40], packet[41]) = (0, 0);
    for _ in 0..2 {
        let out = node.from_pod(0, &packet);
        assert_eq!(out.packet[40..42], [0, 0]);
        assert_eq!(see(&out.packet).to, at(SERVER, 8080));
    }
}

/// Addresses whose words sum up to the same: the difference is zero, and says nothing about the
/// kind of checksum.
#[test]
fn addresses_that_cancel_out() {
    let twin = Ipv4Addr::new(0, 7, 10, 96);
    let node = Node::new(&[CLIENT, twin]);
    node.put_service(VIP, 1, TCP, &[(3, twin, 8080)]);
    node.put_service(VIP, 2, UDP, &[(4, twin, 8081)]);
    for _ in 0..2 {
        let out = node.from_pod(0, &tcp(at(CLIENT, 40_000), at(VIP, PORT), SYN, b"odd"));
        assert_eq!(see(&out.packet).to, at(twin, 8080));
        let out = node.from_pod(0, &udp(at(CLIENT, 40_000), at(VIP, PORT), b"odd"));
        assert_eq!(see(&out.packet).to, at(twin, 8081));
    }
}

/// A choice table is replaced whole; connections that are there stay where they are.
#[test]
fn new_backends_take_new_connections_only() {
    let node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    let vip = at(VIP, PORT);
    node.from_pod(0, &tcp(at(CLIENT, 40_000), vip, SYN, b""));
    node.from_pod(0, &tcp(at(CLIENT, 40_000), vip, ACK, b""));
    node.put_service(VIP, 1, TCP, &[(4, SERVER, 9090)]);
    let out = node.from_pod(0, &tcp(at(CLIENT, 40_000), vip, ACK, b"more"));
    assert_eq!(see(&out.packet).to, at(SERVER, 8080));
    let out = node.from_pod(0, &tcp(at(CLIENT, 40_001), vip, SYN, b""));
    assert_eq!(see(&out.packet).to, at(SERVER, 9090));
    let maps = node.datapath.maps();
    assert_eq!(maps.choices().unwrap(), [table(1, algorithm::HASH, &[4])]);
    maps.delete_frontend(&frontend_key(VIP, TCP)).unwrap();
    maps.delete_choices(&[1, 2]).unwrap();
    assert_eq!(maps.choices().unwrap(), []);
    assert!(maps.frontends().unwrap().is_empty());
}

/// The same client port to two services with one backend: both work at once, because the second
/// takes another source port towards the backend; and again when the first is over.
#[test]
fn two_services_one_backend_one_client_port() {
    let node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    node.put_service(OTHER_VIP, 2, TCP, &[(4, SERVER, 8080)]);
    let client = at(CLIENT, 40_000);
    let (first, second, server) = (at(VIP, PORT), at(OTHER_VIP, PORT), at(SERVER, 8080));
    for flags in [SYN, ACK] {
        let out = node.from_pod(0, &tcp(client, first, flags, b""));
        assert_eq!(see(&out.packet).from, client);
    }
    let out = node.from_pod(0, &tcp(client, second, SYN, b""));
    let moved = see(&out.packet).from;
    assert_ne!(moved.port(), client.port());
    for (to, vip) in [(client, first), (moved, second)] {
        let out = node.from_pod(1, &tcp(server, to, SYN | ACK, b""));
        let seen = see(&out.packet);
        assert_eq!((seen.from, seen.to), (vip, client));
    }
    // Directly as well: a third tuple that must not be mistaken for the others.
    let out = node.from_pod(0, &tcp(client, server, SYN, b""));
    let direct = see(&out.packet).from;
    assert!(![client, moved].contains(&direct));
    let out = node.from_pod(1, &tcp(server, direct, SYN | ACK, b""));
    let seen = see(&out.packet);
    assert_eq!((seen.from, seen.to), (server, client));

    // The first ends; its tuple is free for the second service from then on.
    node.from_pod(0, &tcp(client, first, RST, b""));
    node.from_pod(0, &tcp(client, second, RST, b""));
    let out = node.from_pod(0, &tcp(client, second, SYN, b""));
    assert_eq!(see(&out.packet).from, client);
    let out = node.from_pod(1, &tcp(server, client, SYN | ACK, b""));
    assert_eq!(see(&out.packet).from, second);
    // And back to the first, which must not hang on what the second wrote.
    node.from_pod(0, &tcp(client, second, RST, b""));
    let out = node.from_pod(0, &tcp(client, first, SYN, b""));
    assert_eq!(see(&out.packet).from, client);
    let out = node.from_pod(1, &tcp(server, client, SYN | ACK, b""));
    assert_eq!(see(&out.packet).from, first);
}

/// A backend that the node has no route to: dropped, counted, and logged for the operator.
#[test]
fn a_backend_without_a_route() {
    let node = Node::new(&[CLIENT]);
    node.netns
        .ip(&["route", "add", "unreachable", "10.244.2.0/24"]);
    node.put_service(VIP, 1, TCP, &[(3, REMOTE, 8080)]);
    let packet = tcp(at(CLIENT, 40_000), at(VIP, PORT), SYN, b"");
    assert_eq!(node.from_pod(0, &packet).verdict, SHOT);
    let packet = tcp(at(node.addr, 40_000), at(VIP, PORT), SYN, b"");
    let ran = node.run(Program::ToNetdev, node.service, &packet);
    assert_eq!(ran.verdict, SHOT);
    node.assert_counters(vec![
        dropped(Drop::NoRoute, Hook::FromPod, 1),
        dropped(Drop::NoRoute, Hook::ToNetdev, 1),
    ]);
    assert_eq!(node.sweep().removed, 0);
}
