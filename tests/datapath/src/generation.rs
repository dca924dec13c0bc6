//! Changes of maps while packets are decided: each flow belongs to one of the two states.
//!
//! One thread changes, another one opens flows, as fast as both can. After a change no flow may
//! be left that goes on with the state before it.

use crate::balance::table;
use crate::live::Raise;
use crate::node::{Node, PORT, TCP, UDP, VIP};
use crate::packet::{SHOT, at, key, tcp, udp};
use agent_sys::bpf::{Program, Ran};
use agent_sys::maps::Counted;
use ebpf_common::conntrack::Flow4;
use ebpf_common::drop::Drop;
use ebpf_common::endpoint::Endpoint;
use ebpf_common::net::{Be16, Be32};
use ebpf_common::service::{ACTIVE, Backend, algorithm};
use ebpf_logic::parse::flag::RST;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 7);
/// On another node.
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);
/// Source ports that are used, round robin.
const PORTS: u32 = 50_000;

/// Calls `send` with one source port after the other, all the time except while `check` looks
/// at what a change has left: it is given the ports that were used since the last check.
fn race(
    node: &Node,
    rounds: u32,
    mut change: impl FnMut(u32),
    send: impl Fn(u16) + Sync,
    check: impl Fn(u32, &[u16]),
) {
    let used = Mutex::new(Vec::new());
    let wanted = AtomicBool::new(false);
    let stop = AtomicBool::new(false);
    let next = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        let (used, wanted, stop, next, send) = (&used, &wanted, &stop, &next, &send);
        let sender = move || {
            while !stop.load(Ordering::Relaxed) {
                if wanted.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                    continue;
                }
                let mut used = used.lock().expect("a check that succeeds");
                let port = 10_000 + (next.fetch_add(1, Ordering::Relaxed) % PORTS) as u16;
                send(port);
                used.push(port);
            }
        };
        scope.spawn(move || node.netns.enter(sender));
        for round in 0..rounds {
            change(round);
            wanted.store(true, Ordering::Relaxed);
            {
                let mut used = used.lock().expect("packets that are forwarded");
                check(round, &used);
                used.clear();
            }
            wanted.store(false, Ordering::Relaxed);
        }
    });
}

/// Runs `tc_from_pod` on a packet of the first pod; the thread is in the node's namespace.
fn from_pod(node: &Node, packet: &[u8]) -> Ran {
    let ifindex = node.pods[0].ifindex;
    let ran = node
        .datapath
        .test_run(Program::FromPod, packet, ifindex, 0, 1);
    ran.expect("test_run")
}

/// Changes a flow's destination in every round: `is_new` says whether a flow has the one of this
/// round. Each flow that was opened since the last round must have it after its next packet.
fn flows_follow(
    node: &Node,
    to: (Ipv4Addr, u16),
    change: impl FnMut(u32),
    is_new: impl Fn(u32, &Flow4) -> bool,
) {
    let maps = node.datapath.maps();
    let to = at(to.0, to.1);
    let packet = |port: u16| udp(at(CLIENT, port), to, b"query");
    race(
        node,
        1_500,
        change,
        |port| {
            from_pod(node, &packet(port));
        },
        |round, ports| {
            node.netns.enter(|| {
                for port in ports {
                    from_pod(node, &packet(*port));
                }
            });
            for port in ports {
                let key = key(node.pods[0].ifindex, UDP, at(CLIENT, *port), to);
                let flow = maps.flow(&key).unwrap().expect("an entry");
                assert!(is_new(round, &flow), "round {round}: {flow:?}");
                maps.delete_flow(&key).unwrap();
            }
        },
    );
}

/// A pod's link is made anew.
#[test]
fn a_link_that_is_made_anew_under_traffic() {
    let node = Node::quiet(&[CLIENT, SERVER]);
    let maps = node.datapath.maps();
    let before = maps.endpoints().unwrap();
    let before = before.iter().find(|one| one.addr == SERVER.into()).unwrap();
    let link = |round: u32| 900 + round % 2;
    flows_follow(
        &node,
        (SERVER, 8080),
        |round| {
            let anew = Endpoint {
                ifindex: link(round),
                ..*before
            };
            maps.put_endpoint(&anew, "test/pod-1").unwrap();
        },
        |round, flow| flow.ifindex == link(round),
    );
}

/// A backend's number is used again.
#[test]
fn a_backend_that_is_replaced_under_traffic() {
    let node = Node::quiet(&[CLIENT, SERVER, OTHER]);
    let maps = node.datapath.maps();
    node.put_service(VIP, 1, UDP, &[(3, SERVER, 8080)]);
    let place = |round: u32| [SERVER, OTHER][round as usize % 2];
    flows_follow(
        &node,
        (VIP, PORT),
        |round| {
            let anew = Backend {
                addr: place(round).into(),
                service_port: 1,
                port: Be16::new(8080),
                protocol: UDP,
                state: ACTIVE,
                weight: 1,
                ..Backend::default()
            };
            maps.put_backend(3, &anew, "test/backend-3").unwrap();
        },
        |round, flow| flow.dst == Be32::from(place(round)),
    );
}

/// Choice tables of one backend and of many are swapped all the time; both have a backend for
/// every connection, so none lacks one.
///
/// The packet is dropped after the choice, as there is no route, and stays what it was: so the
/// kernel can run the program on it again and again, and chooses each time.
#[test]
fn tables_that_are_swapped_under_traffic() {
    let node = Node::quiet(&[CLIENT]);
    node.netns
        .ip(&["route", "add", "unreachable", "10.244.2.0/24"]);
    let many: Vec<u32> = (1..=200).collect();
    let all: Vec<_> = many.iter().map(|id| (*id, REMOTE, 8080)).collect();
    node.put_service(VIP, 1, TCP, &all);
    let maps = node.datapath.maps();
    // Many swaps in one call: the kernel waits for its readers once.
    let swaps: Vec<_> = [vec![1], many]
        .into_iter()
        .map(|backends| table(1, algorithm::HASH, &backends))
        .cycle()
        .take(500)
        .collect();
    // A reset is not answered.
    let packet = tcp(at(CLIENT, 40_000), at(VIP, PORT), RST, b"");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        let (node, stop, packet) = (&node, &stop, &packet);
        let sender = move || {
            let ifindex = node.pods[0].ifindex;
            while !stop.load(Ordering::Relaxed) {
                let ran = node
                    .datapath
                    .test_run(Program::FromPod, packet, ifindex, 0, 10_000);
                let ran = ran.expect("test_run");
                assert_eq!((ran.verdict, &ran.packet), (SHOT, packet));
            }
        };
        scope.spawn(move || node.netns.enter(sender));
        for _ in 0..30 {
            maps.put_choices(&swaps).unwrap();
        }
    });
    let counted = node.counters();
    let packets = |reason| {
        let mut of = counted
            .iter()
            .filter(|(what, _, _)| *what == Counted::Dropped(reason));
        of.next().map_or(0, |(_, _, packets)| *packets)
    };
    assert!(packets(Drop::NoRoute) > 0, "{counted:?}");
    assert_eq!(packets(Drop::NoBackend), 0, "{counted:?}");
}
