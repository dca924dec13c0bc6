//! Real traffic between namespaces, through sockets, with the checksums and segments that the
//! kernel makes of it.

use crate::node::{Folder, Node, OTHER_VIP, PORT, TCP, UDP, VIP, without_ipv6};
use crate::offload::switch_off;
use agent_sys::bpf::Datapath;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::Duration;
use tests_harness::{NetNs, retry_on_intr};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);

/// Long enough for any machine; a test that waits this long fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often a server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(200);

/// Two nodes on a bridge.
pub(crate) struct Cluster {
    pub(crate) nodes: [Node; 2],
    pub(crate) wire: NetNs,
}

/// Raises a flag when the test ends, also by a panic, so that its threads end.
pub(crate) struct Raise<'a>(pub(crate) &'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn cluster() -> Cluster {
    let wire = NetNs::create("wire");
    without_ipv6(&wire);
    wire.ip(&["link", "add", "foilbr", "type", "bridge"]);
    wire.ip(&["link", "set", "foilbr", "up"]);
    let first = Ipv4Addr::new(172, 31, 0, 11);
    let second = Ipv4Addr::new(172, 31, 0, 12);
    let nodes = [
        Node::with(first, &[CLIENT, SERVER], Folder::new()),
        Node::with(second, &[REMOTE], Folder::new()),
    ];
    for (number, node) in nodes.iter().enumerate() {
        let name = format!("w{number}");
        node.netns
            .ip(&["link", "set", "wire", "name", &name, "netns", wire.name()]);
        wire.ip(&["link", "set", &name, "master", "foilbr", "up"]);
    }
    let via = |node: &Node, block: &str, to: Ipv4Addr| {
        node.netns
            .ip(&["route", "add", block, "via", &to.to_string(), "dev", "eth0"]);
        node.datapath.maps().bump_node_generation().expect("bump");
    };
    via(&nodes[0], "10.244.2.0/24", second);
    via(&nodes[1], "10.244.1.0/24", first);
    for node in &nodes {
        node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
        node.put_service(OTHER_VIP, 2, TCP, &[(4, REMOTE, 8080)]);
        node.put_service(VIP, 3, UDP, &[(5, SERVER, 8080)]);
        node.put_service(OTHER_VIP, 4, UDP, &[(6, REMOTE, 8080)]);
    }
    Cluster { nodes, wire }
}

/// Serves TCP on 8080 until told to stop: what comes is sent back.
pub(crate) fn serve_tcp<'s>(scope: &'s Scope<'s, '_>, netns: &'s NetNs, stop: &'s AtomicBool) {
    let listener = netns.enter(|| TcpListener::bind(("0.0.0.0", 8080)).expect("listen"));
    listener.set_nonblocking(true).expect("non-blocking");
    scope.spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    scope.spawn(move || echo(stream, &mut vec![0; 65_536], stop));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("accept: {error}"),
            }
        }
    });
}

/// Sends back what comes, until the client ends or all servers are to. It has no patience of its
/// own: a client may have others to ask first, and one that was reset says nothing.
pub(crate) fn echo(mut stream: TcpStream, buffer: &mut [u8], stop: &AtomicBool) {
    stream.set_nonblocking(false).expect("blocking");
    stream.set_read_timeout(Some(LOOK)).expect("time-out");
    loop {
        match retry_on_intr(|| stream.read(buffer)) {
            Ok(read @ 1..) => {
                if stream.write_all(&buffer[..read]).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
            Ok(0) | Err(_) => return,
        }
    }
}

pub(crate) fn serve_udp<'s>(scope: &'s Scope<'s, '_>, netns: &'s NetNs, stop: &'s AtomicBool) {
    let socket = netns.enter(|| UdpSocket::bind(("0.0.0.0", 8080)).expect("bind"));
    socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .expect("time-out");
    scope.spawn(move || {
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                socket.send_to(&buffer[..len], from).expect("answer");
            }
        }
    });
}

pub(crate) fn connect(netns: &NetNs, to: (Ipv4Addr, u16)) -> std::io::Result<TcpStream> {
    let to = SocketAddrV4::new(to.0, to.1);
    let stream = netns.enter(|| TcpStream::connect_timeout(&to.into(), PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends `total` bytes and has them back, in order and unchanged.
pub(crate) fn bulk(netns: &NetNs, to: (Ipv4Addr, u16), total: usize) {
    let stream = connect(netns, to).expect("connect");
    let pattern: Vec<u8> = (0..65_536u32).map(|i| (i * 31 % 251) as u8).collect();
    let mut writer = stream.try_clone().expect("clone");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut left = total;
            while left > 0 {
                let part = left.min(pattern.len());
                writer.write_all(&pattern[..part]).expect("write");
                left -= part;
            }
            writer.shutdown(Shutdown::Write).expect("shutdown");
        });
        let mut reader = &stream;
        let mut at = 0;
        let mut buffer = vec![0; 65_536];
        loop {
            let read = retry_on_intr(|| reader.read(&mut buffer)).expect("read");
            if read == 0 {
                break;
            }
            for byte in &buffer[..read] {
                assert_eq!(*byte, pattern[at % pattern.len()], "byte {at}");
                at += 1;
            }
        }
        assert_eq!(at, total);
    });
}

pub(crate) fn datagrams(netns: &NetNs, to: (Ipv4Addr, u16), count: u32) {
    let socket = netns.enter(|| UdpSocket::bind(("0.0.0.0", 0)).expect("bind"));
    socket.set_read_timeout(Some(PATIENCE)).expect("time-out");
    socket.connect(to).expect("connect");
    for number in 0..count {
        let sent = number.to_be_bytes().repeat(1 + number as usize % 300);
        socket.send(&sent).expect("send");
        let mut buffer = [0; 2048];
        let len = retry_on_intr(|| socket.recv(&mut buffer)).expect("answer");
        assert_eq!(buffer[..len], sent);
    }
}

