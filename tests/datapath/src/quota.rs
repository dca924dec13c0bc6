//! How many flow entries a pod may have, and what others have of it when one has too many.

use crate::balance::external;
use crate::node::{Node, PORT, TCP, UDP, VIP, dropped};
use crate::packet::{NEXT, REDIRECT, SHOT, at, key, see, tcp, udp};
use agent_sys::bpf::{Datapath, Program};
use ebpf_common::conntrack::{ALL_FLOWS, Flow4, FlowKey4, state};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::Be32;
use ebpf_logic::parse::flag::{ACK, RST, SYN};
use std::net::Ipv4Addr;
use tests_harness::binary;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
const HOSTILE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 7);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Indices of the pods.
const CLIENT_POD: usize = 0;
const SERVER_POD: usize = 1;
const HOSTILE_POD: usize = 2;
/// Entries of the flow map.
const ENTRIES: u32 = 4096;

/// A node with a small map and a service, and the key of a connection of the client to it.
fn opened() -> (Node, FlowKey4) {
    let pods = [CLIENT, SERVER, HOSTILE];
    let node = Node::measured(&pods, &binary("hydrofoil.bpf.o"), ENTRIES);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    // Quotas are in force while the sweep runs.
    node.sweep();
    let client = at(CLIENT, 40_000);
    let server = (SERVER_POD, at(SERVER, 8080));
    node.open((CLIENT_POD, client), at(VIP, PORT), server);
    let key = key(node.pods[CLIENT_POD].ifindex, TCP, client, at(VIP, PORT));
    assert_eq!(node.states(&key), ["ESTAB", "ESTAB"]);
    (node, key)
}

/// Entries that are counted for a pod, and for all.
fn counted(node: &Node, pod: usize) -> (u64, u64) {
    let maps = node.datapath.maps();
    let usage = |id| maps.flow_usage(id).expect("usage").entries();
    (usage(node.pods[pod].id.into()), usage(ALL_FLOWS))
}

fn entries(node: &Node) -> Vec<(FlowKey4, Flow4)> {
    node.datapath.maps().flows().expect("flows")
}

/// Opens connections of the hostile pod until one is refused; returns how many were not.
fn flood(node: &Node) -> u16 {
    let vip = at(VIP, PORT);
    for opened in 0..ENTRIES as u16 {
        let syn = tcp(at(HOSTILE, 10_000 + opened), vip, SYN, b"");
        match node.from_pod(HOSTILE_POD, &syn).verdict {
            REDIRECT => {}
            SHOT => return opened,
            other => panic!("{other}"),
        }
    }
    panic!("nothing was refused");
}

/// A pod that opens connection after connection has half of the map, and is refused above that.
/// Connections of other pods stay, those of its own too, and others open new ones.
#[test]
fn a_flood_takes_half_and_nothing_of_others() {
    let (node, first) = opened();
    let before = entries(&node);
    let opened = flood(&node);
    let share = (ENTRIES as u16 - 4) / 4;
    assert!(opened.abs_diff(share) <= 1, "{opened} of {share}");
    let (used, all) = counted(&node, HOSTILE_POD);
    assert_eq!(used, 2 * u64::from(opened));
    assert_eq!(all, used + 2);
    assert_eq!(entries(&node).len() as u64, all);
    let vip = at(VIP, PORT);
    for port in [20_000, 20_001] {
        let ran = node.from_pod(HOSTILE_POD, &tcp(at(HOSTILE, port), vip, SYN, b""));
        assert_eq!(ran.verdict, SHOT);
    }
    let refused = dropped(Drop::FlowQuota, Hook::FromPod, 3);
    let drops = node.counters();
    assert!(drops.contains(&refused), "{drops:?}");
    // All that was there is there.
    let after = entries(&node);
    for (key, _) in before {
        assert!(after.iter().any(|(other, _)| *other == key), "{key:?}");
    }
    node.put_service(VIP, 1, TCP, &[(4, SERVER, 9090)]);
    let ran = node.from_pod(CLIENT_POD, &tcp(at(CLIENT, 40_000), vip, ACK, b"data"));
    assert_eq!(see(&ran.packet).to, at(SERVER, 8080));
    assert_eq!(node.states(&first), ["ESTAB", "ESTAB"]);
    // A connection of the pod itself goes on, and one that it opened is answered.
    let answer = tcp(at(SERVER, 8080), at(HOSTILE, 10_000), SYN | ACK, b"");
    let ran = node.from_pod(SERVER_POD, &answer);
    assert_eq!((ran.verdict, see(&ran.packet).from), (REDIRECT, vip));
    let ran = node.from_pod(HOSTILE_POD, &tcp(at(HOSTILE, 10_000), vip, ACK, b""));
    assert_eq!(see(&ran.packet).to, at(SERVER, 8080));
    for port in 30_000..30_300 {
        let server = (SERVER_POD, at(SERVER, 9090));
        node.open((CLIENT_POD, at(CLIENT, port)), vip, server);
    }
}

