//! Whose a reply tuple is: what may take it, and how it is written again when it is lost.

use crate::node::{Node, OTHER_VIP, PORT, TCP, UDP, VIP, dropped};
use crate::packet::{At, REDIRECT, SHOT, at, key, see, tcp, udp};
use agent_sys::bpf::{Program, Ran};
use ebpf_common::conntrack::{FlowKey4, SCOPE_NETDEV};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_logic::nat::{OWN, pick_port};
use ebpf_logic::parse::flag::{ACK, FIN, RST, SYN};
use ebpf_logic::service::hash;
use std::net::Ipv4Addr;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);
const REMOTE_BLOCK: &str = "10.244.2.0/24";
const OTHER_NODE: &str = "172.31.0.12";
/// Ticks of silence after which a flow looks for its other direction.
const QUIET: u32 = 4_096;

/// A node with a client, a service in front of `server`, and one connection to it: the function
/// runs the program that packets of the server meet.
fn opened(server: Ipv4Addr) -> (Node, impl Fn(&Node, &[u8]) -> Ran) {
    opened_in(Node::new(&[CLIENT, SERVER]), server)
}

/// The same on this node.
fn opened_in(node: Node, server: Ipv4Addr) -> (Node, impl Fn(&Node, &[u8]) -> Ran) {
    node.netns
        .ip(&["route", "add", REMOTE_BLOCK, "via", OTHER_NODE]);
    node.put_service(VIP, 1, TCP, &[(3, server, 8080)]);
    let answer = move |node: &Node, packet: &[u8]| {
        if server == SERVER {
            node.from_pod(1, packet)
        } else {
            node.run(Program::FromNetdev, node.uplink, packet)
        }
    };
    let (client, vip, server) = (at(CLIENT, 40_000), at(VIP, PORT), at(server, 8080));
    node.from_pod(0, &tcp(client, vip, SYN, b""));
    answer(&node, &tcp(server, client, SYN | ACK, b""));
    node.from_pod(0, &tcp(client, vip, ACK, b""));
    assert_eq!(node.states(&forward(&node)), ["ESTAB", "ESTAB"]);
    (node, answer)
}

/// Key of the client's direction.
fn forward(node: &Node) -> FlowKey4 {
    let (client, vip) = (at(CLIENT, 40_000), at(VIP, PORT));
    key(node.pods[0].ifindex, TCP, client, vip)
}

fn sent_from(ran: &Ran) -> At {
    assert_eq!(ran.verdict, REDIRECT);
    see(&ran.packet).from
}

fn sent_to(ran: &Ran) -> At {
    assert_eq!(ran.verdict, REDIRECT);
    see(&ran.packet).to
}

/// A SYN with the tuple of the answers, forged or late, is forwarded as a packet of the
/// connection, so that the client judges it (RFC 5961, 4), and changes nothing.
#[test]
fn a_syn_does_not_take_the_tuple_of_a_live_connection() {
    for server in [REMOTE, SERVER] {
        let (node, answer) = opened(server);
        let (client, vip, server) = (at(CLIENT, 40_000), at(VIP, PORT), at(server, 8080));
        let flows = node.datapath.maps().flows().unwrap().len();
        for _ in 0..2 {
            let ran = answer(&node, &tcp(server, client, SYN, b""));
            assert_eq!(sent_from(&ran), vip);
            assert_eq!(node.states(&forward(&node)), ["ESTAB", "ESTAB"]);
            let ran = answer(&node, &tcp(server, client, ACK, b"data"));
            assert_eq!(sent_from(&ran), vip);
            let ran = node.from_pod(0, &tcp(client, vip, ACK, b""));
            assert_eq!(sent_to(&ran), server);
        }
        assert_eq!(node.datapath.maps().flows().unwrap().len(), flows);
    }
}

