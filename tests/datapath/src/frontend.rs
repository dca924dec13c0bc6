//! Which packets from outside a frontend is for, and what follows when it changes.

use crate::balance::external;
use crate::node::{TCP, UDP, VIP, dropped};
use crate::nodeport::{ANY, BALANCED, CLIENT, NODE_PORT, REMOTE, SERVER, node};
use crate::packet::{
    At, NEXT, REDIRECT, SHOT, at, echo, error, hops, key, see, see_error, tcp, udp, with_hops,
};
use agent_sys::bpf::Program;
use ebpf_common::conntrack::SCOPE_NETDEV;
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::{Addr, Be16};
use ebpf_common::network::{EXTERNAL, NetworkKey};
use ebpf_common::service::{
    Backend, Frontend, FrontendKey, SOURCE_RANGES, SourceRangeKey, TERMINATING,
};
use ebpf_logic::icmp::TIME_EXCEEDED;
use ebpf_logic::parse::flag::{ACK, RST, SYN};
use std::net::Ipv4Addr;

/// Frames for other machines, which a promiscuous uplink sees, and frames for all machines of the
/// link are the stack's: another node with the same service addresses may have its own decision.
#[test]
fn frames_that_are_not_for_this_node() {
    let node = node();
    node.put_external(at(BALANCED, 80), TCP, external(1), &[(3, SERVER, 8080)]);
    node.put_external(ANY, TCP, external(2), &[(4, REMOTE, 8080)]);
    let client = at(CLIENT, 40_000);
    for receiver in [[2, 0, 0, 0, 0, 9], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        for asked in [at(BALANCED, 80), at(node.addr, NODE_PORT)] {
            for flags in [SYN, ACK] {
                let mut frame = tcp(client, asked, flags, b"");
                frame[..6].copy_from_slice(&receiver);
                let out = node.run_frame(Program::FromNetdev, node.uplink, &frame);
                assert_eq!((out.verdict, &out.packet), (NEXT, &frame), "{receiver:?}");
            }
        }
    }
    assert_eq!(node.datapath.maps().flows().unwrap(), []);
    // A forged source is dropped if the stack could take the frame.
    let mut frame = tcp(at(SERVER, 40_000), at(node.addr, 22), SYN, b"");
    frame[..6].copy_from_slice(&[0xff; 6]);
    let out = node.run_frame(Program::FromNetdev, node.uplink, &frame);
    assert_eq!(out.verdict, SHOT);
    let asked = at(node.addr, NODE_PORT);
    assert_eq!(node.netdev(&tcp(client, asked, SYN, b"")).verdict, REDIRECT);
}

/// Datagrams of one client go on for ever, so they leave a frontend that is given to another
/// service, taken away, or closed to the client; TCP connections stay.
#[test]
fn datagrams_follow_their_frontend() {
    let node = node();
    let maps = node.datapath.maps();
    let (client, asked) = (at(CLIENT, 40_000), at(node.addr, NODE_PORT));
    let ask = |to| node.netdev(&udp(client, to, b"query"));
    let goes_to = |to, server: At| {
        for _ in 0..3 {
            let out = ask(to);
            assert_eq!((out.verdict, see(&out.packet).to), (REDIRECT, server));
        }
    };
    let (first, second) = (at(SERVER, 8080), at(SERVER, 9090));
    for protocol in [UDP, TCP] {
        node.put_external(ANY, protocol, external(1), &[(3, SERVER, 8080)]);
    }
    let balanced = at(BALANCED, 53);
    node.put_external(balanced, UDP, external(1), &[(3, SERVER, 8080)]);
    goes_to(asked, first);
    // The other address with the same backend: another source port for the same client.
    goes_to(balanced, first);
    node.netdev(&tcp(client, asked, SYN, b""));

    // Another policy is for new clients: the backend is one of the other table, too.
    let both = Frontend {
        external: 2,
        ..external(1)
    };
    let backend = maps.backends().unwrap()[0].1;
    let backend = Backend {
        second_port: 2,
        second_state: TERMINATING,
        ..backend
    };
    maps.put_backend(3, &backend, "test/backend-3").unwrap();
    node.put_choices(2, 0, &[]);
    node.put_external(ANY, UDP, both, &[]);
    goes_to(asked, first);

    for protocol in [UDP, TCP] {
        node.put_external(ANY, protocol, external(5), &[(4, SERVER, 9090)]);
    }
    goes_to(asked, second);
    goes_to(balanced, first);
    let out = node.netdev(&tcp(client, asked, SYN, b""));
    assert_eq!(see(&out.packet).to, first);

    let port = |addr: At| FrontendKey {
        addr: Addr::from(*addr.ip()),
        port: Be16::new(addr.port()),
        protocol: UDP,
        pad: 0,
    };
    // An address of the node is another service's external address, too.
    node.put_external(asked, UDP, external(7), &[(6, SERVER, 7070)]);
    goes_to(asked, at(SERVER, 7070));
    maps.delete_frontend(&port(asked)).unwrap();
    goes_to(asked, second);
    maps.delete_frontend(&port(ANY)).unwrap();
    assert_eq!(ask(asked).verdict, NEXT);
    assert!(
        maps.flow(&key(SCOPE_NETDEV, UDP, client, asked))
            .unwrap()
            .is_none()
    );
    let limited = Frontend {
        flags: SOURCE_RANGES,
        ..external(1)
    };
    let range = SourceRangeKey::new(1, CLIENT.into(), 32);
    maps.put_source_range(&range).unwrap();
    maps.put_frontend(&port(balanced), &limited, "test/external:port")
        .unwrap();
    goes_to(balanced, first);
    maps.delete_source_range(&range).unwrap();
    assert_eq!(ask(balanced).verdict, SHOT);
    let refused = dropped(Drop::SourceRange, Hook::FromNetdev, 1);
    assert!(node.counters().contains(&refused), "{:?}", node.counters());
}

