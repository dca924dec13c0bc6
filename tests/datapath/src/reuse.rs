//! The memory of an entry is given to another flow while a packet is decided by it.

use crate::live::Raise;
use crate::node::{Node, OTHER_VIP, PORT, TCP, VIP};
use crate::packet::{REDIRECT, at, key, see, tcp};
use agent_sys::bpf::Program;
use ebpf_common::conntrack::{Flow4, FlowKey4};
use ebpf_logic::parse::flag::{ACK, FIN, SYN};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
/// On another node.
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 10);
/// Packets that are decided meanwhile.
const PACKETS: u32 = 30_000;

/// Two flows exchange the memory of their entries all the time, as the kernel replaces an entry by
/// writing the new one to what it has freed last. A packet on the slow path is never translated as
/// the other flow's.
#[test]
fn an_entry_that_is_given_away_is_not_taken_for_the_own_one() {
    let node = Node::new(&[CLIENT]);
    node.netns
        .ip(&["route", "add", "10.244.2.0/24", "via", "172.31.0.12"]);
    node.put_service(VIP, 1, TCP, &[(3, REMOTE, 8080)]);
    node.put_service(OTHER_VIP, 2, TCP, &[(4, OTHER, 9090)]);
    let maps = node.datapath.maps();
    let open = |vip, port, server: SocketAddrV4| -> (FlowKey4, Flow4) {
        let (client, vip) = (at(CLIENT, port), at(vip, PORT));
        node.from_pod(0, &tcp(client, vip, SYN, b""));
        let answer = tcp(server, client, SYN | ACK, b"");
        node.run(Program::FromNetdev, node.uplink, &answer);
        node.from_pod(0, &tcp(client, vip, ACK, b""));
        let key = key(node.pods[0].ifindex, TCP, client, vip);
        assert_eq!(node.states(&key), ["ESTAB", "ESTAB"]);
        (key, maps.flow(&key).expect("flow").expect("an entry"))
    };
    let server = at(REMOTE, 8080);
    let own = open(VIP, 40_000, server);
    let other = open(OTHER_VIP, 40_001, at(OTHER, 9090));
    // Each packet finds the entry stale, and looks for its route.
    maps.bump_node_generation().expect("bump");
    let exchange = [own, other].repeat(128);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                maps.put_flows(&exchange).expect("put");
            }
        });
        // FIN is never of the fast path.
        let packet = tcp(at(CLIENT, 40_000), at(VIP, PORT), FIN | ACK, b"");
        for number in 0..PACKETS {
            let ran = node.from_pod(0, &packet);
            let to = see(&ran.packet).to;
            assert_eq!((ran.verdict, to), (REDIRECT, server), "packet {number}");
        }
    });
}
