//! Flows over time: states, expiry, eviction, packets in the middle of a connection.

use crate::node::{Node, OTHER_VIP, PORT, TCP, UDP, VIP};
use crate::packet::{REDIRECT, at, key, see, tcp, udp};
use agent_sys::bpf::Program;
use ebpf_common::conntrack::{Flow4, FlowKey4, SCOPE_NETDEV, state};
use ebpf_common::net::Be32;
use ebpf_logic::parse::flag::{ACK, FIN, RST, SYN};
use std::net::Ipv4Addr;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);

/// A node with a service, and the key of a connection to it that is open.
fn opened() -> (Node, FlowKey4) {
    let node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    let (client, vip) = (at(CLIENT, 40_000), at(VIP, PORT));
    node.open((0, client), vip, (1, at(SERVER, 8080)));
    let key = key(node.pods[0].ifindex, TCP, client, vip);
    assert_eq!(node.states(&key), ["ESTAB", "ESTAB"]);
    (node, key)
}

/// As if both directions had been silent for this long; a kernel has at most 1,000 ticks a second.
fn silent(node: &Node, key: &FlowKey4, seconds: u32) {
    node.change(key, |flow| {
        flow.last_seen = flow.last_seen.wrapping_sub(seconds * 1_000);
    });
}

/// Ended flows go with the sweep, their traffic is added to their backend's; others stay.
#[test]
fn the_sweep_removes_what_is_over() {
    let (node, stays) = opened();
    let (client, vip, server) = (at(CLIENT, 40_001), at(VIP, PORT), at(SERVER, 8080));
    node.open((0, client), vip, (1, server));
    node.from_pod(0, &tcp(client, vip, ACK, b"data"));
    node.from_pod(0, &tcp(client, vip, RST, b""));
    let ends = key(node.pods[0].ifindex, TCP, client, vip);
    assert_eq!(node.states(&ends), ["CLOSED", "CLOSED"]);
    let swept = node.sweep();
    assert_eq!((swept.seen, swept.removed), (4, 0));
    for key in [stays, ends] {
        silent(&node, &key, 31);
    }
    // Both directions at once, as both are as old.
    let swept = node.sweep();
    assert_eq!((swept.seen, swept.removed), (4, 2));
    assert_eq!(node.states(&stays), ["ESTAB", "ESTAB"]);
    let stats = node.datapath.maps().backend_stats(3).unwrap();
    assert_eq!(
        (stats.connections, stats.packets, stats.bytes),
        (2, 4, 40 + 40 + 44 + 40)
    );
}

/// A pass takes several calls, and no entry is passed over: each call goes on where the last one
/// ended.
#[test]
fn a_pass_over_many_flows() {
    const MANY: u32 = 30_000;
    let (node, like) = opened();
    let maps = node.datapath.maps();
    let flow = maps.flow(&like).unwrap().unwrap();
    let expired = Flow4 {
        state: state::CLOSED,
        last_seen: flow.last_seen.wrapping_sub(31_000),
        ..flow
    };
    let entry = |number: u32| {
        let src = Be32::new(0x0a00_0000 + number);
        let flow = if number.is_multiple_of(2) {
            flow
        } else {
            expired
        };
        // Answers that no other entry is for.
        (FlowKey4 { src, ..like }, Flow4 { dst: src, ..flow })
    };
    maps.put_flows(&(0..MANY).map(entry).collect::<Vec<_>>())
        .unwrap();
    let mut calls = 0;
    let mut removed = 0;
    loop {
        let swept = node.datapath.sweep().unwrap();
        assert!(swept.seen <= MANY / 3, "{swept:?}");
        removed += swept.removed;
        calls += 1;
        if swept.complete {
            break;
        }
    }
    assert_eq!(removed, MANY / 2);
    assert!(calls >= 4, "{calls}");
    let swept = node.sweep();
    assert_eq!((swept.seen, swept.removed), (MANY / 2 + 2, 0));
}

/// Another CPU sees a flow after the sweep has read its clock: the flow is not silent for
/// 2^32 ticks.
#[test]
fn a_flow_that_is_seen_during_the_sweep_stays() {
    let (node, key) = opened();
    for ahead in [1, 1_000, 1_000_000] {
        for state in [state::ESTABLISHED, state::CLOSED] {
            node.change(&key, |flow| {
                flow.last_seen = flow.last_seen.wrapping_add(ahead);
                flow.state = state;
            });
            assert_eq!(node.sweep().removed, 0, "{ahead} {state}");
        }
    }
}

