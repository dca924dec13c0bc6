//! Connections from outside of the cluster: node ports, external and load balancer addresses, to
//! backends of this node and of others.

use crate::balance::external;
use crate::live::{Raise, bulk, cluster, connect, datagrams, serve_tcp, serve_udp};
use crate::node::{HAIRPIN, Node, TCP, UDP, VIP, decided, dropped};
use crate::packet::{At, NEXT, REDIRECT, SHOT, at, error, key, see, see_error, tcp, udp};
use agent_sys::bpf::Program;
use ebpf_common::conntrack::{SCOPE_NETDEV, action, state};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::Addr;
use ebpf_common::network::{NODE, NetworkKey};
use ebpf_common::service::{Frontend, LOCAL_ONLY, SOURCE_RANGES, SourceRangeKey};
use ebpf_logic::parse::flag::{ACK, RST, SYN};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use tests_harness::{NetNs, retry_on_intr};

pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
pub(crate) const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);
pub(crate) const BALANCED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub(crate) const NODE_PORT: u16 = 30_080;
/// Of node ports.
pub(crate) const ANY: At = At::new(Ipv4Addr::UNSPECIFIED, NODE_PORT);

/// A node with a pod, routes to the outside and to the other node's pods.
pub(crate) fn node() -> Node {
    let node = Node::new(&[SERVER]);
    for (block, via) in [("default", "172.31.0.1"), ("10.244.2.0/24", "172.31.0.12")] {
        node.netns
            .ip(&["route", "add", block, "via", via, "dev", "eth0"]);
    }
    node.datapath.maps().bump_node_generation().expect("bump");
    node
}

impl Node {
    pub(crate) fn netdev(&self, packet: &[u8]) -> agent_sys::bpf::Ran {
        self.run(Program::FromNetdev, self.uplink, packet)
    }
}

/// The client's address is kept, and the answers leave as they came.
#[test]
fn a_pod_of_this_node_sees_its_client() {
    for (addr, asked) in [
        (ANY, at(Ipv4Addr::new(172, 31, 0, 11), NODE_PORT)),
        (at(BALANCED, 80), at(BALANCED, 80)),
    ] {
        let node = node();
        node.put_external(addr, TCP, external(1), &[(3, SERVER, 8080)]);
        let (client, server) = (at(CLIENT, 40_000), at(SERVER, 8080));
        let syn = node.netdev(&tcp(client, asked, SYN, b""));
        let seen = see(&syn.packet);
        assert_eq!(
            (syn.verdict, seen.from, seen.to),
            (REDIRECT, client, server)
        );
        let forward = key(SCOPE_NETDEV, TCP, client, asked);
        let maps = node.datapath.maps();
        let flow = maps.flow(&forward).unwrap().expect("forward entry");
        assert_eq!(flow.action, action::PEER | action::NAT);

        let answer = node.from_pod(0, &tcp(server, client, SYN | ACK, b""));
        let seen = see(&answer.packet);
        assert_eq!(
            (answer.verdict, seen.from, seen.to),
            (REDIRECT, asked, client)
        );
        let reverse = flow.answer_key(&forward);
        assert_eq!(reverse, key(node.pods[0].ifindex, TCP, server, client));
        let back = maps.flow(&reverse).unwrap().expect("reply entry");
        let wanted = action::NEIGH | action::NAT | action::REPLY | action::ANSWERS_NETDEV;
        assert_eq!((back.action, back.ifindex), (wanted, node.uplink));
        assert_eq!(
            Ipv4Addr::from(back.nexthop),
            Ipv4Addr::new(172, 31, 0, 1),
            "the router"
        );
        assert_eq!(back.answer_key(&reverse), forward);

        node.netdev(&tcp(client, asked, ACK, b""));
        let slow = vec![decided(Hook::FromNetdev, 2), decided(Hook::FromPod, 1)];
        node.assert_counters(slow.clone());
        for payload in [&b""[..], b"odd", &[7; 1400]] {
            let out = node.netdev(&tcp(client, asked, ACK, payload));
            assert_eq!((out.verdict, see(&out.packet).to), (REDIRECT, server));
            let out = node.from_pod(0, &tcp(server, client, ACK, payload));
            assert_eq!((out.verdict, see(&out.packet).from), (REDIRECT, asked));
        }
        node.assert_counters(slow);
        assert_eq!(node.states(&forward), ["ESTAB", "ESTAB"]);
        assert_eq!(node.connections(3), 1);
    }
}