/// RST and FIN may be forged like the SYN: a translation outlasts them, and the connection goes on.
#[test]
fn a_syn_after_an_end_does_not_take_the_translation() {
    for server in [REMOTE, SERVER] {
        for (ends, states) in [
            (&[(false, RST)][..], ["CLOSED", "CLOSED"]),
            (
                &[(true, FIN | ACK), (false, FIN | ACK)],
                ["TIME-WAIT", "TIME-WAIT"],
            ),
        ] {
            let (node, answer) = opened(server);
            let (client, vip, server) = (at(CLIENT, 40_000), at(VIP, PORT), at(server, 8080));
            for (from_client, flags) in ends {
                if *from_client {
                    node.from_pod(0, &tcp(client, vip, *flags, b""));
                } else {
                    answer(&node, &tcp(server, client, *flags, b""));
                }
            }
            assert_eq!(node.states(&forward(&node)), states);
            let ran = answer(&node, &tcp(server, client, SYN, b""));
            assert_eq!(sent_from(&ran), vip);
            assert_eq!(node.states(&forward(&node)), states);
            let ran = node.from_pod(0, &tcp(client, vip, ACK, b""));
            assert_eq!(sent_to(&ran), server);
            let ran = answer(&node, &tcp(server, client, ACK, b"data"));
            assert_eq!(sent_from(&ran), vip);
        }
    }
}

/// When the entries of an ended connection have expired, the server may use its own port for a
/// connection to the client; late packets of the old one do not take the tuple back.
#[test]
fn a_syn_takes_the_tuple_of_a_connection_that_has_expired() {
    for server in [REMOTE, SERVER] {
        let (node, answer) = opened(server);
        let (client, vip, server) = (at(CLIENT, 40_000), at(VIP, PORT), at(server, 8080));
        node.from_pod(0, &tcp(client, vip, FIN | ACK, b""));
        answer(&node, &tcp(server, client, FIN | ACK, b""));
        let forward = forward(&node);
        assert_eq!(node.states(&forward), ["TIME-WAIT", "TIME-WAIT"]);
        let flow = node.datapath.maps().flow(&forward).unwrap().unwrap();
        for key in [forward, flow.answer_key(&forward)] {
            node.change(&key, |flow| {
                flow.last_seen = flow.last_seen.wrapping_sub(200_000);
            });
        }
        let ran = answer(&node, &tcp(server, client, SYN, b""));
        assert_eq!(sent_from(&ran), server);
        node.from_pod(0, &tcp(client, vip, ACK, b""));
        let ran = answer(&node, &tcp(server, client, SYN, b""));
        assert_eq!(sent_from(&ran), server);
    }
}

/// One of the two entries is evicted: it is written again by the first packet of the client after
/// a silence.
#[test]
fn a_reply_entry_that_was_lost_is_written_again() {
    for server in [REMOTE, SERVER] {
        let (node, answer) = opened(server);
        let maps = node.datapath.maps();
        let (client, vip, server) = (at(CLIENT, 40_000), at(VIP, PORT), at(server, 8080));
        let forward = forward(&node);
        for flags in [ACK, FIN | ACK] {
            let flow = maps.flow(&forward).unwrap().unwrap();
            node.change(&forward, |flow| {
                flow.last_seen = flow.last_seen.wrapping_sub(QUIET);
            });
            maps.delete_flow(&flow.answer_key(&forward)).unwrap();
            let ran = node.from_pod(0, &tcp(client, vip, flags, b"data"));
            assert_eq!(sent_to(&ran), server);
            let ran = answer(&node, &tcp(server, client, ACK, b"data"));
            assert_eq!(sent_from(&ran), vip);
        }
        assert_eq!(node.states(&forward), ["FIN-WAIT", "CLOSE-WAIT"]);
        // The server goes on sending.
        let slow = node.slow();
        let ran = answer(&node, &tcp(server, client, ACK, b"data"));
        assert_eq!((sent_from(&ran), node.slow()), (vip, slow));
    }
}