/// The same when a second connection needs the reply tuple of the first: it takes another port.
#[test]
fn a_flow_that_is_seen_just_now_keeps_its_reply_tuple() {
    let (node, first) = opened();
    node.put_service(OTHER_VIP, 2, TCP, &[(4, SERVER, 8080)]);
    node.change(&first, |flow| {
        flow.last_seen = flow.last_seen.wrapping_add(1_000);
    });
    let (client, server) = (at(CLIENT, 40_000), at(SERVER, 8080));
    let out = node.from_pod(0, &tcp(client, at(OTHER_VIP, PORT), SYN, b""));
    assert_ne!(see(&out.packet).from, client);
    let out = node.from_pod(1, &tcp(server, client, ACK, b"data"));
    assert_eq!(see(&out.packet).from, at(VIP, PORT));
}

/// One packet in the middle of a connection is forwarded, and its entry lives for a minute
/// until the other direction has answered.
#[test]
fn one_acknowledgement_is_no_connection() {
    let node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    let (client, vip, server) = (at(CLIENT, 40_000), at(VIP, PORT), at(SERVER, 8080));
    let key = key(node.pods[0].ifindex, TCP, client, vip);
    for flags in [ACK, SYN, FIN | ACK] {
        for _ in 0..3 {
            let ran = node.from_pod(0, &tcp(client, vip, flags, b""));
            assert_eq!((ran.verdict, see(&ran.packet).to), (REDIRECT, server));
        }
        for _ in 0..2 {
            node.from_pod(0, &tcp(client, vip, ACK, b"data"));
        }
        assert_eq!(node.states(&key)[1], "UNREPLIED");
        silent(&node, &key, 61);
        assert_eq!(node.sweep().removed, 2, "{flags}");
    }
    node.from_pod(0, &tcp(client, vip, ACK, b"data"));
    assert_eq!(node.states(&key), ["PICKED-UP", "UNREPLIED"]);
    node.from_pod(1, &tcp(server, client, ACK, b"data"));
    assert_eq!(node.states(&key), ["ESTAB", "ESTAB"]);
    silent(&node, &key, 61);
    assert_eq!(node.sweep().removed, 0);
}

/// The same from the network, where each direction makes its own entry.
#[test]
fn one_acknowledgement_from_the_network_is_no_connection() {
    let node = Node::new(&[SERVER]);
    let (client, server) = (at(REMOTE, 40_000), at(SERVER, 8080));
    let maps = node.datapath.maps();
    let from = key(SCOPE_NETDEV, TCP, client, server);
    let ack = tcp(client, server, ACK, b"data");
    for _ in 0..3 {
        let ran = node.run(Program::FromNetdev, node.uplink, &ack);
        assert_eq!(ran.verdict, REDIRECT);
    }
    let flow = maps.flow(&from).unwrap().unwrap();
    assert_eq!(flow.state, state::PICKED_UP);
    node.netns
        .ip(&["route", "add", "10.244.2.0/24", "via", "172.31.0.12"]);
    node.from_pod(0, &tcp(server, client, ACK, b"data"));
    node.run(Program::FromNetdev, node.uplink, &ack);
    assert_eq!(node.states(&from), ["ESTAB", "ESTAB"]);
}

/// After FIN of one side both directions still take the fast path.
#[test]
fn half_closed_stays_on_the_fast_path() {
    let (node, key) = opened();
    let (client, vip, server) = (at(CLIENT, 40_000), at(VIP, PORT), at(SERVER, 8080));
    node.from_pod(0, &tcp(client, vip, FIN | ACK, b""));
    assert_eq!(node.states(&key), ["FIN-WAIT", "CLOSE-WAIT"]);
    let slow = node.slow();
    for _ in 0..5 {
        let ran = node.from_pod(1, &tcp(server, client, ACK, b"data"));
        assert_eq!((ran.verdict, see(&ran.packet).from), (REDIRECT, vip));
        let ran = node.from_pod(0, &tcp(client, vip, ACK, b""));
        assert_eq!((ran.verdict, see(&ran.packet).to), (REDIRECT, server));
    }
    assert_eq!(node.slow(), slow);
    node.from_pod(1, &tcp(server, client, FIN | ACK, b""));
    assert_eq!(node.states(&key), ["TIME-WAIT", "TIME-WAIT"]);
}