/// The node's address and a port of its own stand in the client's place.
#[test]
fn a_pod_of_another_node_sees_this_node() {
    let node = node();
    node.put_external(ANY, TCP, external(1), &[(3, REMOTE, 8080)]);
    node.put_external(ANY, UDP, external(2), &[(4, REMOTE, 8080)]);
    let (asked, server) = (at(node.addr, NODE_PORT), at(REMOTE, 8080));
    let mut ports = BTreeSet::new();
    for number in 0..200 {
        let client = at(CLIENT, 40_000 + number);
        let syn = node.netdev(&tcp(client, asked, SYN, b""));
        let seen = see(&syn.packet);
        assert_eq!((syn.verdict, seen.to), (REDIRECT, server));
        assert_eq!(*seen.from.ip(), node.addr);
        assert!(seen.from.port() >= 61_000, "{seen:?}");
        assert!(ports.insert(seen.from.port()), "{seen:?}");
        // Sent again: the same port.
        let again = node.netdev(&tcp(client, asked, SYN, b""));
        assert_eq!(see(&again.packet).from, seen.from);
        for (from, to, flags, wanted) in [
            (server, seen.from, SYN | ACK, (asked, client)),
            (client, asked, ACK, (seen.from, server)),
            (server, seen.from, ACK, (asked, client)),
            (client, asked, ACK, (seen.from, server)),
        ] {
            let out = node.netdev(&tcp(from, to, flags, b"x"));
            let found = see(&out.packet);
            assert_eq!(
                (out.verdict, found.from, found.to),
                (REDIRECT, wanted.0, wanted.1)
            );
        }
        let out = node.netdev(&udp(client, asked, b"query"));
        let sent = see(&out.packet);
        assert_eq!((*sent.from.ip(), sent.to), (node.addr, server));
        let out = node.netdev(&udp(server, sent.from, b"answer"));
        let found = see(&out.packet);
        assert_eq!(
            (out.verdict, found.from, found.to),
            (REDIRECT, asked, client)
        );
    }
    let flow = node
        .datapath
        .maps()
        .flow(&key(SCOPE_NETDEV, TCP, at(CLIENT, 40_000), asked));
    let flow = flow.unwrap().expect("an entry");
    assert_eq!(flow.state, state::ESTABLISHED);
    assert_eq!(
        flow.action,
        action::NEIGH | action::NAT | action::ANSWERS_NETDEV
    );
    assert_eq!(node.connections(3), 200);
}

/// A backend in the node's own host network, and in another node's.
#[test]
fn backends_in_host_networks() {
    let node = node();
    let own = at(node.addr, 9090);
    node.put_external(ANY, TCP, external(1), &[(3, node.addr, 9090)]);
    let (client, asked) = (at(CLIENT, 40_000), at(node.addr, NODE_PORT));
    let syn = node.netdev(&tcp(client, asked, SYN, b""));
    let seen = see(&syn.packet);
    let hairpin = at(HAIRPIN, 40_000);
    assert_eq!((syn.verdict, seen.from, seen.to), (REDIRECT, hairpin, own));
    let answer = tcp(own, hairpin, SYN | ACK, b"");
    let out = node.run(Program::ToNetdev, node.service, &answer);
    let seen = see(&out.packet);
    assert_eq!((out.verdict, seen.from, seen.to), (REDIRECT, asked, client));

    let other = at(Ipv4Addr::new(172, 31, 0, 12), 9090);
    node.put_external(
        at(BALANCED, 80),
        TCP,
        external(2),
        &[(4, *other.ip(), 9090)],
    );
    let syn = node.netdev(&tcp(client, at(BALANCED, 80), SYN, b""));
    let seen = see(&syn.packet);
    assert_eq!((*seen.from.ip(), seen.to), (node.addr, other));
    let out = node.netdev(&tcp(other, seen.from, SYN | ACK, b""));
    let seen = see(&out.packet);
    assert_eq!(
        (out.verdict, seen.from, seen.to),
        (REDIRECT, at(BALANCED, 80), client)
    );
}

/// Node ports are on each address of the node, and on those only.
#[test]
fn addresses_of_a_node() {
    let node = node();
    node.put_external(ANY, TCP, external(1), &[(3, SERVER, 8080)]);
    let second = Ipv4Addr::new(192, 0, 2, 77);
    let client = at(CLIENT, 40_000);
    let ask = |to| node.netdev(&tcp(client, to, SYN, b"")).verdict;
    assert_eq!(ask(at(second, NODE_PORT)), NEXT);
    let known = NetworkKey::new(second.into(), 32);
    node.datapath.maps().put_network(&known, NODE).unwrap();
    assert_eq!(ask(at(second, NODE_PORT)), REDIRECT);
    let forged = tcp(at(second, 40_000), at(node.addr, NODE_PORT), SYN, b"");
    assert_eq!(node.netdev(&forged).verdict, SHOT);
    let martian = dropped(Drop::MartianSource, Hook::FromNetdev, 1);
    assert!(node.counters().contains(&martian), "{:?}", node.counters());
    node.datapath.maps().delete_network(&known).unwrap();
    assert_eq!(ask(at(node.addr, NODE_PORT)), REDIRECT);
    assert_eq!(ask(at(node.addr, NODE_PORT + 1)), NEXT);
    assert_eq!(ask(at(Ipv4Addr::new(192, 0, 2, 78), NODE_PORT)), NEXT);
    // An established connection of a process of the node has no flow, and needs none.
    let ran = node.netdev(&tcp(client, at(node.addr, 22), ACK, b""));
    assert_eq!(ran.verdict, NEXT);
}

