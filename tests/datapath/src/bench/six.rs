//! A measured node of both families: connections and services of IPv6, beside those of IPv4.

use crate::services::service;
use crate::{CLIENT, PODS};
use ebpf_logic::parse::flag::{ACK, SYN};
use std::path::Path;
use tests_datapath::node::{Node, PORT, TCP};
use tests_datapath::packet::REDIRECT;
use tests_datapath::packet6::{at6, tcp6};
use tests_datapath::six::six;

/// Backends of the service that first packets are for.
const BACKENDS: u32 = 10;

/// A node on which `established` and `first` are packets of services.
pub(crate) fn node(object: &Path, flow_entries: u32) -> Node {
    let node = Node::measured_dual(&PODS, object, flow_entries);
    // What one makes of the packet is a packet of the other, as of IPv4.
    node.put_service6(PODS[1], 1, TCP, &[(1, PODS[2], PORT)], 0);
    node.put_service6(PODS[2], 2, TCP, &[(2, PODS[1], PORT)], 0);
    let backends = (0..BACKENDS).map(|number| (3 + number, PODS[1 + number as usize % 2], 7000));
    let backends: Vec<_> = backends.collect();
    node.put_service6(service(0), 3, TCP, &backends, 0);
    // Nothing but the packets that are measured: with IPv6 the stacks send by themselves.
    for pod in &node.pods {
        pod.netns.ip(&["link", "set", "eth0", "down"]);
    }
    node.netns.ip(&["link", "set", "eth0", "down"]);
    for (to, server) in [(1, 2), (2, 1)] {
        let (client, place) = (at6(six(CLIENT), 40_000), |pod: usize| {
            at6(six(PODS[pod]), PORT)
        });
        for (pod, from, to, flags) in [
            (0, client, place(to), SYN),
            (server, place(server), client, SYN | ACK),
            (0, client, place(to), ACK),
        ] {
            let ran = node.from_pod(pod, &tcp6(from, to, flags, b""));
            assert_eq!(ran.verdict, REDIRECT, "{from} to {to}");
        }
    }
    node
}

/// A packet of the connection that was opened.
pub(crate) fn established() -> Vec<u8> {
    let (client, to) = (at6(six(CLIENT), 40_000), at6(six(PODS[1]), PORT));
    tcp6(client, to, ACK, b"")
}

/// The first packet of a connection.
pub(crate) fn first(port: u16) -> Vec<u8> {
    let (client, to) = (at6(six(CLIENT), port), at6(six(service(0)), PORT));
    tcp6(client, to, SYN, b"")
}
