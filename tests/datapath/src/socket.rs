//! TCP connections that are translated at `connect`, by real sockets in a control group.

use crate::balance::external;
use crate::group::Group;
use crate::live::{PATIENCE, Raise, bulk, cluster, connect, datagrams, serve_tcp, serve_udp};
use crate::node::{Node, PORT, TCP, UDP, VIP, decided};
use agent_sys::bpf::Datapath;
use ebpf_common::conntrack::Flow4;
use ebpf_common::counter::Hook;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect as connect_socket, setsockopt,
    socket, sockopt,
};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::Duration;
use tests_harness::{NetNs, retry_on_intr, wait_until};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 7);
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);
const OTHER_VIP: Ipv4Addr = crate::node::OTHER_VIP;

/// A node whose pods' connections are translated, with a service of the first server.
fn node(pods: &[Ipv4Addr]) -> (Node, Group) {
    let node = Node::new(pods);
    let group = Group::new();
    node.datapath.attach_group(group.folder()).expect("attach");
    (node, group)
}

fn open(to: (Ipv4Addr, u16)) -> std::io::Result<TcpStream> {
    let to = SocketAddr::from(SocketAddrV4::new(to.0, to.1));
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The peer answers on the connection.
fn answers(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"ping")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"ping");
    Ok(())
}

/// The entry of a client's TCP connection as one to `to`.
fn flow(node: &Node, stream: &TcpStream, to: (Ipv4Addr, u16)) -> Option<Flow4> {
    let from = stream.local_addr().expect("local address").port();
    let flows = node.datapath.maps().flows().expect("flows");
    let found = flows.into_iter().filter(|(key, flow)| {
        key.protocol() == TCP
            && !flow.is_reply()
            && Ipv4Addr::from(key.dst) == to.0
            && key.dport.get() == to.1
            && key.sport.get() == from
    });
    found.map(|(_, flow)| flow).next()
}

/// The unspecified address is the pod itself, and no node port, which has that key.
#[test]
fn the_unspecified_address_is_the_pod() {
    let (node, group) = node(&[CLIENT, SERVER]);
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 8080);
    node.put_external(any, TCP, external(1), &[(3, SERVER, 8080)]);
    let stop = AtomicBool::new(false);
    let own = &node.pods[0].netns;
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        serve_tcp(scope, own, &stop);
        let mapped: SocketAddr = "[::ffff:0.0.0.0]:8080".parse().unwrap();
        for to in [SocketAddr::from(any), mapped] {
            let mut stream = group.enter(own, || {
                let stream = TcpStream::connect_timeout(&to, PATIENCE).expect("connect");
                stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
                stream
            });
            answers(&mut stream).expect("an answer");
            let peer = stream.peer_addr().expect("peer").ip().to_canonical();
            assert!(peer.is_loopback(), "{peer}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(node.connections(3), 0);
}

#[test]
fn the_connection_is_one_to_the_backend_and_its_peer_the_service() {
    let (node, group) = node(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        serve_tcp(scope, &node.pods[1].netns, &stop);
        let mapped: SocketAddr = format!("[{}]:{PORT}", VIP.to_ipv6_mapped())
            .parse()
            .unwrap();
        let plain = SocketAddr::from((VIP, PORT));
        for (number, to) in [plain, mapped].into_iter().enumerate() {
            let mut stream = group.enter(&node.pods[0].netns, || {
                TcpStream::connect_timeout(&to, PATIENCE).expect("connect")
            });
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            answers(&mut stream).expect("answer");
            assert_eq!(stream.peer_addr().unwrap(), to);
            let found = flow(&node, &stream, (SERVER, 8080)).expect("a flow to the backend");
            assert_eq!((found.backend, found.translates()), (3, false), "{to}");
            assert_eq!(flow(&node, &stream, (VIP, PORT)), None);
            assert_eq!(node.connections(3), number as u64 + 1);
        }
    });
    let (decided, ..) = decided(Hook::FromPod, 0);
    assert!(node.counters().iter().all(|(what, ..)| *what == decided));
}