/// Everybody reaches both services and both pods, with checksums offloaded.
pub(crate) fn everybody(cluster: &Cluster) {
    let [first, second] = &cluster.nodes;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Or its servers would go on after a failure.
        let _stop = Raise(&stop);
        for pod in [&first.pods[1], &second.pods[0]] {
            serve_tcp(scope, &pod.netns, &stop);
            serve_udp(scope, &pod.netns, &stop);
        }
        let clients = [
            ("pod", &first.pods[0].netns),
            ("node", &first.netns),
            ("server itself", &first.pods[1].netns),
            ("pod of the other node", &second.pods[0].netns),
            ("other node", &second.netns),
        ];
        for (who, netns) in clients {
            for to in [
                (VIP, PORT),
                (OTHER_VIP, PORT),
                (SERVER, 8080),
                (REMOTE, 8080),
            ] {
                eprintln!("{who} to {to:?}");
                bulk(netns, to, 3_000_001);
                datagrams(netns, to, 30);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn everybody_reaches_everything() {
    let cluster = cluster();
    everybody(&cluster);
    let [first, second] = &cluster.nodes;
    // Pod, node and the server itself used each service once by TCP.
    for node in [first, second] {
        let clients = if node.addr == first.addr { 3 } else { 2 };
        for backend in [3, 4, 5, 6] {
            assert_eq!(node.connections(backend), clients, "backend {backend}");
        }
        let drops: Vec<_> = node
            .counters()
            .into_iter()
            .filter(|(what, _, _)| !matches!(what, agent_sys::maps::Counted::Decided))
            .collect();
        assert!(drops.is_empty(), "{drops:?}");
    }
}

/// The same with every checksum computed by the kernel and verified by the receiver: partial
/// checksums that were translated wrongly would be lost segments here.
#[test]
fn everybody_reaches_everything_without_offload_on_the_wire() {
    let cluster = cluster();
    for node in &cluster.nodes {
        switch_off(&node.netns, "eth0");
    }
    everybody(&cluster);
}

/// Whole checksums from the pods: the other kind of translation.
#[test]
fn everybody_reaches_everything_without_offload_in_the_pods() {
    let cluster = cluster();
    for node in &cluster.nodes {
        switch_off(&node.netns, "foil0");
        for pod in &node.pods {
            switch_off(&pod.netns, "eth0");
        }
    }
    everybody(&cluster);
}

/// A connection whose backend is taken away ends at the next thing that is sent, not by a
/// time-out; new ones are refused at once, and so is UDP.
#[test]
fn a_backend_that_goes_away() {
    let node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    node.put_service(VIP, 2, UDP, &[(4, SERVER, 8080)]);
    let stop = AtomicBool::new(false);
    let client = &node.pods[0].netns;
    std::thread::scope(|scope| {
        serve_tcp(scope, &node.pods[1].netns, &stop);
        for netns in [client, &node.netns] {
            node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
            let mut stream = connect(netns, (VIP, PORT)).expect("connect");
            stream.write_all(b"ping").expect("write");
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).expect("answer");
            node.put_service(VIP, 1, TCP, &[]);
            node.datapath.maps().delete_backend(3).expect("delete");
            stream.write_all(b"ping").expect("write");
            let error = retry_on_intr(|| stream.read(&mut answer)).expect_err("an end");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            let error = connect(netns, (VIP, PORT)).expect_err("a refusal");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        stop.store(true, Ordering::Relaxed);
    });
    // First by the backend's own stack, where nothing listens any more, then by us.
    for backends in [&[(4, SERVER, 8080)][..], &[]] {
        node.put_service(VIP, 2, UDP, backends);
        for netns in [client, &node.netns] {
            let socket = netns.enter(|| UdpSocket::bind(("0.0.0.0", 0)).expect("bind"));
            socket.set_read_timeout(Some(PATIENCE)).expect("time-out");
            socket.connect((VIP, PORT)).expect("connect");
            socket.send(b"query").expect("send");
            let error = retry_on_intr(|| socket.recv(&mut [0; 8])).expect_err("a refusal");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
    }
}

/// Programs are swapped and maps adopted under a running connection, which notices nothing.
#[test]
fn an_agent_that_comes_back() {
    let mut node = Node::new(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    let config = node.config();
    let stop = AtomicBool::new(false);
    for _ in 0..3 {
        let before = node.datapath.attached().expect("attached");
        let client = &node.pods[0].netns;
        let server = &node.pods[1].netns;
        let netns = &node.netns;
        let reopened = std::thread::scope(|scope| {
            stop.store(false, Ordering::Relaxed);
            serve_tcp(scope, server, &stop);
            let traffic = scope.spawn(|| bulk(client, (VIP, PORT), 30_000_000));
            let reopened = netns.enter(|| Datapath::open(&config).expect("open again"));
            traffic.join().expect("traffic");
            stop.store(true, Ordering::Relaxed);
            reopened
        });
        node.datapath = reopened;
        let after = node.datapath.attached().expect("attached");
        assert_eq!(before.len(), after.len());
        for (before, after) in before.iter().zip(&after) {
            assert_eq!((before.ifindex, before.hook), (after.ifindex, after.hook));
            assert_ne!(before.program_id, after.program_id, "not swapped");
        }
    }
    assert_eq!(node.connections(3), 3);
}