/// Pods use the same addresses, and are not clients outside: they get the table of the cluster.
#[test]
fn pods_are_of_the_inside() {
    let node = node();
    node.put_backend(2, TCP, (4, REMOTE, 8080), 1);
    node.put_choices(2, 0, &[]);
    let local = Frontend {
        external: 2,
        flags: LOCAL_ONLY,
        ..external(1)
    };
    for addr in [ANY, at(BALANCED, 80)] {
        node.put_external(addr, TCP, local, &[(3, REMOTE, 8080)]);
    }
    for (port, asked) in [
        (40_000, at(node.addr, NODE_PORT)),
        (40_001, at(BALANCED, 80)),
    ] {
        let pod = at(SERVER, port);
        let out = node.from_pod(0, &tcp(pod, asked, SYN, b""));
        let seen = see(&out.packet);
        assert_eq!((out.verdict, seen.from), (REDIRECT, pod));
        assert_eq!(seen.to, at(REMOTE, 8080));
        let out = node.netdev(&tcp(at(REMOTE, 8080), pod, SYN | ACK, b""));
        let seen = see(&out.packet);
        assert_eq!((out.verdict, seen.from, seen.to), (REDIRECT, asked, pod));
        // Of another node; its answers have to come past here.
        let pod = at(REMOTE, port);
        let out = node.netdev(&tcp(pod, asked, SYN, b""));
        let seen = see(&out.packet);
        assert_eq!((*seen.from.ip(), seen.to), (node.addr, at(REMOTE, 8080)));
        // From outside: no backend on this node.
        let out = node.netdev(&tcp(at(CLIENT, 40_000), asked, SYN, b""));
        assert_eq!(out.verdict, SHOT);
    }
    let refused = dropped(Drop::NoLocalBackend, Hook::FromNetdev, 2);
    assert!(node.counters().contains(&refused), "{:?}", node.counters());
}

/// Who may not use a service, and what its client is told.
#[test]
fn what_is_refused() {
    let node = node();
    let (client, balanced) = (at(CLIENT, 40_000), at(BALANCED, 80));
    let limited = Frontend {
        flags: SOURCE_RANGES,
        ..external(7)
    };
    node.put_external(balanced, TCP, limited, &[(3, SERVER, 8080)]);
    let ask = |to| node.netdev(&tcp(client, to, SYN, b""));
    let maps = node.datapath.maps();
    let range = |service, last, bits| {
        let addr: Addr = Ipv4Addr::new(203, 0, 113, last).into();
        SourceRangeKey::new(service, addr, bits)
    };
    assert_eq!(ask(balanced).verdict, SHOT);
    for other in [range(8, 0, 24), range(7, 8, 32), range(7, 128, 25)] {
        maps.put_source_range(&other).unwrap();
        assert_eq!(ask(balanced).verdict, SHOT);
    }
    maps.put_source_range(&range(7, 8, 31)).unwrap();
    assert_eq!(ask(balanced).verdict, REDIRECT);
    maps.delete_source_range(&range(7, 8, 31)).unwrap();
    assert_eq!(maps.source_ranges().unwrap().len(), 3);
    // It is established: what it may is decided once.
    assert_eq!(ask(balanced).verdict, REDIRECT);

    node.put_service(VIP, 1, TCP, &[(5, SERVER, 8080)]);
    assert_eq!(ask(at(VIP, 80)).verdict, SHOT);
    node.put_external(ANY, TCP, external(9), &[]);
    let told = ask(at(node.addr, NODE_PORT));
    let seen = see(&told.packet);
    assert_eq!(
        (told.verdict, seen.from, seen.to),
        (REDIRECT, at(node.addr, NODE_PORT), client)
    );
    assert_eq!(seen.flags, RST | ACK);
    node.put_external(ANY, UDP, external(10), &[]);
    let told = node.netdev(&udp(client, at(node.addr, NODE_PORT), b"query"));
    assert_eq!(told.verdict, REDIRECT);
    let (from, to, quoted, _) = see_error(&told.packet);
    assert_eq!((from, to, quoted), (node.addr, CLIENT, client));
    let drops = [
        dropped(Drop::SourceRange, Hook::FromNetdev, 4),
        dropped(Drop::ExternalService, Hook::FromNetdev, 1),
        dropped(Drop::NoBackend, Hook::FromNetdev, 2),
    ];
    let counters = node.counters();
    assert!(
        drops.iter().all(|one| counters.contains(one)),
        "{counters:?}"
    );
}

