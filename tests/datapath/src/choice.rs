//! Which backend takes a new connection: weights, Maglev, least connections.

use crate::node::{Node, PORT, TCP, UDP, VIP};
use crate::packet::{At, REDIRECT, at, key, see, tcp, udp};
use agent_sys::bpf::Program;
use ebpf_common::conntrack::{FlowKey4, SCOPE_HOST, scope};
use ebpf_common::service::algorithm;
use ebpf_logic::parse::flag::{ACK, FIN, RST, SYN};
use ebpf_logic::service::{choose, hash};
use std::net::Ipv4Addr;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);

/// Backends on one pod, by number from 1; each has a port of its own, 8001 for the first.
fn backends(node: &Node, protocol: u8, weights: &[u16]) {
    for (id, weight) in (1u32..).zip(weights) {
        let backend = (id, SERVER, 8_000 + id as u16);
        node.put_backend(1, protocol, backend, *weight);
    }
    node.put_frontend(VIP, 1, protocol, 0);
}

/// The backend that a new connection from this port gets.
fn backend_of(node: &Node, port: u16) -> u32 {
    let out = node.from_pod(0, &udp(at(CLIENT, port), at(VIP, PORT), b"query"));
    assert_eq!(out.verdict, REDIRECT);
    u32::from(see(&out.packet).to.port() - 8_000)
}

/// Ten backends and 5,000 connections of one client: Pearson's chi-square is below the value
/// that a fair choice exceeds once in a thousand, by the kernel's own counters.
#[test]
fn the_spread_passes_a_chi_square_test() {
    // For nine degrees of freedom.
    const CRITICAL: f64 = 27.88;
    for algorithm in [algorithm::HASH, algorithm::MAGLEV] {
        let node = Node::quiet(&[CLIENT, SERVER]);
        backends(&node, UDP, &[1; 10]);
        let ids: Vec<u32> = (1..=10).collect();
        // As a Maglev table is: each as often as the others, give or take one.
        let table: Vec<u32> = ids.iter().cycle().take(1_021).copied().collect();
        let entries = if algorithm == algorithm::HASH {
            &ids
        } else {
            &table
        };
        node.put_choices(1, algorithm, entries);
        for port in 20_000..25_000 {
            backend_of(&node, port);
        }
        let mean = 500.0;
        let hits: Vec<u64> = ids.iter().map(|id| node.connections(*id)).collect();
        assert_eq!(hits.iter().sum::<u64>(), 5_000);
        let chi_square: f64 = hits
            .iter()
            .map(|hits| (*hits as f64 - mean).powi(2) / mean)
            .sum();
        assert!(chi_square < CRITICAL, "{algorithm}: {chi_square} {hits:?}");
    }
}

/// All nodes make the same choice with Maglev, whatever their address; with a hash they do not.
#[test]
fn maglev_chooses_alike_on_all_nodes() {
    let entries: Vec<u32> = [3, 1, 2, 4].into_iter().cycle().take(251).collect();
    let wanted = |port, seed: u32| {
        let flow = FlowKey4 {
            scope: scope(SCOPE_HOST, UDP),
            ..key(9, UDP, at(CLIENT, port), at(VIP, PORT))
        };
        entries[choose(hash(&flow, seed), 251) as usize - 1]
    };
    let node = Node::new(&[CLIENT, SERVER]);
    backends(&node, UDP, &[1; 4]);
    node.put_choices(1, algorithm::MAGLEV, &entries);
    let mut differ = 0;
    for port in 30_000..30_060 {
        assert_eq!(backend_of(&node, port), wanted(port, 0));
        differ += u32::from(wanted(port, 0) != wanted(port, u32::from(node.addr)));
    }
    assert!(differ > 0);
}

/// A backend has as many connections as it has entries.
#[test]
fn weights_are_entries() {
    let node = Node::quiet(&[CLIENT, SERVER]);
    backends(&node, UDP, &[1, 3]);
    node.put_choices(1, algorithm::HASH, &[1, 2, 2, 2]);
    for port in 20_000..22_000 {
        backend_of(&node, port);
    }
    let hits = [1, 2].map(|id| node.connections(id));
    assert_eq!(hits.iter().sum::<u64>(), 2_000);
    // 500 wanted; the standard deviation is 19.
    assert!(hits[0].abs_diff(500) < 80, "{hits:?}");
}

/// Another weight is the same backend: its connections go on, its counters stay.
#[test]
fn another_weight_keeps_connections() {
    let node = Node::new(&[CLIENT, SERVER]);
    backends(&node, TCP, &[1]);
    node.put_choices(1, algorithm::HASH, &[1]);
    let (client, vip) = (at(CLIENT, 40_000), at(VIP, PORT));
    node.from_pod(0, &tcp(client, vip, SYN, b""));
    node.put_backend(1, TCP, (1, SERVER, 8_001), 7);
    let out = node.from_pod(0, &tcp(client, vip, ACK, b"data"));
    assert_eq!((out.verdict, see(&out.packet).flags), (REDIRECT, ACK));
    assert_eq!(node.connections(1), 1);
}

fn open(node: &Node, id: u32) -> u64 {
    node.datapath.maps().open_connections(id).unwrap()
}

