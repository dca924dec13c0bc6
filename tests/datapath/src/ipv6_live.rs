//! Real IPv6 traffic between namespaces, through sockets.

use crate::group::Group;
use crate::live::{PATIENCE, Raise};
use crate::node::{Node, OTHER_VIP, PORT, TCP, UDP, VIP};
use crate::offload::switch_off;
use crate::six::six;
use ebpf_common::net::Be16;
use ebpf_common::service::{Frontend, FrontendKey, NODE_PORTS6};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::Duration;
use tests_harness::NetNs;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);

/// How often a server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// Two nodes of both families on a bridge.
struct Cluster {
    nodes: [Node; 2],
    _wire: NetNs,
}

fn cluster() -> Cluster {
    let wire = NetNs::create("wire");
    crate::node::without_ipv6(&wire);
    wire.ip(&["link", "add", "foilbr", "type", "bridge"]);
    wire.ip(&["link", "set", "foilbr", "up"]);
    let addrs = [11, 12].map(|last| Ipv4Addr::new(172, 31, 0, last));
    let nodes = [
        Node::dual(addrs[0], &[CLIENT, SERVER]),
        Node::dual(addrs[1], &[REMOTE]),
    ];
    for (number, node) in nodes.iter().enumerate() {
        let name = format!("w{number}");
        node.netns
            .ip(&["link", "set", "wire", "name", &name, "netns", wire.name()]);
        wire.ip(&["link", "set", &name, "master", "foilbr", "up"]);
    }
    for (number, block) in [(0, [10, 244, 2, 0]), (1, [10, 244, 1, 0])] {
        let to = format!("{}/120", six(block.into()));
        let via = six(addrs[1 - number]).to_string();
        let route = ["-6", "route", "add", &to, "via", &via, "dev", "eth0"];
        nodes[number].netns.ip(&route);
        let maps = nodes[number].datapath.maps();
        maps.bump_node_generation().expect("bump");
    }
    for node in &nodes {
        node.put_service6(VIP, 1, TCP, &[(3, SERVER, 8080)], 0);
        node.put_service6(OTHER_VIP, 2, TCP, &[(4, REMOTE, 8080)], 0);
        node.put_service6(VIP, 3, UDP, &[(5, SERVER, 8080)], 0);
        node.put_service6(OTHER_VIP, 4, UDP, &[(6, REMOTE, 8080)], 0);
    }
    Cluster { nodes, _wire: wire }
}

/// Serves TCP and UDP on 8080 until told to stop: what comes is sent back.
fn serve<'s>(scope: &'s Scope<'s, '_>, netns: &'s NetNs, stop: &'s AtomicBool) {
    let listener = netns.enter(|| TcpListener::bind(("::", 8080)).expect("listen"));
    listener.set_nonblocking(true).expect("non-blocking");
    scope.spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    scope.spawn(move || echo(stream, stop));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(LOOK / 50)
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("accept: {error}"),
            }
        }
    });
    let socket = netns.enter(|| UdpSocket::bind(("::", 8080)).expect("bind"));
    socket.set_read_timeout(Some(LOOK)).expect("time-out");
    scope.spawn(move || {
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                socket.send_to(&buffer[..len], from).expect("answer");
            }
        }
    });
}

fn echo(mut stream: TcpStream, stop: &AtomicBool) {
    stream.set_nonblocking(false).expect("blocking");
    stream.set_read_timeout(Some(LOOK)).expect("time-out");
    let mut buffer = vec![0; 65_536];
    loop {
        match stream.read(&mut buffer) {
            Ok(read @ 1..) => {
                if stream.write_all(&buffer[..read]).is_err() {
                    return;
                }
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
            Ok(0) | Err(_) => return,
        }
    }
}

fn connect(netns: &NetNs, to: (Ipv4Addr, u16)) -> std::io::Result<TcpStream> {
    let to = SocketAddr::from((six(to.0), to.1));
    let stream = netns.enter(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends a megabyte and has it back.
fn bulk(netns: &NetNs, to: (Ipv4Addr, u16)) {
    let mut stream = connect(netns, to).expect("connect");
    let sent: Vec<u8> = (0..1_000_001u32).map(|i| (i * 31 % 251) as u8).collect();
    let mut writer = stream.try_clone().expect("clone");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&sent).expect("write");
            writer.shutdown(Shutdown::Write).expect("shutdown");
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).expect("read");
        assert!(
            back == sent,
            "{} of {} bytes, or others",
            back.len(),
            sent.len()
        );
    });
}

fn datagram(netns: &NetNs, to: (Ipv4Addr, u16)) -> std::io::Result<()> {
    let socket = netns.enter(|| UdpSocket::bind(("::", 0)).expect("bind"));
    socket.set_read_timeout(Some(PATIENCE)).expect("time-out");
    socket.connect((six(to.0), to.1)).expect("connect");
    socket.send(b"query")?;
    let mut buffer = [0; 16];
    loop {
        match socket.recv(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => {
                assert_eq!(&buffer[..received?], b"query");
                return Ok(());
            }
        }
    }
}

