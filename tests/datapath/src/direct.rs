//! Traffic without a service: pod to pod, pod and node, ICMP, and who may send as whom.

use crate::node::{HAIRPIN, Node, OTHER_VIP, PORT, TCP, VIP, decided, dropped};
use crate::packet::{NEXT, REDIRECT, SHOT, at, echo, key, see, see_error, tcp, udp};
use agent_sys::bpf::Program;
use agent_sys::maps::Counted;
use ebpf_common::conntrack::{SCOPE_HOST, SCOPE_NETDEV, action, state};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::endpoint::Endpoint;
use ebpf_logic::parse::flag::{ACK, FIN, SYN};
use std::net::Ipv4Addr;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

#[test]
fn pod_to_pod_of_this_node_is_unchanged() {
    let node = Node::new(&[CLIENT, SERVER]);
    let (client, server) = (at(CLIENT, 40_000), at(SERVER, 8080));
    node.open((0, client), server, (1, server));
    for packet in [
        tcp(client, server, ACK, b"data"),
        tcp(client, server, ACK, b"data"),
        udp(client, server, b"query"),
        udp(client, server, b"query"),
    ] {
        let ran = node.from_pod(0, &packet);
        assert_eq!((ran.verdict, &ran.packet), (REDIRECT, &packet));
    }
    let flow = node
        .datapath
        .maps()
        .flow(&key(node.pods[0].ifindex, TCP, client, server));
    assert_eq!(flow.unwrap().unwrap().action, action::PEER);
    // Three of the handshake, one datagram.
    node.assert_counters(vec![decided(Hook::FromPod, 4)]);
}

#[test]
fn between_nodes() {
    let node = Node::new(&[CLIENT]);
    node.netns.ip(&[
        "route",
        "add",
        "10.244.2.0/24",
        "via",
        "172.31.0.12",
        "dev",
        "eth0",
    ]);
    let out = tcp(at(CLIENT, 40_000), at(REMOTE, 8080), SYN, b"");
    let ran = node.from_pod(0, &out);
    assert_eq!((ran.verdict, &ran.packet), (REDIRECT, &out));
    let back = tcp(at(REMOTE, 8080), at(CLIENT, 40_000), SYN | ACK, b"");
    let ran = node.run(Program::FromNetdev, node.uplink, &back);
    assert_eq!((ran.verdict, &ran.packet), (REDIRECT, &back));
    let flow = node.datapath.maps().flow(&key(
        SCOPE_NETDEV,
        TCP,
        at(REMOTE, 8080),
        at(CLIENT, 40_000),
    ));
    assert_eq!(flow.unwrap().unwrap().ifindex, node.pods[0].ifindex);
}

/// The node's routes change: flows find the new way at their next packet, backend and all else
/// as it was.
#[test]
fn routes_that_change() {
    let node = Node::new(&[CLIENT]);
    let route = |how: &str, via: &str| {
        node.netns
            .ip(&["route", how, "10.244.2.0/24", "via", via, "dev", "eth0"]);
        node.datapath.maps().bump_node_generation().unwrap();
    };
    node.put_service(VIP, 1, TCP, &[(3, REMOTE, 8080)]);
    let flow = key(node.pods[0].ifindex, TCP, at(CLIENT, 40_000), at(VIP, PORT));
    let nexthop = || {
        let flow = node.datapath.maps().flow(&flow).unwrap().unwrap();
        Ipv4Addr::from(flow.nexthop)
    };
    route("add", "172.31.0.12");
    for flags in [SYN, ACK] {
        node.from_pod(0, &tcp(at(CLIENT, 40_000), at(VIP, PORT), flags, b""));
    }
    assert_eq!(nexthop(), Ipv4Addr::new(172, 31, 0, 12));
    route("replace", "172.31.0.13");
    let ran = node.from_pod(0, &tcp(at(CLIENT, 40_000), at(VIP, PORT), ACK, b"data"));
    assert_eq!(
        (ran.verdict, see(&ran.packet).to),
        (REDIRECT, at(REMOTE, 8080))
    );
    assert_eq!(nexthop(), Ipv4Addr::new(172, 31, 0, 13));
    assert_eq!(node.connections(3), 1);
}