/// A reset that neither end has sent: packets are forwarded as before, and the first exchange
/// makes the connection what it was. Until then it survives half a minute of silence.
#[test]
fn a_forged_reset_does_not_end_a_connection() {
    let (node, key) = opened();
    let (client, vip, server) = (at(CLIENT, 40_000), at(VIP, PORT), at(SERVER, 8080));
    for (pod, from, to) in [(0, client, vip), (1, server, client)] {
        let ran = node.from_pod(pod, &tcp(from, to, RST, b""));
        assert_eq!(ran.verdict, REDIRECT);
        assert_eq!(node.states(&key), ["CLOSED", "CLOSED"]);
        // At 250 ticks a second and at 1,000.
        silent(&node, &key, 7);
        assert_eq!(node.sweep().removed, 0);
        // A new table: an entry that was lost would go elsewhere.
        node.put_service(VIP, 1, TCP, &[(4, SERVER, 9090)]);
        let ran = node.from_pod(1, &tcp(server, client, ACK, b"data"));
        assert_eq!((ran.verdict, see(&ran.packet).from), (REDIRECT, vip));
        assert_eq!(node.states(&key), ["UNREPLIED", "PICKED-UP"]);
        let ran = node.from_pod(0, &tcp(client, vip, ACK, b""));
        assert_eq!((ran.verdict, see(&ran.packet).to), (REDIRECT, server));
        assert_eq!(node.states(&key), ["ESTAB", "ESTAB"]);
    }
}

/// An entry that was evicted: the connection goes on with the same backend.
#[test]
fn an_evicted_entry_is_found_again() {
    let node = Node::new(&[CLIENT, SERVER]);
    let ports = [8080, 8081, 8082, 8083, 8084];
    let backends = ports.map(|port| (u32::from(port), SERVER, port));
    node.put_service(VIP, 1, TCP, &backends);
    node.put_service(
        VIP,
        2,
        UDP,
        &backends.map(|(id, addr, port)| (id + 1_000, addr, port)),
    );
    for port in 40_000..40_010 {
        let (client, vip) = (at(CLIENT, port), at(VIP, PORT));
        for (protocol, first, next) in [
            (
                TCP,
                tcp(client, vip, SYN, b""),
                tcp(client, vip, ACK, b"data"),
            ),
            (UDP, udp(client, vip, b"1"), udp(client, vip, b"2")),
        ] {
            let chosen = see(&node.from_pod(0, &first).packet).to;
            let key = key(node.pods[0].ifindex, protocol, client, vip);
            node.datapath.maps().delete_flow(&key).unwrap();
            let ran = node.from_pod(0, &next);
            assert_eq!((ran.verdict, see(&ran.packet).to), (REDIRECT, chosen));
        }
    }
}

/// A SYN that is sent again is the same decision, also when the choice table changed meanwhile.
#[test]
fn a_syn_that_is_sent_again() {
    let node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    let syn = tcp(at(CLIENT, 40_000), at(VIP, PORT), SYN, b"");
    node.from_pod(0, &syn);
    node.put_service(VIP, 1, TCP, &[(4, SERVER, 8081)]);
    assert_eq!(see(&node.from_pod(0, &syn).packet).to, at(SERVER, 8080));
    assert_eq!((node.connections(3), node.connections(4)), (1, 0));
    let flow = key(node.pods[0].ifindex, TCP, at(CLIENT, 40_000), at(VIP, PORT));
    let flow = node.datapath.maps().flow(&flow).unwrap().unwrap();
    assert_eq!((flow.state, flow.packets), (state::SYN_SENT, 2));
    // The answer was on its way already.
    let answer = tcp(at(SERVER, 8080), at(CLIENT, 40_000), SYN | ACK, b"");
    node.from_pod(1, &answer);
    for _ in 0..2 {
        assert_eq!(see(&node.from_pod(0, &syn).packet).to, at(SERVER, 8080));
        assert_eq!(see(&node.from_pod(1, &answer).packet).from, at(VIP, PORT));
    }
    assert_eq!((node.connections(3), node.connections(4)), (1, 0));
}
