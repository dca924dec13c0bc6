//! Connections that are held and used now and then, while others are opened and the sweep runs.

use crate::live::{Raise, connect, serve_tcp};
use crate::node::{Node, PORT, TCP, VIP};
use ebpf_common::conntrack::FlowKey4;
use ebpf_common::net::Be32;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
/// Connections that are held.
const HELD: usize = 300;
/// Times that each of them is used.
const ROUNDS: u32 = 6;
/// Silence between them: the time of an entry is written once a second at most.
const SILENCE: Duration = Duration::from_millis(1_100);
/// Other entries, so that a pass over all takes its time.
const OTHERS: u32 = 60_000;

/// No connection that is in use is ever removed, whenever the sweep has read its clock.
#[test]
fn held_connections_survive_the_sweep() {
    let node = Node::quiet(&[CLIENT, SERVER]);
    node.put_service(VIP, 1, TCP, &[(3, SERVER, 8080)]);
    let client = &node.pods[0].netns;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        serve_tcp(scope, &node.pods[1].netns, &stop);
        let mut held: Vec<TcpStream> = (0..HELD)
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
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let asked = connect(client, (VIP, PORT)).and_then(|mut stream| ask(&mut stream));
                // The server ends with the test.
                let stopped = stop.load(Ordering::Relaxed);
                assert!(asked.is_ok() || stopped, "{asked:?}");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        for round in 0..ROUNDS {
            for (number, stream) in held.iter_mut().enumerate() {
                ask(stream).unwrap_or_else(|error| {
                    panic!("connection {number} died in round {round}: {error}")
                });
            }
            std::thread::sleep(SILENCE);
        }
    });
}

fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0; 4])
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