/// A connection is open from its first packet until its end, by whichever way that comes, and
/// counts once.
#[test]
fn open_connections_follow_their_ends() {
    let node = Node::new(&[CLIENT, SERVER]);
    backends(&node, TCP, &[1]);
    node.put_choices(1, algorithm::LEAST_CONNECTIONS, &[1]);
    let (vip, server) = (at(VIP, PORT), at(SERVER, 8_001));
    let begin = |client: At| {
        node.from_pod(0, &tcp(client, vip, SYN, b""));
        node.from_pod(1, &tcp(server, client, SYN | ACK, b""));
        node.from_pod(0, &tcp(client, vip, ACK, b""));
    };
    let [first, second, third] = [40_001, 40_002, 40_003].map(|port| at(CLIENT, port));
    for (client, wanted) in [(first, 1), (second, 2), (third, 3)] {
        begin(client);
        assert_eq!(open(&node, 1), wanted);
    }
    // FIN both ways, then late packets.
    node.from_pod(0, &tcp(first, vip, FIN | ACK, b""));
    assert_eq!(open(&node, 1), 3);
    node.from_pod(1, &tcp(server, first, FIN | ACK, b""));
    assert_eq!(open(&node, 1), 2);
    node.from_pod(0, &tcp(first, vip, ACK, b""));
    node.from_pod(0, &tcp(first, vip, RST, b""));
    assert_eq!(open(&node, 1), 2);
    // A reset that was forged: the connection goes on.
    node.from_pod(1, &tcp(server, second, RST, b""));
    assert_eq!(open(&node, 1), 1);
    node.from_pod(0, &tcp(second, vip, ACK, b"on"));
    node.from_pod(1, &tcp(server, second, ACK, b"on"));
    assert_eq!(open(&node, 1), 2);
    // The ports of one that has ended are used again.
    begin(first);
    assert_eq!((open(&node, 1), node.connections(1)), (3, 4));
}

/// Entries that are lost have no end that a packet shows: the sweep counts again.
#[test]
fn lost_entries_do_not_stay_open() {
    let node = Node::new(&[CLIENT, SERVER]);
    backends(&node, TCP, &[1, 1]);
    node.put_choices(1, algorithm::HASH, &[1, 2]);
    let clients: Vec<At> = (40_000..40_040).map(|port| at(CLIENT, port)).collect();
    for client in &clients {
        node.from_pod(0, &tcp(*client, at(VIP, PORT), SYN, b""));
    }
    let before = [open(&node, 1), open(&node, 2)];
    assert_eq!(before[0] + before[1], 40);
    assert!(before.iter().all(|open| *open > 0), "{before:?}");
    let maps = node.datapath.maps();
    let mut kept = [0, 0];
    for (number, client) in clients.iter().enumerate() {
        let forward = key(node.pods[0].ifindex, TCP, *client, at(VIP, PORT));
        let flow = maps.flow(&forward).unwrap().unwrap();
        if number % 4 == 0 {
            kept[flow.backend as usize - 1] += 1;
        } else {
            maps.delete_flow(&forward).unwrap();
        }
    }
    assert_eq!([open(&node, 1), open(&node, 2)], before);
    for _ in 0..2 {
        node.sweep();
        assert_eq!([open(&node, 1), open(&node, 2)], kept);
    }
    // From there packets count on.
    node.from_pod(0, &tcp(at(CLIENT, 50_000), at(VIP, PORT), SYN, b""));
    assert_eq!(open(&node, 1) + open(&node, 2), 11);
    // A number that is used again begins without connections.
    node.put_backend(1, TCP, (1, SERVER, 9_999), 1);
    node.sweep();
    assert_eq!(open(&node, 1), 0);
}

/// New connections go to backends with few open ones, in proportion to their weights, also after
/// connections of one of them have ended.
#[test]
fn least_connections_levels_the_load() {
    let node = Node::quiet(&[CLIENT, SERVER]);
    backends(&node, TCP, &[1, 1, 1, 2]);
    node.put_choices(1, algorithm::LEAST_CONNECTIONS, &[1, 2, 3, 4, 4]);
    let vip = at(VIP, PORT);
    let mut clients: Vec<Vec<At>> = vec![Vec::new(); 5];
    let mut connect = |ports: std::ops::Range<u16>| {
        for port in ports {
            let client = at(CLIENT, port);
            let out = node.from_pod(0, &tcp(client, vip, SYN, b""));
            let id = see(&out.packet).to.port() - 8_000;
            clients[usize::from(id)].push(client);
        }
        clients.clone()
    };
    let all = connect(20_000..21_000);
    for (id, share) in [(1, 200), (2, 200), (3, 200), (4, 400)] {
        assert!(
            open(&node, id).abs_diff(share) <= 20,
            "{id}: {}",
            open(&node, id)
        );
    }
    // All connections of the third are reset: it takes each of the next ones for which it is
    // one of the two candidates, 40 % of them, which is twice its share.
    for client in &all[3] {
        let server = at(SERVER, 8_003);
        let out = node.run(
            Program::FromPod,
            node.pods[1].ifindex,
            &tcp(server, *client, RST | ACK, b""),
        );
        assert_eq!(see(&out.packet).to, *client);
    }
    assert_eq!(open(&node, 3), 0);
    connect(30_000..30_200);
    assert!(open(&node, 3) >= 60, "{}", open(&node, 3));
}