/// The same for the client's own entry, by packets of the server: its backend stays, although a
/// new decision would find another one.
#[test]
fn a_forward_entry_that_was_lost_is_written_again() {
    for server in [REMOTE, SERVER] {
        let (node, answer) = opened(server);
        node.put_service(VIP, 1, TCP, &[(4, SERVER, 9090)]);
        let maps = node.datapath.maps();
        let (client, vip, server) = (at(CLIENT, 40_000), at(VIP, PORT), at(server, 8080));
        let forward = forward(&node);
        for flags in [ACK, FIN | ACK] {
            node.change(&forward, |flow| {
                flow.last_seen = flow.last_seen.wrapping_sub(QUIET);
            });
            maps.delete_flow(&forward).unwrap();
            let ran = answer(&node, &tcp(server, client, flags, b"data"));
            assert_eq!(sent_from(&ran), vip);
            for _ in 0..2 {
                let ran = node.from_pod(0, &tcp(client, vip, ACK, b"data"));
                assert_eq!((sent_from(&ran), sent_to(&ran)), (client, server));
            }
        }
        assert_eq!(node.states(&forward), ["CLOSE-WAIT", "FIN-WAIT"]);
        let slow = node.slow();
        let ran = node.from_pod(0, &tcp(client, vip, ACK, b"data"));
        assert_eq!((sent_to(&ran), node.slow()), (server, slow));
    }
}

/// The server's packet came first and was taken for one of a connection between the pods.
#[test]
fn a_lost_reply_entry_is_taken_back_from_a_packet_without_a_connection() {
    let (node, answer) = opened(SERVER);
    let (client, vip, server) = (at(CLIENT, 40_000), at(VIP, PORT), at(SERVER, 8080));
    let forward = forward(&node);
    let maps = node.datapath.maps();
    let flow = maps.flow(&forward).unwrap().unwrap();
    maps.delete_flow(&flow.answer_key(&forward)).unwrap();
    answer(&node, &tcp(server, client, ACK, b"data"));
    let mut aged = maps.flow(&forward).unwrap().unwrap();
    aged.last_seen = aged.last_seen.wrapping_sub(QUIET);
    maps.put_flows(&[(forward, aged)]).unwrap();
    node.from_pod(0, &tcp(client, vip, ACK, b""));
    let ran = answer(&node, &tcp(server, client, ACK, b"data"));
    assert_eq!(sent_from(&ran), vip);
}

/// The client's interface is another one, its connections are the same: they keep their ports.
#[test]
fn a_link_that_was_made_anew_keeps_its_ports() {
    let (mut node, answer) = opened(SERVER);
    node.put_service(VIP, 2, UDP, &[(4, SERVER, 8080)]);
    let (client, vip, server) = (at(CLIENT, 40_000), at(VIP, PORT), at(SERVER, 8080));
    node.from_pod(0, &udp(client, vip, b"query"));
    let old = node.pods[0].ifindex;
    node.datapath.maps().delete_endpoint(old).unwrap();
    node.datapath.detach(old).unwrap();
    node.netns.ip(&["link", "del", "foilp0"]);
    node.add_pod(CLIENT);
    assert_ne!(node.pods[2].ifindex, old);
    for _ in 0..2 {
        let ran = node.from_pod(2, &tcp(client, vip, ACK, b"data"));
        assert_eq!((sent_from(&ran), sent_to(&ran)), (client, server));
        let ran = answer(&node, &tcp(server, client, ACK, b"data"));
        assert_eq!(sent_from(&ran), vip);
        let ran = node.from_pod(2, &udp(client, vip, b"query"));
        assert_eq!((sent_from(&ran), sent_to(&ran)), (client, server));
    }
    // Nothing is left of the old interface.
    let flows = node.datapath.maps().flows().unwrap();
    assert!(flows.iter().all(|(key, _)| key.from() != old), "{flows:?}");
}

