//! Flows over time: expiry, eviction, packets in the middle of nowhere.

use crate::node::{Node, PORT, TCP, UDP, VIP};
use crate::packet::{REDIRECT, at, key, see, tcp, udp};
use ebpf_common::conntrack::state;
use ebpf_logic::parse::flag::{ACK, RST, SYN};
use std::net::Ipv4Addr;
use std::time::Duration;
use tests_harness::wait_for;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);

/// Ended flows go with the sweep, their traffic is added to their backend's; others stay.
#[test]
fn the_sweep_removes_what_is_over() {
    let node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    let vip = at(VIP, PORT);
    for port in [40_000, 40_001] {
        node.from_pod(0, &tcp(at(CLIENT, port), vip, SYN, b""));
        node.from_pod(0, &tcp(at(CLIENT, port), vip, ACK, b"data"));
    }
    node.from_pod(0, &tcp(at(CLIENT, 40_000), vip, RST, b""));
    let maps = node.datapath.maps();
    assert_eq!(maps.flows().unwrap().len(), 4);
    assert_eq!(node.datapath.sweep().unwrap(), 0);
    let removed = wait_for("closed flows to expire", Duration::from_secs(60), || {
        let removed = node.datapath.sweep().unwrap();
        (removed > 0)
            .then_some(removed)
            .ok_or_else(|| "none".to_owned())
    });
    // Both directions at once, as both are as old.
    let removed = removed + node.datapath.sweep().unwrap();
    assert_eq!((removed, maps.flows().unwrap().len()), (2, 2));
    let stats = maps.backend_stats(3).unwrap();
    assert_eq!(
        (stats.connections, stats.packets, stats.bytes),
        (2, 3, 40 + 44 + 40)
    );
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
}
