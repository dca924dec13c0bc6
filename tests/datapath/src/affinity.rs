//! Session affinity: connections of one client go to one backend.

use crate::node::{Node, OTHER_VIP, PORT, TCP, UDP, VIP};
use crate::packet::{REDIRECT, SHOT, at, see, tcp, udp};
use agent_sys::bpf::{Datapath, Program};
use ebpf_common::service::{Affinity, AffinityKey, TERMINATING, algorithm};
use ebpf_logic::parse::flag::SYN;
use std::net::Ipv4Addr;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
const COUNT: u32 = 8;
/// Ten minutes: no test takes so long.
const LONG: u32 = 600;

/// A service port on `vip` with eight backends, of which the first has the number `from`.
fn put(node: &Node, vip: Ipv4Addr, service_port: u32, from: u32, affinity: u32) {
    let ids: Vec<u32> = (from..from + COUNT).collect();
    for id in &ids {
        let backend = (*id, SERVER, 8_000 + *id as u16);
        node.put_backend(service_port, UDP, backend, 1);
    }
    node.put_choices(service_port, algorithm::HASH, &ids);
    node.put_frontend(vip, service_port, UDP, affinity);
}

/// The backends that 32 connections of a pod to `vip` get, each once.
fn chosen(node: &Node, pod: usize, vip: Ipv4Addr, first_port: u16) -> Vec<u16> {
    let client = node.pods[pod].addr;
    let mut all: Vec<u16> = (first_port..first_port + 32)
        .map(|port| {
            let out = node.from_pod(pod, &udp(at(client, port), at(vip, PORT), b"query"));
            assert_eq!(out.verdict, REDIRECT);
            see(&out.packet).to.port() - 8_000
        })
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn entries(node: &Node) -> Vec<(AffinityKey, Affinity)> {
    node.datapath.maps().affinities().unwrap()
}

#[test]
fn a_client_keeps_its_backend_per_service_port() {
    let clients: Vec<Ipv4Addr> = (10..20).map(|n| Ipv4Addr::new(10, 244, 1, n)).collect();
    let mut pods = vec![CLIENT, SERVER];
    pods.extend(&clients);
    let node = Node::quiet(&pods);
    put(&node, VIP, 1, 1, 0);
    assert!(chosen(&node, 0, VIP, 40_000).len() > 4, "without affinity");
    assert!(entries(&node).is_empty());
    put(&node, OTHER_VIP, 2, 100, LONG);
    let first = chosen(&node, 0, OTHER_VIP, 41_000);
    assert_eq!(first.len(), 1);
    // Other clients have other backends, and each one.
    let mut others = first.clone();
    for pod in 2..pods.len() {
        let backends = chosen(&node, pod, OTHER_VIP, 41_000);
        assert_eq!(backends.len(), 1, "{pod}");
        others.extend(backends);
    }
    others.sort_unstable();
    others.dedup();
    assert!(others.len() > 2, "{others:?}");
    let entries = entries(&node);
    assert_eq!(entries.len(), 1 + clients.len());
    let (_, own) = entries
        .iter()
        .find(|(key, _)| key.client == CLIENT.into() && key.service_port == 2)
        .expect("an entry of the client");
    assert_eq!(own.backend, u32::from(first[0]));
}

/// More backends come: the client stays, which by hash alone it would not.
#[test]
fn a_client_keeps_its_backend_when_others_come() {
    let node = Node::quiet(&[CLIENT, SERVER]);
    put(&node, VIP, 1, 1, LONG);
    let before = chosen(&node, 0, VIP, 40_000);
    let last = u32::from(before[0]);
    // Its number is not in the table, though it takes connections still.
    let others: Vec<u32> = (1..=COUNT).filter(|id| *id != last).collect();
    node.put_choices(1, algorithm::HASH, &others);
    assert_eq!(chosen(&node, 0, VIP, 41_000), before);
}

/// The maps outlive the agent that made them.
#[test]
fn affinity_survives_the_agent() {
    let node = Node::quiet(&[CLIENT, SERVER]);
    put(&node, VIP, 1, 1, LONG);
    let before = chosen(&node, 0, VIP, 40_000);
    let last = u32::from(before[0]);
    let others: Vec<u32> = (1..=COUNT).filter(|id| *id != last).collect();
    node.put_choices(1, algorithm::HASH, &others);
    let config = node.config();
    let again = node.netns.enter(|| Datapath::open(&config).unwrap());
    let packet = udp(at(CLIENT, 42_000), at(VIP, PORT), b"query");
    let out = node.netns.enter(|| {
        again
            .test_run(Program::FromPod, &packet, node.pods[0].ifindex, 0, 1)
            .unwrap()
    });
    assert_eq!(see(&out.packet).to.port() - 8_000, before[0]);
}

/// A backend that is gone, takes no new connections, or stands for another pod by now is not
/// kept: the client is given another one, and keeps that.
#[test]
fn a_backend_that_ends_is_not_kept() {
    type End = fn(&Node, u32);
    let terminating: End = |node, id| {
        let maps = node.datapath.maps();
        let all = maps.backends().unwrap();
        let (_, mut backend) = all.into_iter().find(|(one, _)| *one == id).unwrap();
        backend.state = TERMINATING;
        maps.put_backend(id, &backend, "test/backend").unwrap();
    };
    let removed: End = |node, id| node.datapath.maps().delete_backend(id).unwrap();
    let reused: End = |node, id| node.put_backend(1, UDP, (id, SERVER, 9_999), 1);
    let of_another_service: End = |node, id| node.put_backend(2, UDP, (id, SERVER, 9_999), 1);
    for end in [terminating, removed, reused, of_another_service] {
        let node = Node::quiet(&[CLIENT, SERVER]);
        put(&node, VIP, 1, 1, LONG);
        let before = chosen(&node, 0, VIP, 40_000);
        let last = u32::from(before[0]);
        let others: Vec<u32> = (1..=COUNT).filter(|id| *id != last).collect();
        node.put_choices(1, algorithm::HASH, &others);
        end(&node, last);
        let after = chosen(&node, 0, VIP, 41_000);
        assert_eq!(after.len(), 1);
        assert_ne!(after, before);
        assert!(others.contains(&u32::from(after[0])));
        assert_eq!(entries(&node).len(), 1);
    }
}

/// Once its time is over, a client is given a backend as if it were new.
#[test]
fn affinity_expires() {
    let node = Node::quiet(&[CLIENT, SERVER]);
    put(&node, VIP, 1, 1, LONG);
    let before = chosen(&node, 0, VIP, 40_000);
    let last = u32::from(before[0]);
    let others: Vec<u32> = (1..=COUNT).filter(|id| *id != last).collect();
    node.put_choices(1, algorithm::HASH, &others);
    let maps = node.datapath.maps();
    let (key, given) = entries(&node)[0];
    let two_seconds_ago = Affinity {
        last_used: given.last_used - 2_000_000_000,
        ..given
    };
    maps.put_affinity(&key, &two_seconds_ago).unwrap();
    assert_eq!(chosen(&node, 0, VIP, 41_000), before);
    // That was a use of it.
    assert!(entries(&node)[0].1.last_used >= given.last_used);
    maps.put_affinity(&key, &two_seconds_ago).unwrap();
    node.put_frontend(VIP, 1, UDP, 2);
    assert_ne!(chosen(&node, 0, VIP, 42_000), before);
}

/// A service without backends refuses its clients, and remembers nothing about them.
#[test]
fn without_backends_nothing_is_remembered() {
    let node = Node::quiet(&[CLIENT]);
    node.put_choices(1, algorithm::HASH, &[]);
    node.put_frontend(VIP, 1, TCP, LONG);
    let out = node.from_pod(0, &tcp(at(CLIENT, 40_000), at(VIP, PORT), SYN, b""));
    assert_ne!(out.verdict, SHOT);
    assert!(entries(&node).is_empty());
}

/// First packets of one client on two CPUs at once, with a choice that depends on the load: all
/// connections go to one backend.
#[test]
fn first_connections_at_once_have_one_backend() {
    let node = Node::quiet(&[CLIENT, SERVER]);
    let ids: Vec<u32> = (1..=COUNT).collect();
    for round in 0..100u32 {
        let service_port = 1 + round;
        let vip = Ipv4Addr::from(u32::from(VIP) + round);
        put(&node, vip, service_port, 1 + round * COUNT, LONG);
        let ids: Vec<u32> = ids.iter().map(|id| id + round * COUNT).collect();
        node.put_choices(service_port, algorithm::LEAST_CONNECTIONS, &ids);
        let begin = std::sync::Barrier::new(2);
        let chosen = std::thread::scope(|scope| {
            let run = |first_port: u16| {
                let (node, begin) = (&node, &begin);
                scope.spawn(move || {
                    begin.wait();
                    chosen(node, 0, vip, first_port)
                })
            };
            let both = [run(40_000), run(50_000)];
            both.map(|one| one.join().unwrap())
        });
        assert_eq!(chosen[0], chosen[1]);
        assert_eq!(chosen[0].len(), 1);
    }
}
