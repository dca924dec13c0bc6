//! Connections that are held and used now and then, while others are opened and the sweep runs.

use crate::live::{Raise, connect, echo};
use crate::node::{Node, OTHER_VIP, PORT, TCP, VIP};
use ebpf_common::conntrack::FlowKey4;
use ebpf_common::net::Be32;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::Scope;
use std::time::Duration;
use tests_harness::{NetNs, binary};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
/// Silence of a held connection: the time of an entry is written once a second at most.
const SILENCE: Duration = Duration::from_millis(1_100);
/// Other entries, so that a pass over all takes its time.
const OTHERS: u32 = 60_000;
/// Entries that the map has: none is evicted.
const ENTRIES: u32 = 1 << 19;

/// How much is done.
struct Load {
    /// Connections that are held.
    held: usize,
    /// Times that each of them is used, at least.
    rounds: u32,
    /// Connections that are opened meanwhile, at least.
    opened: u32,
    /// Threads that open them.
    openers: u32,
    /// Ports of the client. The fewer, the more often a new connection has that of a held one.
    ports: &'static str,
}

const SHORT: Load = Load {
    held: 300,
    rounds: 6,
    opened: 1_000,
    openers: 1,
    ports: "40000 56383",
};
/// A minute or more.
const LONG: Load = Load {
    held: 2_000,
    rounds: 55,
    opened: 500_000,
    openers: 8,
    ports: "1024 65535",
};

/// `$FOIL_LONG`: tests with a long form run that.
fn load() -> Load {
    #[expect(
        clippy::disallowed_methods,
        reason = "the arguments of a test program are libtest's"
    )]
    let long = std::env::var_os("FOIL_LONG").is_some();
    if long { LONG } else { SHORT }
}

/// No connection that is in use is ever removed, whenever the sweep has read its clock, and
/// no new one takes its reply tuple, although both services have one backend.
#[test]
fn held_connections_survive_the_sweep() {
    let load = load();
    let pods = [CLIENT, SERVER];
    let node = Node::measured(&pods, &binary("hydrofoil.bpf.o"), ENTRIES);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    node.put_service(OTHER_VIP, 2, TCP, &[(4, SERVER, 8080)]);
    let client = &node.pods[0].netns;
    // Ports are used again as soon as their connection is closed.
    client.enter(|| {
        let settings = [("tcp_tw_reuse", "1"), ("ip_local_port_range", load.ports)];
        for (name, value) in settings {
            std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value).expect(name);
        }
    });
    let stop = AtomicBool::new(false);
    let opened = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        serve(scope, &node.pods[1].netns, &stop);
        let mut held: Vec<TcpStream> = (0..load.held)
            .map(|number| {
                connect(client, (VIP, PORT)).unwrap_or_else(|error| panic!("{number}: {error}"))
            })
            .collect();
        crowd(&node);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                node.sweep();
            }
        });
        for _ in 0..load.openers {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let asked =
                        connect(client, (OTHER_VIP, PORT)).and_then(|mut stream| ask(&mut stream));
                    // The server ends with the test.
                    let stopped = stop.load(Ordering::Relaxed);
                    let number = opened.fetch_add(1, Ordering::Relaxed);
                    assert!(
                        asked.is_ok() || stopped,
                        "new connection {number}: {asked:?}"
                    );
                }
            });
        }
        let mut round = 0;
        while round < load.rounds || opened.load(Ordering::Relaxed) < load.opened {
            for (number, stream) in held.iter_mut().enumerate() {
                ask(stream).unwrap_or_else(|error| {
                    panic!("connection {number} died in round {round}: {error}")
                });
            }
            std::thread::sleep(SILENCE);
            round += 1;
        }
        println!("{round} rounds, {} opened", opened.load(Ordering::Relaxed));
    });
    // A new connection had the client port of a held one, and another source port for it.
    let moved = node.datapath.maps().flows().expect("flows");
    let moved = moved
        .iter()
        .filter(|(key, flow)| !flow.is_reply() && flow.sport != key.sport)
        .count();
    println!("{moved} took another port");
    assert!(moved > 0, "no new connection has met a held one");
}

fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0; 4])
}

/// Serves TCP on 8080 until told to stop: many connections, a thread each.
fn serve<'s>(scope: &'s Scope<'s, '_>, netns: &'s NetNs, stop: &'s AtomicBool) {
    let listener = netns.enter(|| TcpListener::bind(("0.0.0.0", 8080)).expect("listen"));
    listener.set_nonblocking(true).expect("non-blocking");
    scope.spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    let thread = std::thread::Builder::new().stack_size(64 << 10);
                    let thread =
                        thread.spawn_scoped(scope, move || echo(stream, &mut [0; 64], stop));
                    thread.expect("a thread");
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("accept: {error}"),
            }
        }
    });
}

/// Entries like one of the connections, of clients that send nothing.
fn crowd(node: &Node) {
    let maps = node.datapath.maps();
    let all = maps.flows().expect("flows");
    let like = all.into_iter().find(|(_, flow)| !flow.is_reply());
    let (key, flow) = like.expect("a connection");
    let others: Vec<_> = (0..OTHERS)
        .map(|number| {
            let src = Be32::new(0x0b00_0000 + number);
            (FlowKey4 { src, ..key }, flow)
        })
        .collect();
    maps.put_flows(&others).expect("put flows");
}