/// Processes of no pod, pods of the host network, and datagrams: packet by packet, as before.
#[test]
fn what_is_not_a_connection_of_a_pod_stays_as_it_is() {
    let (node, group) = node(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    node.put_service(VIP, 2, UDP, &[(4, SERVER, 8080)]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        serve_tcp(scope, &node.pods[1].netns, &stop);
        serve_udp(scope, &node.pods[1].netns, &stop);
        let outside = connect(&node.pods[0].netns, (VIP, PORT)).expect("outside of the group");
        let host = group.enter(&node.netns, || open((VIP, PORT)).expect("host network"));
        group.enter(&node.pods[0].netns, || {
            datagrams(&node.pods[0].netns, (VIP, PORT), 3);
        });
        for mut stream in [outside, host] {
            answers(&mut stream).expect("answer");
            assert_eq!(stream.peer_addr().unwrap(), SocketAddr::from((VIP, PORT)));
            let found = flow(&node, &stream, (VIP, PORT)).expect("a flow of the service");
            assert!(found.translates());
            assert_eq!(flow(&node, &stream, (SERVER, 8080)), None);
        }
    });
    assert_eq!((node.connections(3), node.connections(4)), (2, 1));
}

#[test]
fn everything_arrives_from_both_nodes() {
    let cluster = cluster();
    let group = Group::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        let [first, second] = &cluster.nodes;
        for pod in [&first.pods[1], &second.pods[0]] {
            serve_tcp(scope, &pod.netns, &stop);
        }
        for node in [first, second] {
            node.datapath.attach_group(group.folder()).expect("attach");
            for vip in [VIP, OTHER_VIP] {
                let netns = &node.pods[0].netns;
                group.enter(netns, || bulk(netns, (vip, PORT), 3_000_001));
            }
            node.datapath.detach_group().expect("detach");
            assert_eq!((node.connections(3), node.connections(4)), (1, 1));
        }
    });
}

/// A service without backends, or a port that it lacks, is refused at once as it is without.
#[test]
fn without_a_backend_the_client_is_refused() {
    let (node, group) = node(&[CLIENT]);
    node.put_service(VIP, 1, TCP, &[]);
    for to in [(VIP, PORT), (VIP, PORT + 1), (OTHER_VIP, PORT)] {
        let refused = group.enter(&node.pods[0].netns, || open(to).expect_err("a refusal"));
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{to:?}");
    }
}

/// No packet of the connection is translated, and still it ends with its backend: at the next
/// packet, on this node and on another one.
#[test]
fn a_backend_that_goes_away_ends_its_connections() {
    let cluster = cluster();
    let node = &cluster.nodes[0];
    let group = Group::new();
    node.datapath.attach_group(group.folder()).expect("attach");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        serve_tcp(scope, &node.pods[1].netns, &stop);
        serve_tcp(scope, &cluster.nodes[1].pods[0].netns, &stop);
        let client = &node.pods[0].netns;
        for (vip, id, backend, addr) in [(VIP, 1, 3, SERVER), (OTHER_VIP, 2, 4, REMOTE)] {
            let mut direct = connect(client, (addr, 8080)).expect("connect");
            let mut stream = group.enter(client, || open((vip, PORT)).expect("connect"));
            answers(&mut stream).expect("answer");
            node.put_service(vip, id, TCP, &[]);
            // Terminating: it keeps what it has.
            answers(&mut stream).expect("answer");
            node.datapath
                .maps()
                .delete_backend(backend)
                .expect("delete");
            stream.write_all(b"ping").expect("write");
            let error = retry_on_intr(|| stream.read(&mut [0; 4])).expect_err("an end");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            let refused = group.enter(client, || open((vip, PORT)).expect_err("a refusal"));
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            // One to the pod itself is not the service's.
            answers(&mut direct).expect("answer");
        }
    });
}

