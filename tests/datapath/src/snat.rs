//! Source ports of the node, which connections from outside take on their way to other nodes.

use crate::balance::external;
use crate::node::{TCP, UDP, decided, dropped};
use crate::nodeport::{ANY, BALANCED, CLIENT, NODE_PORT, REMOTE, node};
use crate::packet::{REDIRECT, SHOT, at, key, see, tcp, udp};
use ebpf_common::conntrack::SCOPE_NETDEV;
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_logic::nat::{ATTEMPTS_LATER, SNAT, pick_port};
use ebpf_logic::parse::flag::{ACK, SYN};
use ebpf_logic::service::hash;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// One of the two entries is lost: the other one has all that it takes to write it again, with the
/// port that the connection has.
#[test]
fn an_entry_that_is_lost_is_written_again() {
    let node = node();
    node.put_external(ANY, TCP, external(1), &[(3, REMOTE, 8080)]);
    let (client, asked) = (at(CLIENT, 40_000), at(node.addr, NODE_PORT));
    let server = at(REMOTE, 8080);
    let taken = see(&node.netdev(&tcp(client, asked, SYN, b"")).packet).from;
    for (from, to, flags) in [(server, taken, SYN | ACK), (client, asked, ACK)] {
        node.netdev(&tcp(from, to, flags, b""));
    }
    let forward = key(SCOPE_NETDEV, TCP, client, asked);
    let maps = node.datapath.maps();
    let reverse = maps.flow(&forward).unwrap().unwrap().answer_key(&forward);
    for lost in [forward, reverse] {
        maps.delete_flow(&lost).unwrap();
        for _ in 0..2 {
            // What is left is quiet for longer than the look for the other direction takes.
            for (key, flow) in maps.flows().unwrap() {
                let mut flow = flow;
                flow.last_seen = flow.last_seen.wrapping_sub(1 << 13);
                maps.put_flows(&[(key, flow)]).unwrap();
            }
            let order = [
                (server, taken, (asked, client)),
                (client, asked, (taken, server)),
            ];
            let first = usize::from(lost == reverse);
            for (from, to, wanted) in [order[first], order[1 - first]] {
                let out = node.netdev(&tcp(from, to, ACK, b"x"));
                let found = see(&out.packet);
                assert_eq!(
                    (out.verdict, found.from, found.to),
                    (REDIRECT, wanted.0, wanted.1)
                );
            }
        }
        assert!(maps.flow(&forward).unwrap().is_some());
        assert!(maps.flow(&reverse).unwrap().is_some());
    }
}

/// All ports of the node towards one backend are in use: named, and usable again when
/// connections end.
#[test]
fn ports_that_are_used_up() {
    const CLIENTS: u16 = 6_000;
    let node = node();
    node.put_external(ANY, UDP, external(1), &[(3, REMOTE, 8080)]);
    node.put_external(at(BALANCED, 53), UDP, external(2), &[(4, REMOTE, 8081)]);
    let asked = at(node.addr, NODE_PORT);
    let (mut ports, mut refused) = (BTreeSet::new(), 0);
    for number in 0..CLIENTS {
        let out = node.netdev(&udp(at(CLIENT, 1_024 + number), asked, b""));
        if out.verdict == SHOT {
            refused += 1;
        } else {
            assert!(ports.insert(see(&out.packet).from.port()));
        }
    }
    assert!(
        ports.len() > 4_000 && ports.len() <= 4_523,
        "{}",
        ports.len()
    );
    assert_eq!(refused, usize::from(CLIENTS) - ports.len());
    let counters = node.counters();
    for one in [
        decided(Hook::FromNetdev, ports.len() as u64),
        dropped(Drop::SnatPorts, Hook::FromNetdev, refused as u64),
    ] {
        assert!(counters.contains(&one), "{counters:?}");
    }
    // Another backend's are free.
    let out = node.netdev(&udp(at(CLIENT, 1_024), at(BALANCED, 53), b""));
    assert_eq!(out.verdict, REDIRECT);
    // They were questions: after half a minute their ports are free.
    let mut flows = node.datapath.maps().flows().unwrap();
    for (_, flow) in &mut flows {
        flow.last_seen = flow.last_seen.wrapping_sub(31 * ticks_per_second());
    }
    node.datapath.maps().put_flows(&flows).unwrap();
    for number in 0..100 {
        let out = node.netdev(&udp(at(CLIENT, 60_000 + number), asked, b""));
        assert_eq!(out.verdict, REDIRECT);
    }
}

fn ticks_per_second() -> u32 {
    let coarse = nix::time::ClockId::CLOCK_MONOTONIC_COARSE;
    let tick = nix::time::clock_getres(coarse).expect("resolution");
    let per_second = 1_000_000_000 / tick.tv_nsec();
    u32::try_from(per_second).expect("ticks")
}

/// A packet in the middle of a connection that has no entry is not worth a long search.
#[test]
fn connections_that_began_earlier_are_not_searched_for_long() {
    let node = node();
    node.put_external(ANY, TCP, external(1), &[(3, REMOTE, 8080)]);
    let asked = at(node.addr, NODE_PORT);
    // All ports that such a connection may have had are another's.
    let client = at(CLIENT, 40_000);
    let key = key(SCOPE_NETDEV, TCP, client, asked);
    let start = hash(&key, u32::from(node.addr));
    let first = Vec::from_iter((0..ATTEMPTS_LATER).map(|n| pick_port(SNAT, start, n)));
    let mut held = BTreeSet::new();
    let mut number = 0;
    while held.len() < first.len() {
        number += 1;
        let other = at(
            Ipv4Addr::from_bits(0xcb00_7200 + number / 60_000),
            (number % 60_000) as u16 + 1,
        );
        let own = crate::packet::key(SCOPE_NETDEV, TCP, other, asked);
        let port = pick_port(SNAT, hash(&own, u32::from(node.addr)), 0);
        if first.contains(&port) && held.insert(port) {
            let out = node.netdev(&tcp(other, asked, SYN, b""));
            assert_eq!(see(&out.packet).from.port(), port);
        }
    }
    assert_eq!(node.netdev(&tcp(client, asked, ACK, b"")).verdict, SHOT);
    let full = dropped(Drop::SnatPorts, Hook::FromNetdev, 1);
    assert!(node.counters().contains(&full), "{:?}", node.counters());
    // One that begins is given another port.
    assert_eq!(node.netdev(&tcp(client, asked, SYN, b"")).verdict, REDIRECT);
}