fn everybody(cluster: &Cluster) {
    let [first, second] = &cluster.nodes;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        for pod in [&first.pods[1], &second.pods[0]] {
            serve(scope, &pod.netns, &stop);
        }
        for (who, netns) in [
            ("pod", &first.pods[0].netns),
            ("node", &first.netns),
            ("server itself", &first.pods[1].netns),
            ("pod of the other node", &second.pods[0].netns),
            ("other node", &second.netns),
        ] {
            for to in [
                (VIP, PORT),
                (OTHER_VIP, PORT),
                (SERVER, 8080),
                (REMOTE, 8080),
            ] {
                eprintln!("{who} to {to:?}");
                bulk(netns, to);
                datagram(netns, to).expect("an answer");
            }
        }
    });
    for node in [first, second] {
        let drops: Vec<_> = node
            .counters()
            .into_iter()
            .filter(|(what, ..)| !matches!(what, agent_sys::maps::Counted::Decided))
            .collect();
        assert!(drops.is_empty(), "{drops:?}");
    }
}

#[test]
fn everybody_reaches_everything() {
    everybody(&cluster());
}

/// Every checksum computed by the kernel and verified by the receiver: one that was translated
/// wrongly would be a lost segment.
#[test]
fn everybody_reaches_everything_without_offload() {
    let cluster = cluster();
    for node in &cluster.nodes {
        switch_off(&node.netns, "eth0");
        switch_off(&node.netns, "foil0");
        for pod in &node.pods {
            switch_off(&pod.netns, "eth0");
        }
    }
    everybody(&cluster);
}

#[test]
fn a_refused_client_is_told_at_once() {
    let node = Node::dual(Ipv4Addr::new(172, 31, 0, 11), &[CLIENT, SERVER]);
    node.put_service6(VIP, 1, TCP, &[], 0);
    node.put_service6(VIP, 2, UDP, &[], 0);
    for netns in [&node.pods[0].netns, &node.netns] {
        let error = connect(netns, (VIP, PORT)).expect_err("a refusal");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let error = datagram(netns, (VIP, PORT)).expect_err("a refusal");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}

/// The unspecified address is the pod itself, and no node port, which has that key.
#[test]
fn the_unspecified_address_is_the_pod() {
    let node = Node::dual(Ipv4Addr::new(172, 31, 0, 11), &[CLIENT, SERVER]);
    let group = Group::new();
    node.datapath.attach_group(group.folder()).expect("attach");
    node.put_service6(VIP, 1, TCP, &[(3, SERVER, 8080)], 0);
    let key = FrontendKey {
        addr: NODE_PORTS6,
        port: Be16::new(8080),
        protocol: TCP,
        pad: 0,
    };
    let frontend = Frontend {
        service_port: 1,
        service: 1,
        affinity: 0,
        external: 1,
        flags: 0,
    };
    let maps = node.datapath.maps();
    let put = maps.put_frontend(&key, &frontend, "test/service:port");
    put.expect("put frontend");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        serve(scope, &node.pods[0].netns, &stop);
        let to = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 8080));
        let mut stream = group.enter(&node.pods[0].netns, || {
            TcpStream::connect_timeout(&to, PATIENCE).expect("connect")
        });
        stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
        stream.write_all(b"ping").expect("write");
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).expect("answer");
        let peer = stream.peer_addr().expect("a peer").ip();
        assert!(peer.is_loopback(), "{peer}");
        assert_eq!(node.connections(3), 0);
    });
}

/// A pod's socket is connected to the backend itself, and says that its peer is the service.
#[test]
fn a_connection_is_translated_at_connect() {
    let node = Node::dual(Ipv4Addr::new(172, 31, 0, 11), &[CLIENT, SERVER]);
    let group = Group::new();
    node.datapath.attach_group(group.folder()).expect("attach");
    node.put_service6(VIP, 1, TCP, &[(3, SERVER, 8080)], 0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        serve(scope, &node.pods[1].netns, &stop);
        let to = SocketAddr::from((six(VIP), PORT));
        let mut stream = group.enter(&node.pods[0].netns, || {
            TcpStream::connect_timeout(&to, PATIENCE).expect("connect")
        });
        stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
        stream.write_all(b"ping").expect("write");
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).expect("answer");
        assert_eq!(stream.peer_addr().expect("a peer"), to);
        let flows = node.datapath.maps().flows6().expect("flows");
        let own = flows.iter().find(|(_, flow)| !flow.is_reply());
        let (key, flow) = own.expect("a flow");
        assert_eq!(key.dst, crate::six::addr6(SERVER));
        assert_eq!((flow.backend, flow.translates()), (3, false));
        assert_eq!(node.connections(3), 1);
    });
}