/// A pod goes and another has its address: flows to the old one go to the new one.
#[test]
fn an_address_that_moves_to_another_pod() {
    let mut node = Node::new(&[CLIENT, SERVER]);
    let (client, server) = (at(CLIENT, 40_000), at(SERVER, 8080));
    let query = udp(client, server, b"query");
    node.from_pod(0, &query);
    let old = node.pods[1].ifindex;
    node.datapath.maps().delete_endpoint(old).unwrap();
    node.datapath.detach(old).unwrap();
    node.netns.ip(&["link", "del", "foilp1"]);
    assert_eq!(node.datapath.attached().unwrap().len(), 5);
    node.add_pod(SERVER);
    assert_eq!(node.from_pod(0, &query).verdict, REDIRECT);
    let flow =
        node.datapath
            .maps()
            .flow(&key(node.pods[0].ifindex, crate::node::UDP, client, server));
    assert_eq!(flow.unwrap().unwrap().ifindex, node.pods[2].ifindex);
}

/// A link that was made anew: the entry of the interface that is gone goes with it.
#[test]
fn a_link_that_was_made_anew_has_one_entry() {
    let node = Node::new(&[CLIENT]);
    let maps = node.datapath.maps();
    let before = maps.endpoints().unwrap()[0];
    for (ifindex, id) in [(901, before.id), (902, before.id + 1)] {
        let anew = Endpoint {
            ifindex,
            id,
            ..before
        };
        maps.put_endpoint(&anew, "test/pod-0").unwrap();
        assert_eq!(maps.endpoints().unwrap(), [anew]);
    }
    maps.delete_endpoint(902).unwrap();
    assert_eq!(maps.endpoints().unwrap(), []);
}

#[test]
fn pod_and_node_and_outside_go_by_the_stack() {
    let node = Node::new(&[CLIENT]);
    let pod = at(CLIENT, 40_000);
    for to in [at(node.addr, 22), at(OUTSIDE, 443)] {
        for flags in [SYN, ACK] {
            let packet = tcp(pod, to, flags, b"");
            let ran = node.from_pod(0, &packet);
            assert_eq!((ran.verdict, &ran.packet), (NEXT, &packet));
        }
    }
    // The node's probe of a pod, and its answer.
    let probe = tcp(at(node.addr, 50_000), at(CLIENT, 8080), SYN, b"");
    let ran = node.run(Program::ToPod, node.pods[0].ifindex, &probe);
    assert_eq!((ran.verdict, &ran.packet), (NEXT, &probe));
    let answer = tcp(at(CLIENT, 8080), at(node.addr, 50_000), SYN | ACK, b"");
    assert_eq!(node.from_pod(0, &answer).verdict, NEXT);
    assert!(
        node.datapath
            .maps()
            .flow(&key(
                SCOPE_HOST,
                TCP,
                at(node.addr, 50_000),
                at(CLIENT, 8080)
            ))
            .unwrap()
            .is_some()
    );
    // Nor is a pod whose packets come from outside, before the stack has forwarded them.
    for flags in [SYN, ACK] {
        let packet = tcp(at(OUTSIDE, 1_000), at(CLIENT, 8080), flags, b"");
        let ran = node.run(Program::FromNetdev, node.uplink, &packet);
        assert_eq!((ran.verdict, &ran.packet), (NEXT, &packet));
    }
    // What the node gets from outside is no flow.
    let before = node.datapath.maps().flows().unwrap().len();
    for flags in [SYN, ACK] {
        let packet = tcp(at(OUTSIDE, 1_000), at(node.addr, 22), flags, b"");
        let ran = node.run(Program::FromNetdev, node.uplink, &packet);
        assert_eq!((ran.verdict, &ran.packet), (NEXT, &packet));
    }
    assert_eq!(node.datapath.maps().flows().unwrap().len(), before);
}