/// New connections go to the backends that the service has at that moment.
#[test]
fn new_backends_take_new_connections() {
    let (node, group) = node(&[CLIENT, SERVER, OTHER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        serve_tcp(scope, &node.pods[1].netns, &stop);
        serve_tcp(scope, &node.pods[2].netns, &stop);
        let client = &node.pods[0].netns;
        let mut first = group.enter(client, || open((VIP, PORT)).expect("connect"));
        node.put_service(VIP, 1, TCP, &[(4, OTHER, 8080)]);
        let mut second = group.enter(client, || open((VIP, PORT)).expect("connect"));
        for stream in [&mut first, &mut second] {
            answers(stream).expect("answer");
        }
        assert_eq!((node.connections(3), node.connections(4)), (1, 1));
        // And all of several get some.
        node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080), (4, OTHER, 8080)]);
        group.enter(client, || {
            for _ in 0..60 {
                open((VIP, PORT)).expect("connect");
            }
        });
        let shares = [node.connections(3) - 1, node.connections(4) - 1];
        assert_eq!(shares[0] + shares[1], 60);
        assert!(shares.iter().all(|share| *share > 5), "{shares:?}");
    });
}

/// A pod that is its own backend connects to its own address, and no packet leaves it.
#[test]
fn a_pod_reaches_itself() {
    let (node, group) = node(&[CLIENT]);
    node.put_service(VIP, 1, TCP, &[(3, CLIENT, 8080)]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        let pod = &node.pods[0].netns;
        serve_tcp(scope, pod, &stop);
        group.enter(pod, || bulk(pod, (VIP, PORT), 300_001));
        let stream = group.enter(pod, || open((VIP, PORT)).expect("connect"));
        assert_eq!(stream.peer_addr().unwrap(), SocketAddr::from((VIP, PORT)));
        assert_eq!(stream.local_addr().unwrap().ip(), CLIENT);
    });
    assert_eq!(node.connections(3), 2);
    node.assert_counters(vec![]);
}

/// What the socket was connected to before says nothing about its next connection.
#[test]
fn a_socket_that_is_connected_again() {
    let (node, group) = node(&[CLIENT, SERVER]);
    // Nothing listens there.
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8081)]);
    node.put_service(OTHER_VIP, 2, TCP, &[(4, SERVER, 8080)]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        serve_tcp(scope, &node.pods[1].netns, &stop);
        for (to, backend) in [((SERVER, 8080), 0), ((OTHER_VIP, PORT), 4)] {
            let stream = group.enter(&node.pods[0].netns, || {
                let (inet, stream) = (AddressFamily::Inet, SockType::Stream);
                let socket = socket(inet, stream, SockFlag::empty(), None).expect("socket");
                let [refusing, to] = [(VIP, PORT), to]
                    .map(|(addr, port)| SockaddrIn::from(SocketAddrV4::new(addr, port)));
                let refused = connect_socket(socket.as_raw_fd(), &refusing);
                assert_eq!(refused, Err(Errno::ECONNREFUSED));
                connect_socket(socket.as_raw_fd(), &to).expect("connect");
                TcpStream::from(socket)
            });
            assert_eq!(stream.peer_addr().unwrap(), SocketAddr::from(to));
            let found = flow(&node, &stream, (SERVER, 8080)).expect("a flow");
            assert_eq!(found.backend, backend);
        }
    });
    assert_eq!((node.connections(3), node.connections(4)), (2, 1));
}

/// One byte there, one back, then the server closes, so that it has the TIME-WAIT.
fn serve_once<'s>(scope: &'s Scope<'s, '_>, netns: &NetNs, stop: &'s AtomicBool) {
    let listener = netns.enter(|| TcpListener::bind(("0.0.0.0", 8080)).expect("listen"));
    listener.set_nonblocking(true).expect("non-blocking");
    scope.spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let Ok((mut stream, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            stream.set_nonblocking(false).expect("blocking");
            stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a byte");
            stream.write_all(&byte).expect("write");
        }
    });
}