/// A connection that had to take another source port has the same one after its entry was
/// evicted, also when its own port is free by then.
#[test]
fn a_moved_port_is_found_again() {
    let node = Node::new(&[CLIENT, SERVER]);
    for (protocol, first) in [(TCP, 10), (UDP, 20)] {
        node.put_service(VIP, first, protocol, &[(first, SERVER, 8080)]);
        node.put_service(OTHER_VIP, first + 1, protocol, &[(first + 1, SERVER, 8080)]);
    }
    let maps = node.datapath.maps();
    let (client, vip, other) = (at(CLIENT, 40_000), at(VIP, PORT), at(OTHER_VIP, PORT));
    type Make = fn(At, At) -> Vec<u8>;
    let kinds: [(u8, Make, Make); 2] = [
        (
            TCP,
            |from, to| tcp(from, to, SYN, b""),
            |from, to| tcp(from, to, ACK, b"data"),
        ),
        (
            UDP,
            |from, to| udp(from, to, b"1"),
            |from, to| udp(from, to, b"2"),
        ),
    ];
    for (protocol, open, next) in kinds {
        node.from_pod(0, &open(client, vip));
        let moved = sent_from(&node.from_pod(0, &open(client, other)));
        assert_ne!(moved, client);
        let key = key(node.pods[0].ifindex, protocol, client, other);
        for _ in 0..3 {
            maps.delete_flow(&key).unwrap();
            assert_eq!(sent_from(&node.from_pod(0, &next(client, other))), moved);
            maps.delete_flow(&key).unwrap();
            assert_eq!(sent_from(&node.from_pod(0, &open(client, other))), moved);
        }
    }
    // The connection through the first service ends, the second one goes on.
    let moved = sent_from(&node.from_pod(0, &tcp(client, other, ACK, b"data")));
    node.from_pod(0, &tcp(client, vip, RST, b""));
    let key = key(node.pods[0].ifindex, TCP, client, other);
    maps.delete_flow(&key).unwrap();
    let ran = node.from_pod(0, &tcp(client, other, ACK, b"data"));
    assert_eq!(sent_from(&ran), moved);
    let ran = node.from_pod(1, &tcp(at(SERVER, 8080), moved, ACK, b"data"));
    assert_eq!((sent_from(&ran), sent_to(&ran)), (other, client));
}

/// The ports that a connection may move to are all in use: by connections that are over, whose
/// tuples it may take, or by others, and then it has none.
#[test]
fn a_moved_port_may_be_of_a_connection_that_is_over() {
    for over in [true, false] {
        let (node, _) = opened(SERVER);
        node.put_service(OTHER_VIP, 2, TCP, &[(4, SERVER, 8080)]);
        let (client, other) = (at(CLIENT, 40_000), at(OTHER_VIP, PORT));
        let second = key(node.pods[0].ifindex, TCP, client, other);
        let start = hash(&second, u32::from(node.addr));
        let ports: Vec<u16> = (0..OWN.attempts)
            .map(|attempt| pick_port(OWN, start, attempt))
            .collect();
        for port in &ports {
            let taken = at(CLIENT, *port);
            assert_eq!(
                sent_from(&node.from_pod(0, &tcp(taken, other, SYN, b""))),
                taken
            );
            if over {
                node.from_pod(0, &tcp(taken, other, RST, b""));
            }
        }
        let ran = node.from_pod(0, &tcp(client, other, SYN, b""));
        if over {
            assert_eq!(sent_from(&ran), at(CLIENT, ports[0]));
            let answer = tcp(at(SERVER, 8080), sent_from(&ran), SYN | ACK, b"");
            let ran = node.from_pod(1, &answer);
            assert_eq!((sent_from(&ran), sent_to(&ran)), (other, client));
        } else {
            assert_eq!(ran.verdict, SHOT);
            let counted = node.counters();
            assert!(
                counted.contains(&dropped(Drop::NoPort, Hook::FromPod, 1)),
                "{counted:?}"
            );
        }
    }
}

/// Datagrams that only the server sends keep the tuple, as they keep the entry from the sweep.
#[test]
fn a_stream_of_answers_keeps_its_tuple() {
    let node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, UDP, &[(3, SERVER, 8080)]);
    node.put_service(OTHER_VIP, 2, UDP, &[(4, SERVER, 8080)]);
    let (client, vip, server) = (at(CLIENT, 40_000), at(VIP, PORT), at(SERVER, 8080));
    node.from_pod(0, &udp(client, vip, b"subscribe"));
    let forward = key(node.pods[0].ifindex, UDP, client, vip);
    let maps = node.datapath.maps();
    let mut flow = maps.flow(&forward).unwrap().unwrap();
    flow.last_seen = flow.last_seen.wrapping_sub(200_000);
    maps.put_flows(&[(forward, flow)]).unwrap();
    assert_eq!(node.sweep().removed, 0);
    let ran = node.from_pod(0, &udp(client, at(OTHER_VIP, PORT), b"query"));
    assert_ne!(sent_from(&ran), client);
    let ran = node.from_pod(1, &udp(server, client, b"news"));
    assert_eq!(sent_from(&ran), vip);
}