/// Connections that the stack carries one way or both: their two directions know of each other,
/// or neither would ever be seen to end.
#[test]
fn what_goes_by_the_stack_ends_too() {
    let node = Node::new(&[CLIENT]);
    // From the network the stack hands it to the pod's own hook.
    let pod = &[(Program::FromPod, node.pods[0].ifindex)][..];
    let host = &[(Program::ToPod, node.pods[0].ifindex)][..];
    let network = &[(Program::FromNetdev, node.uplink), host[0]][..];
    let own = node.pods[0].ifindex;
    let inside = at(CLIENT, 8080);
    // (who opens it and as whom, who answers and as whom, scopes of the two)
    for (from, client, to, server, scopes) in [
        (host, at(node.addr, 50_000), pod, inside, [SCOPE_HOST, own]),
        (
            pod,
            at(CLIENT, 40_000),
            host,
            at(node.addr, 22),
            [own, SCOPE_HOST],
        ),
        (network, at(OUTSIDE, 5_000), pod, inside, [SCOPE_HOST, own]),
        (
            pod,
            at(CLIENT, 40_001),
            network,
            at(OUTSIDE, 443),
            [own, SCOPE_HOST],
        ),
    ] {
        for (there, flags) in [
            (true, SYN),
            (false, SYN | ACK),
            (true, ACK),
            (true, ACK),
            (false, ACK),
            (false, FIN | ACK),
            (true, ACK),
            (true, FIN | ACK),
            (false, ACK),
        ] {
            let (hooks, packet) = if there {
                (from, tcp(client, server, flags, b""))
            } else {
                (to, tcp(server, client, flags, b""))
            };
            for (program, ifindex) in hooks {
                let ran = node.run(*program, *ifindex, &packet);
                assert_eq!((ran.verdict, &ran.packet), (NEXT, &packet));
            }
        }
        for key in [
            key(scopes[0], TCP, client, server),
            key(scopes[1], TCP, server, client),
        ] {
            let flow = node.datapath.maps().flow(&key).unwrap();
            let state = flow.map(|flow| state::text(flow.state));
            assert_eq!(
                state,
                Some("TIME-WAIT"),
                "{client:?} -> {server:?}: {key:?}"
            );
        }
    }
}

#[test]
fn icmp_is_not_translated() {
    let node = Node::new(&[CLIENT, SERVER]);
    for (from, to, verdict) in [
        (CLIENT, SERVER, REDIRECT),
        (CLIENT, node.addr, NEXT),
        (CLIENT, REMOTE, NEXT),
    ] {
        let packet = echo(from, to);
        let ran = node.from_pod(0, &packet);
        assert_eq!((ran.verdict, &ran.packet), (verdict, &packet), "{to}");
    }
    // A service's address is no machine's, which its sender is told.
    let ran = node.from_pod(0, &echo(CLIENT, VIP));
    let (from, to, ..) = see_error(&ran.packet);
    assert_eq!((ran.verdict, from, to), (REDIRECT, VIP, CLIENT));
    let ran = node.run(Program::FromNetdev, node.uplink, &echo(REMOTE, CLIENT));
    assert_eq!(ran.verdict, REDIRECT);
    let ran = node.run(
        Program::ToPod,
        node.pods[0].ifindex,
        &echo(node.addr, CLIENT),
    );
    assert_eq!(ran.verdict, NEXT);
    node.assert_counters(vec![
        decided(Hook::FromPod, 3),
        decided(Hook::FromNetdev, 1),
        decided(Hook::ToPod, 1),
        dropped(Drop::NoFrontend, Hook::FromPod, 1),
    ]);
}

/// Another's address, from a pod and from the network; also for a flow that the owner has.
#[test]
fn spoofed_sources() {
    let node = Node::new(&[CLIENT, SERVER]);
    let packet = tcp(at(CLIENT, 40_000), at(SERVER, 8080), SYN, b"");
    let data = tcp(at(CLIENT, 40_000), at(SERVER, 8080), ACK, b"data");
    node.from_pod(0, &packet);
    node.from_pod(0, &data);
    assert_eq!(node.from_pod(1, &packet).verdict, SHOT);
    assert_eq!(node.from_pod(1, &data).verdict, SHOT);
    assert_eq!(node.from_pod(1, &echo(CLIENT, SERVER)).verdict, SHOT);
    for packet in [&packet, &data] {
        let ran = node.run(Program::FromNetdev, node.uplink, packet);
        assert_eq!(ran.verdict, SHOT);
    }
    // To the node as well.
    let to_node = tcp(at(CLIENT, 40_000), at(node.addr, 22), SYN, b"");
    let ran = node.run(Program::FromNetdev, node.uplink, &to_node);
    assert_eq!(ran.verdict, SHOT);
    // An interface that is no pod's.
    assert_eq!(
        node.run(Program::FromPod, node.uplink, &packet).verdict,
        SHOT
    );
    node.assert_counters(vec![
        decided(Hook::FromPod, 2),
        dropped(Drop::SpoofedSource, Hook::FromPod, 3),
        dropped(Drop::SpoofedSource, Hook::FromNetdev, 3),
        dropped(Drop::NoEndpoint, Hook::FromPod, 1),
    ]);
}