/// What goes by the host's stack unchanged needs no entry: a pod without any left is still
/// reached by probes, and asks outside.
#[test]
fn what_the_stack_forwards_needs_no_entry() {
    let (node, _) = opened();
    flood(&node);
    let there = entries(&node).len();
    let (pod, prober) = (at(HOSTILE, 8080), at(node.addr, 50_000));
    let ifindex = node.pods[HOSTILE_POD].ifindex;
    for (out, back) in [
        (tcp(prober, pod, SYN, b""), tcp(pod, prober, SYN | ACK, b"")),
        (tcp(prober, pod, ACK, b""), tcp(pod, prober, ACK, b"ok")),
    ] {
        let ran = node.run(Program::ToPod, ifindex, &out);
        assert_eq!((ran.verdict, &ran.packet), (NEXT, &out));
        let ran = node.from_pod(HOSTILE_POD, &back);
        assert_eq!((ran.verdict, &ran.packet), (NEXT, &back));
    }
    let query = udp(at(HOSTILE, 9_000), at(OUTSIDE, 53), b"query");
    let ran = node.from_pod(HOSTILE_POD, &query);
    assert_eq!((ran.verdict, &ran.packet), (NEXT, &query));
    // To another pod the answers would be counted for that one.
    let direct = udp(at(HOSTILE, 9_000), at(CLIENT, 53), b"query");
    assert_eq!(node.from_pod(HOSTILE_POD, &direct).verdict, SHOT);
    assert_eq!(entries(&node).len(), there);
}

/// Without an agent no connection expires: there is no quota then, and new connections evict the
/// least recently used entries.
#[test]
fn without_the_sweep_a_full_map_makes_room() {
    let node = Node::measured(&[CLIENT, SERVER], &binary("hydrofoil.bpf.o"), ENTRIES);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    let vip = at(VIP, PORT);
    for number in 0..2 * ENTRIES as u16 {
        let syn = tcp(at(CLIENT, 10_000 + number), vip, SYN, b"");
        let ran = node.from_pod(CLIENT_POD, &syn);
        assert_eq!(ran.verdict, REDIRECT, "connection {number}");
    }
    // The agent is back: counts are right, and in force, at the end of a pass.
    let sent = tcp(at(CLIENT, 9_000), vip, SYN, b"");
    node.sweep();
    let (used, all) = counted(&node, CLIENT_POD);
    assert_eq!((used, all), (all, entries(&node).len() as u64));
    assert_eq!(node.from_pod(CLIENT_POD, &sent).verdict, SHOT);
}

/// Connections from outside that the stack forwards to a pod leave it entries for its own.
#[test]
fn a_flood_from_outside_leaves_a_pod_its_own_connections() {
    let (node, _) = opened();
    let ifindex = node.pods[HOSTILE_POD].ifindex;
    for number in 0..ENTRIES as u16 {
        let syn = tcp(at(OUTSIDE, 10_000 + number), at(HOSTILE, 80), SYN, b"");
        let ran = node.run(Program::ToPod, ifindex, &syn);
        assert_eq!((ran.verdict, &ran.packet), (NEXT, &syn));
    }
    let (used, all) = counted(&node, HOSTILE_POD);
    assert!(used * 4 <= u64::from(ENTRIES) - all + 8, "{used} of {all}");
    let syn = tcp(at(HOSTILE, 30_000), at(VIP, PORT), SYN, b"");
    assert_eq!(node.from_pod(HOSTILE_POD, &syn).verdict, REDIRECT);
}

/// So do those through a node port.
#[test]
fn a_flood_at_a_node_port_leaves_a_pod_its_own_connections() {
    let (node, _) = opened();
    let any = at(Ipv4Addr::UNSPECIFIED, 30_080);
    node.put_external(any, TCP, external(9), &[(9, HOSTILE, 8080)]);
    let mut refused = 0;
    for number in 0..ENTRIES as u16 {
        let client = at(Ipv4Addr::new(203, 0, 113, 9), 10_000 + number);
        let syn = tcp(client, at(node.addr, 30_080), SYN, b"");
        let ran = node.run(Program::FromNetdev, node.uplink, &syn);
        refused += u64::from(ran.verdict == SHOT);
    }
    assert!(refused > 0);
    let quota = dropped(Drop::FlowQuota, Hook::FromNetdev, refused);
    assert!(node.counters().contains(&quota), "{:?}", node.counters());
    let syn = tcp(at(HOSTILE, 30_000), at(VIP, PORT), SYN, b"");
    assert_eq!(node.from_pod(HOSTILE_POD, &syn).verdict, REDIRECT);
}