/// The errors about both directions reach the end that they are about.
#[test]
fn errors_find_back() {
    let node = node();
    node.put_external(ANY, UDP, external(1), &[(3, REMOTE, 8080)]);
    let (client, asked) = (at(CLIENT, 40_000), at(node.addr, NODE_PORT));
    let sent = node.netdev(&udp(client, asked, b"query"));
    let taken = see(&sent.packet).from;
    // The backend's own, before it has answered; and a router's.
    let router = Ipv4Addr::new(172, 31, 0, 12);
    for (from, shown) in [(REMOTE, node.addr), (router, router)] {
        let out = node.netdev(&error(from, node.addr, &sent.packet));
        let found = see_error(&out.packet);
        assert_eq!(
            (out.verdict, found),
            (REDIRECT, (shown, CLIENT, client, asked))
        );
    }
    let answer = node.netdev(&udp(at(REMOTE, 8080), taken, b"answer"));
    let out = node.netdev(&error(CLIENT, node.addr, &answer.packet));
    let found = see_error(&out.packet);
    assert_eq!(
        (out.verdict, found),
        (REDIRECT, (node.addr, REMOTE, at(REMOTE, 8080), taken))
    );
}

/// A machine outside, a load balancer's address that is routed to one node, and backends of both
/// nodes in pods: TCP and UDP, with and without checksum offload.
#[test]
fn a_client_outside_reaches_all_backends() {
    let cluster = cluster();
    let [first, second] = &cluster.nodes;
    let outside = NetNs::create("out");
    crate::node::without_ipv6(&outside);
    outside.ip(&[
        "link", "add", "eth0", "type", "veth", "peer", "name", "wire",
    ]);
    outside.ip(&[
        "link",
        "set",
        "wire",
        "name",
        "wout",
        "netns",
        cluster.wire.name(),
    ]);
    cluster
        .wire
        .ip(&["link", "set", "wout", "master", "foilbr", "up"]);
    outside.ip(&["addr", "add", "172.31.0.99/24", "dev", "eth0"]);
    outside.ip(&["link", "set", "eth0", "up"]);
    let via = first.addr.to_string();
    outside.ip(&["route", "add", "198.51.100.7", "via", &via]);
    let (local, remote) = (first.pods[1].addr, second.pods[0].addr);
    for (index, protocol) in [TCP, UDP].into_iter().enumerate() {
        let id = 10 * (1 + index as u32);
        let own = [(id + 1, local, 8080)];
        let others = [(id + 2, remote, 8080)];
        let port = |port| at(Ipv4Addr::UNSPECIFIED, port);
        first.put_external(port(30_001), protocol, external(id + 1), &own);
        first.put_external(port(30_002), protocol, external(id + 2), &others);
        let table = [(id + 3, local, 8080), (id + 4, remote, 8080)];
        first.put_external(at(BALANCED, 80), protocol, external(id + 3), &table);
        first.put_external(port(30_003), protocol, external(id + 4), &[]);
    }
    let stop = AtomicBool::new(false);
    for offload in [true, false] {
        if !offload {
            crate::offload::switch_off(&outside, "eth0");
            crate::offload::switch_off(&first.netns, "eth0");
        }
        stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let _stop = Raise(&stop);
            for pod in [&first.pods[1], &second.pods[0]] {
                serve_tcp(scope, &pod.netns, &stop);
                serve_udp(scope, &pod.netns, &stop);
            }
            let clients = [&outside, &first.pods[0].netns, &second.pods[0].netns];
            for netns in clients {
                for to in [(first.addr, 30_001), (first.addr, 30_002), (BALANCED, 80)] {
                    // The other node does not have the load balancer's address.
                    if to.0 == BALANCED && std::ptr::eq(netns, clients[2]) {
                        continue;
                    }
                    for _ in 0..4 {
                        bulk(netns, to, 300_001);
                        datagrams(netns, to, 10);
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
    let refusal = connect(&outside, (first.addr, 30_003)).expect_err("a refusal");
    assert_eq!(refusal.kind(), ErrorKind::ConnectionRefused);
    let socket = outside.enter(|| UdpSocket::bind(("0.0.0.0", 0)).expect("bind"));
    socket
        .set_read_timeout(Some(crate::live::PATIENCE))
        .expect("time-out");
    socket.connect((first.addr, 30_003)).expect("connect");
    socket.send(b"query").expect("send");
    let refusal = retry_on_intr(|| socket.recv(&mut [0; 8])).expect_err("a refusal");
    assert_eq!(refusal.kind(), ErrorKind::ConnectionRefused);
}