/// Code of the ICMP error that no machine has an address.
const HOST: u8 = 1;

/// Of the addresses that the network brings to the nodes, what has no frontend is refused at once:
/// by the stack it would go back to where it came from.
#[test]
fn what_has_no_frontend_is_refused_at_once() {
    let node = node();
    node.put_external(at(BALANCED, 80), TCP, external(1), &[(3, SERVER, 8080)]);
    let pool = NetworkKey::new(Ipv4Addr::new(198, 51, 100, 0).into(), 28);
    node.datapath.maps().put_network(&pool, EXTERNAL).unwrap();
    let free = Ipv4Addr::new(198, 51, 100, 9);
    let (client, pod) = (at(CLIENT, 40_000), at(SERVER, 40_000));
    let ask = |from: At, packet: &[u8]| {
        let out = match from == pod {
            true => node.from_pod(0, packet),
            false => node.netdev(packet),
        };
        assert_eq!(out.verdict, REDIRECT, "{from}");
        out.packet
    };
    let mut refused = 0;
    for to in [BALANCED, free, VIP] {
        // Addresses of the cluster are none of a machine outside.
        for from in [pod, client]
            .into_iter()
            .take(if to == VIP { 1 } else { 2 })
        {
            let told = see(&ask(from, &tcp(from, at(to, 81), SYN, b"")));
            assert_eq!((told.from, told.to), (at(to, 81), from));
            assert_eq!(told.flags, RST | ACK);
            let told = ask(from, &udp(from, at(to, 81), b"query"));
            let (by, receiver, quoted, _) = see_error(&told);
            assert_eq!((by, receiver, quoted), (to, *from.ip(), from));
            let told = ask(from, &echo(*from.ip(), to));
            let (by, receiver, ..) = see_error(&told);
            assert_eq!((by, receiver, told[35]), (to, *from.ip(), HOST));
            refused += 1;
        }
    }
    assert_eq!(refused, 5);
    let counted = |hook, packets| dropped(Drop::NoFrontend, hook, packets);
    node.assert_counters(vec![
        counted(Hook::FromPod, 9),
        counted(Hook::FromNetdev, 6),
    ]);
    assert_eq!(node.datapath.maps().flows().unwrap(), []);
    // Errors that belong to no flow, and what has no ports, are refused silently.
    let quoted = udp(at(BALANCED, 80), client, b"");
    for packet in [
        error(CLIENT, BALANCED, &quoted),
        tcp(client, at(free, 81), RST, b""),
    ] {
        assert_eq!(node.netdev(&packet).verdict, SHOT);
    }
    let asked = tcp(client, at(BALANCED, 80), SYN, b"");
    assert_eq!(node.netdev(&asked).verdict, REDIRECT);
}

/// What comes from the network and goes back into it loses a hop, and its sender is told when none
/// is left: a Service may lead to another node's port, and that one back.
#[test]
fn what_is_forwarded_loses_a_hop() {
    let node = node();
    node.put_external(ANY, TCP, external(1), &[(3, REMOTE, 8080)]);
    node.put_external(ANY, UDP, external(2), &[(4, REMOTE, 8080)]);
    node.put_external(at(BALANCED, 80), TCP, external(5), &[(6, SERVER, 8080)]);
    let (client, asked) = (at(CLIENT, 40_000), at(node.addr, NODE_PORT));
    let server = at(REMOTE, 8080);
    let left = |packet: Vec<u8>, had: u8| {
        let out = node.netdev(&with_hops(packet, had));
        assert_eq!(out.verdict, REDIRECT);
        see(&out.packet);
        hops(&out.packet)
    };
    let ended = |packet: Vec<u8>, from: At| {
        let out = node.netdev(&with_hops(packet, 1));
        assert_eq!((out.verdict, out.packet[34]), (REDIRECT, TIME_EXCEEDED));
        let (by, to, quoted, _) = see_error(&out.packet);
        assert_eq!((by, to, quoted), (node.addr, *from.ip(), from));
    };
    ended(udp(client, asked, b"query"), client);
    let taken = see(&node.netdev(&tcp(client, asked, SYN, b"")).packet).from;
    for had in [64, 255, 2] {
        assert_eq!(left(udp(client, asked, b"query"), had), had - 1);
        assert_eq!(left(tcp(server, taken, SYN | ACK, b""), had), had - 1);
        assert_eq!(left(tcp(client, asked, ACK, b""), had), had - 1);
        assert_eq!(left(tcp(server, taken, ACK, b"data"), had), had - 1);
    }
    // Also on the fast path.
    let slow = node.counters();
    assert_eq!(left(tcp(client, asked, ACK, b"data"), 9), 8);
    assert_eq!(node.counters(), slow);
    ended(tcp(client, asked, ACK, b"data"), client);
    ended(tcp(server, taken, ACK, b"data"), server);
    ended(udp(client, asked, b"query"), client);
    let counted = dropped(Drop::HopLimit, Hook::FromNetdev, 4);
    assert!(node.counters().contains(&counted), "{:?}", node.counters());
    // A pod of this node is the end of its way.
    assert_eq!(left(tcp(client, at(BALANCED, 80), SYN, b""), 1), 1);
}