/// A connection from this port; while the one before it has not quite ended, tried again.
fn from_port(port: u16, to: (Ipv4Addr, u16)) {
    let to = SockaddrIn::from(SocketAddrV4::new(to.0, to.1));
    let mut stream = wait_until("a free port", || {
        let (inet, stream) = (AddressFamily::Inet, SockType::Stream);
        let socket = socket(inet, stream, SockFlag::empty(), None).expect("socket");
        setsockopt(&socket, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
        let own = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
        bind(socket.as_raw_fd(), &own).map_err(|error| error.to_string())?;
        match connect_socket(socket.as_raw_fd(), &to) {
            Ok(()) => Ok(TcpStream::from(socket)),
            Err(error @ Errno::EADDRNOTAVAIL) => Err(error.to_string()),
            Err(error) => panic!("connect: {error}"),
        }
    });
    stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
    stream.write_all(b"x").expect("write");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("read");
    assert_eq!(all, b"x");
}

/// Resets that the namespace's own stack has sent (RFC 4022, tcpOutRsts).
fn resets_sent(netns: &NetNs) -> u64 {
    let text = netns.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"));
    let text = text.expect("read counters");
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
    let at = names.split(' ').position(|name| name == "OutRsts").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

/// A client port through the service, then directly, and so on. The two addresses have different
/// bases of TCP timestamps: translated by packets, every other SYN is older than what the server
/// has in TIME-WAIT, is answered by a challenge ACK, and the client has to reset and begin again.
#[test]
fn a_port_used_through_the_service_and_directly() {
    let (node, group) = node(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        serve_once(scope, &node.pods[1].netns, &stop);
        let client = &node.pods[0].netns;
        group.enter(client, || {
            for _ in 0..10 {
                from_port(40_000, (VIP, PORT));
                from_port(40_000, (SERVER, 8080));
            }
        });
        assert_eq!(resets_sent(client), 0);
        assert_eq!(node.connections(3), 10);
        client.enter(|| {
            for _ in 0..10 {
                from_port(41_000, (VIP, PORT));
                from_port(41_000, (SERVER, 8080));
            }
        });
        eprintln!("translated by packets: {} resets", resets_sent(client));
    });
}

/// The links outlive the agent, the next one puts its programs behind them, and an agent that is
/// configured so takes them off: connections that are there stay.
#[test]
fn links_are_swapped_moved_and_removed() {
    let (mut node, group) = node(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    let before = node.datapath.attached_to_group().expect("attached");
    assert_eq!(before.len(), 4);
    let config = node.config();
    node.datapath = node
        .netns
        .enter(|| Datapath::open(&config).expect("open again"));
    node.datapath.attach_group(group.folder()).expect("attach");
    let after = node.datapath.attached_to_group().expect("attached");
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((before.program, before.group), (after.program, after.group));
        assert_ne!(before.program_id, after.program_id, "not swapped");
    }
    // To another group, while the first one is there and after it is gone.
    for keep in [true, false] {
        let other = Group::new();
        node.datapath.attach_group(other.folder()).expect("move");
        let moved = node.datapath.attached_to_group().expect("attached");
        assert!(moved.iter().all(|one| one.group != before[0].group));
        if !keep {
            drop(other);
            wait_until("the end of the links", || {
                let left = node.datapath.attached_to_group().expect("attached");
                if left.is_empty() {
                    Ok(())
                } else {
                    Err(format!("{left:?}"))
                }
            });
        }
        node.datapath.attach_group(group.folder()).expect("back");
        let back = node.datapath.attached_to_group().expect("attached");
        assert!(back.iter().all(|one| one.group == before[0].group));
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        serve_tcp(scope, &node.pods[1].netns, &stop);
        let client = &node.pods[0].netns;
        let mut first = group.enter(client, || open((VIP, PORT)).expect("connect"));
        node.datapath.detach_group().expect("detach");
        node.datapath.detach_group().expect("nothing left");
        assert_eq!(node.datapath.attached_to_group().expect("attached"), []);
        let mut second = group.enter(client, || open((VIP, PORT)).expect("connect"));
        for stream in [&mut first, &mut second] {
            answers(stream).expect("answer");
        }
        assert!(flow(&node, &first, (SERVER, 8080)).is_some());
        assert!(flow(&node, &second, (VIP, PORT)).is_some());
        node.datapath.maps().delete_backend(3).expect("delete");
        for stream in [&mut first, &mut second] {
            let ended = answers(stream).expect_err("an end");
            assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
        }
    });
    let missing = std::path::Path::new("/nowhere/group");
    let error = node.datapath.attach_group(missing).expect_err("no group");
    assert!(error.to_string().contains("sock_getpeer4"), "{error}");
}