/// From the network nothing comes whose source is inside of this node: its own address, a
/// service's, the hairpin's. To a pod, to the node and to a service, first packet and later ones.
#[test]
fn martian_sources() {
    let node = Node::new(&[CLIENT]);
    node.put_service(VIP, 1, TCP, &[(3, CLIENT, 8080)]);
    let mut dropped_so_far = 0;
    for source in [node.addr, VIP, OTHER_VIP, HAIRPIN] {
        for to in [at(CLIENT, 8080), at(node.addr, 22), at(VIP, PORT)] {
            for packet in [
                tcp(at(source, 40_000), to, SYN, b""),
                tcp(at(source, 40_000), to, ACK, b"data"),
                udp(at(source, 40_000), to, b"query"),
                echo(source, *to.ip()),
            ] {
                let ran = node.run(Program::FromNetdev, node.uplink, &packet);
                assert_eq!((ran.verdict, &ran.packet), (SHOT, &packet), "{source} {to}");
                dropped_so_far += 1;
                node.assert_counters(vec![dropped(
                    Drop::MartianSource,
                    Hook::FromNetdev,
                    dropped_so_far,
                )]);
            }
        }
    }
    assert!(node.datapath.maps().flows().unwrap().is_empty());
}

/// IP options do not hide such a source; a packet for the node from elsewhere passes with them.
#[test]
fn sources_of_packets_with_options() {
    let node = Node::new(&[CLIENT]);
    let packet = |source: Ipv4Addr| {
        let mut packet = tcp(at(source, 40_000), at(node.addr, 22), SYN, b"");
        // Four options of one byte: no operation.
        packet.splice(34..34, [1; 4]);
        (packet[14], packet[17]) = (0x46, 44);
        packet
    };
    for (source, reason) in [
        (node.addr, Some(Drop::MartianSource)),
        (VIP, Some(Drop::MartianSource)),
        (HAIRPIN, Some(Drop::MartianSource)),
        (CLIENT, Some(Drop::SpoofedSource)),
        (OUTSIDE, None),
        (REMOTE, None),
    ] {
        let counted = |counters: Vec<(Counted, Hook, u64)>| {
            let of = counters.into_iter().filter(|(what, _, _)| {
                reason.is_some_and(|reason| *what == Counted::Dropped(reason))
            });
            of.map(|(_, _, packets)| packets).sum::<u64>()
        };
        let before = counted(node.counters());
        let packet = packet(source);
        let ran = node.run(Program::FromNetdev, node.uplink, &packet);
        let (verdict, dropped) = if reason.is_some() {
            (SHOT, 1)
        } else {
            (NEXT, 0)
        };
        assert_eq!((ran.verdict, &ran.packet), (verdict, &packet), "{source}");
        assert_eq!(counted(node.counters()), before + dropped, "{source}");
    }
}

/// Packets from outside to a pod have no flow at the uplink, and take no slow path for it.
#[test]
fn packets_from_outside_to_a_pod_are_fast() {
    let node = Node::new(&[CLIENT]);
    for packet in [
        tcp(at(OUTSIDE, 1_000), at(CLIENT, 8080), ACK, b"data"),
        udp(at(OUTSIDE, 1_000), at(CLIENT, 8080), b"query"),
    ] {
        for _ in 0..3 {
            let ran = node.run(Program::FromNetdev, node.uplink, &packet);
            assert_eq!((ran.verdict, &ran.packet), (NEXT, &packet));
        }
    }
    assert_eq!(node.slow(), 0);
    // To no pod, or from another node's: decided.
    for (from, to) in [(OUTSIDE, REMOTE), (REMOTE, CLIENT)] {
        let slow = node.slow();
        let packet = tcp(at(from, 1_000), at(to, 8080), ACK, b"data");
        node.run(Program::FromNetdev, node.uplink, &packet);
        assert_eq!(node.slow(), slow + 1, "{from} {to}");
    }
}

/// A service address is for the inside of the cluster.
#[test]
fn services_are_not_for_the_outside() {
    let node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    let packet = tcp(at(OUTSIDE, 40_000), at(VIP, PORT), SYN, b"");
    let ran = node.run(Program::FromNetdev, node.uplink, &packet);
    assert_eq!(ran.verdict, SHOT);
    node.assert_counters(vec![dropped(Drop::ExternalService, Hook::FromNetdev, 1)]);
}