/// A connection from another node whose ports were used before takes the fast path like the
/// one before it.
#[test]
fn a_tuple_that_is_used_again_from_another_node() {
    let node = Node::new(&[SERVER]);
    node.netns
        .ip(&["route", "add", REMOTE_BLOCK, "via", OTHER_NODE]);
    let (client, server) = (at(REMOTE, 40_000), at(SERVER, 8080));
    let netdev = |flags| {
        let packet = tcp(client, server, flags, b"");
        let ran = node.run(Program::FromNetdev, node.uplink, &packet);
        assert_eq!(ran.verdict, REDIRECT);
    };
    let pod = |flags| {
        let ran = node.from_pod(0, &tcp(server, client, flags, b""));
        assert_eq!(ran.verdict, REDIRECT);
    };
    let key = key(SCOPE_NETDEV, TCP, client, server);
    for _ in 0..3 {
        netdev(SYN);
        pod(SYN | ACK);
        for _ in 0..2 {
            netdev(ACK);
            pod(ACK);
        }
        assert_eq!(node.states(&key), ["ESTAB", "ESTAB"]);
        let slow = node.slow();
        for _ in 0..5 {
            netdev(ACK);
            pod(ACK);
        }
        assert_eq!(node.slow(), slow);
        pod(FIN | ACK);
        netdev(FIN | ACK);
        pod(ACK);
        assert_eq!(node.states(&key), ["TIME-WAIT", "TIME-WAIT"]);
    }
}

/// A route that changed and is the same for this flow: both entries are stamped where they are,
/// and the next packet is fast.
#[test]
fn a_route_that_is_found_again_keeps_the_entries() {
    for server in [REMOTE, SERVER] {
        let (node, answer) = opened(server);
        let maps = node.datapath.maps();
        let (client, vip, server) = (at(CLIENT, 40_000), at(VIP, PORT), at(server, 8080));
        let forward = forward(&node);
        let back = maps.flow(&forward).unwrap().unwrap().answer_key(&forward);
        let route = |key| {
            let flow = maps.flow(key).unwrap().unwrap();
            (flow.action, flow.ifindex, flow.nexthop, flow.peer)
        };
        let send = || {
            for _ in 0..3 {
                node.from_pod(0, &tcp(client, vip, ACK, b"data"));
                answer(&node, &tcp(server, client, ACK, b"data"));
            }
        };
        let routes = [route(&forward), route(&back)];
        send();
        for _ in 0..3 {
            maps.bump_node_generation().unwrap();
            let slow = node.slow();
            send();
            assert_eq!(node.slow(), slow + 2);
        }
        assert_eq!([route(&forward), route(&back)], routes, "{server}");
        let packets = [forward, back].map(|key| maps.flow(&key).unwrap().unwrap().packets);
        assert_eq!(packets, [2 + 12, 1 + 12]);
    }
}

/// The search for a port leaves the connections alone whose ports it does not take.
#[test]
fn a_port_that_is_not_taken_keeps_its_connection() {
    let (node, _) = opened(SERVER);
    node.put_service(OTHER_VIP, 2, TCP, &[(4, SERVER, 8080)]);
    let (client, other) = (at(CLIENT, 40_000), at(OTHER_VIP, PORT));
    let second = key(node.pods[0].ifindex, TCP, client, other);
    let start = hash(&second, u32::from(node.addr));
    let [first, next] = [0, 1].map(|attempt| at(CLIENT, pick_port(OWN, start, attempt)));
    node.from_pod(0, &tcp(first, other, SYN, b""));
    let ran = node.from_pod(0, &tcp(client, other, SYN, b""));
    assert_eq!(sent_from(&ran), next);
    // The first port is of a connection that has ended, which another one may take.
    node.from_pod(0, &tcp(first, other, RST, b""));
    node.datapath.maps().delete_flow(&second).unwrap();
    let ran = node.from_pod(0, &tcp(client, other, ACK, b"data"));
    assert_eq!(sent_from(&ran), next);
    let ended = key(node.pods[0].ifindex, TCP, first, other);
    assert_eq!(node.states(&ended), ["CLOSED", "CLOSED"]);
}
