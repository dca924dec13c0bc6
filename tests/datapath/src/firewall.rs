//! Nodes whose firewall drops what netfilter's connection tracking calls INVALID, as firewalls
//! do: packets of connections of which the host's stack has seen one direction only.

use crate::live::{Raise, bulk, cluster, datagrams, serve_tcp, serve_udp};
use crate::node::{PORT, TCP, UDP};
use std::net::Ipv4Addr;
use std::sync::atomic::AtomicBool;
use tests_harness::{NetNs, process};

/// A pod of the first node, which has two.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
/// A pod of the second node.
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);
/// A machine that is in no cluster.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
/// Services in front of pods of each node, of the first node's host network, of the machine
/// outside.
const SERVICES: [(Ipv4Addr, Ipv4Addr); 4] = [
    (Ipv4Addr::new(10, 96, 0, 7), SERVER),
    (Ipv4Addr::new(10, 96, 0, 8), REMOTE),
    (Ipv4Addr::new(10, 96, 0, 9), Ipv4Addr::new(172, 31, 0, 11)),
    (Ipv4Addr::new(10, 96, 0, 10), OUTSIDE),
];

fn drop_invalid(netns: &NetNs) {
    for chain in ["INPUT", "FORWARD", "OUTPUT"] {
        let mut iptables = netns.command("iptables");
        iptables.args(["-A", chain, "-m", "conntrack", "--ctstate", "INVALID"]);
        process::run(iptables.args(["-j", "DROP"])).success();
    }
}

/// Everybody reaches every pod, node and service, and the machine outside reaches the pods.
#[test]
fn a_stateful_firewall_sees_whole_connections_or_nothing() {
    let cluster = cluster();
    let [first, second] = &cluster.nodes;
    let wire = &cluster.wire;
    wire.ip(&["addr", "add", &format!("{OUTSIDE}/24"), "dev", "foilbr"]);
    for (block, node) in [("10.244.1.0/24", first), ("10.244.2.0/24", second)] {
        wire.ip(&["route", "add", block, "via", &node.addr.to_string()]);
        drop_invalid(&node.netns);
        for (number, (vip, backend)) in (1..).zip(SERVICES) {
            node.put_service(vip, number, TCP, &[(number, backend, 8080)]);
            node.put_service(vip, 10 + number, UDP, &[(10 + number, backend, 8080)]);
        }
    }
    let services = SERVICES.map(|(vip, _)| (vip, PORT));
    let direct = [SERVER, REMOTE, first.addr, OUTSIDE].map(|addr| (addr, 8080));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        for netns in [
            &first.pods[1].netns,
            &second.pods[0].netns,
            &first.netns,
            wire,
        ] {
            serve_tcp(scope, netns, &stop);
            serve_udp(scope, netns, &stop);
        }
        let inside = [&services[..], &direct[..]].concat();
        for (who, netns, targets) in [
            ("pod", &first.pods[0].netns, &inside[..]),
            ("node", &first.netns, &inside[..]),
            ("server itself", &first.pods[1].netns, &inside[..]),
            ("pod of the other node", &second.pods[0].netns, &inside[..]),
            ("other node", &second.netns, &inside[..]),
            ("outside", wire, &direct[..2]),
        ] {
            for to in targets {
                eprintln!("{who} to {to:?}");
                bulk(netns, *to, 300_001);
                datagrams(netns, *to, 10);
            }
        }
    });
}