/// What was refused is accepted again when connections of the pod have ended.
#[test]
fn ended_connections_give_their_entries_back() {
    let (node, _) = opened();
    let opened = flood(&node);
    let maps = node.datapath.maps();
    let pod = node.pods[HOSTILE_POD].ifindex;
    for port in 10_000..10_100 {
        let (client, vip) = (at(HOSTILE, port), at(VIP, PORT));
        node.from_pod(HOSTILE_POD, &tcp(client, vip, RST, b""));
        node.change(&key(pod, TCP, client, vip), |flow| {
            assert_eq!(flow.state, state::CLOSED);
            flow.last_seen = flow.last_seen.wrapping_sub(31_000);
        });
    }
    assert_eq!(node.sweep().removed, 200);
    let (used, all) = counted(&node, HOSTILE_POD);
    assert_eq!(used, 2 * u64::from(opened) - 200);
    assert_eq!(entries(&node).len() as u64, all);
    let syn = tcp(at(HOSTILE, 20_000), at(VIP, PORT), SYN, b"");
    assert_eq!(node.from_pod(HOSTILE_POD, &syn).verdict, REDIRECT);
    let near = maps.flows_nearly_used().expect("shares");
    let near: Vec<_> = near.iter().map(|near| (near.family, near.owner)).collect();
    assert_eq!(near, [("IPv4", Some(node.pods[HOSTILE_POD].id))]);
}

/// The entries of a pod that is removed are removed, and counted for no other pod with its id.
#[test]
fn the_entries_of_a_removed_pod_are_removed() {
    let (node, first) = opened();
    let opened = flood(&node);
    let pod = &node.pods[HOSTILE_POD];
    let maps = node.datapath.maps();
    maps.delete_endpoint(pod.ifindex).unwrap();
    assert_eq!(counted(&node, HOSTILE_POD).0, 0);
    assert_eq!(node.sweep().removed, 2 * u32::from(opened));
    assert_eq!(counted(&node, HOSTILE_POD), (0, 2));
    assert_eq!(entries(&node).len(), 2);
    assert_eq!(node.states(&first), ["ESTAB", "ESTAB"]);
}

/// Counts outlive the agent, and an error in them does not outlive a pass of the sweep.
#[test]
fn counts_are_kept_and_put_right() {
    let (mut node, first) = opened();
    flood(&node);
    let before = counted(&node, HOSTILE_POD);
    let config = node.config();
    node.datapath = node.netns.enter(|| Datapath::open(&config).expect("open"));
    assert_eq!(counted(&node, HOSTILE_POD), before);
    node.sweep();
    assert_eq!(counted(&node, HOSTILE_POD), before);
    // Removed, and made, without being counted.
    let maps = node.datapath.maps();
    let like = maps.flow(&first).unwrap().unwrap();
    let hostile = node.pods[HOSTILE_POD].ifindex;
    let keys = entries(&node).into_iter().map(|(key, _)| key);
    for key in keys.filter(|key| key.from() == hostile) {
        maps.delete_flow(&key).unwrap();
    }
    for number in 0..5 {
        let src = Be32::new(0x0b00_0000 + number);
        maps.put_flows(&[(FlowKey4 { src, ..first }, like)])
            .unwrap();
    }
    assert_eq!(counted(&node, HOSTILE_POD), before);
    node.sweep();
    assert_eq!(counted(&node, HOSTILE_POD).0, before.0 / 2);
    assert_eq!(counted(&node, CLIENT_POD), (7, entries(&node).len() as u64));
}

/// From the network and from the node's own stack it is the receiver whose entries are counted.
#[test]
fn what_comes_from_outside_counts_for_its_receiver() {
    let (node, _) = opened();
    let remote = at(Ipv4Addr::new(10, 244, 2, 9), 40_000);
    let to = at(HOSTILE, 8080);
    node.run(Program::FromNetdev, node.uplink, &tcp(remote, to, SYN, b""));
    assert_eq!(counted(&node, HOSTILE_POD), (1, 3));
    let ifindex = node.pods[HOSTILE_POD].ifindex;
    let prober = at(node.addr, 50_000);
    node.run(Program::ToPod, ifindex, &tcp(prober, to, SYN, b""));
    assert_eq!(counted(&node, HOSTILE_POD), (3, 5));
    node.put_service(VIP, 2, UDP, &[(9, HOSTILE, 53)]);
    let query = udp(at(node.addr, 50_001), at(VIP, PORT), b"query");
    let ran = node.run(Program::ToNetdev, node.service, &query);
    assert_eq!(ran.verdict, REDIRECT);
    assert_eq!(counted(&node, HOSTILE_POD), (5, 7));
    node.sweep();
    assert_eq!(counted(&node, HOSTILE_POD), (5, 7));
}
