//! The server over real sockets on loopback, beside an upstream server of the test's own.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{RData, RecordType};
use tokio::runtime::Runtime;

use super::*;
use crate::receive::receive;
use crate::server::{Server, Sockets};

/// Milliseconds, as the tests have it.
static NOW: AtomicU64 = AtomicU64::new(1);

fn clock() -> u64 {
    NOW.load(Ordering::Relaxed)
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// An upstream server, and the names that it was asked for.
struct Upstream {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Upstream {
    /// Names that begin with "no" do not exist, those with "bad" fail, those with "late" are
    /// answered after a while, those with "mute" never.
    fn start() -> Upstream {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let list = asked.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, client)) = socket.recv_from(&mut buffer) {
                let message = Message::from_vec(&buffer[..length]).unwrap();
                let query = message.queries[0].clone();
                let text = query.name().to_lowercase().to_string();
                list.lock().unwrap().push(text.clone());
                let mut reply = message.into_response();
                reply.metadata.message_type = MessageType::Response;
                if text.starts_with("no") {
                    reply.metadata.response_code = ResponseCode::NXDomain;
                    let soa = SOA::new(name("n."), name("h."), 1, 1, 1, 1, 30);
                    let soa = Record::from_rdata(name("example."), 60, RData::SOA(soa));
                    reply.add_authority(soa);
                } else if text.starts_with("bad") {
                    reply.metadata.response_code = ResponseCode::ServFail;
                } else if text.starts_with("mute") {
                    continue;
                } else {
                    if text.starts_with("late") {
                        std::thread::sleep(Duration::from_millis(100));
                    }
                    // A forged answer first: with another id, it is not taken.
                    let forged = Record::from_rdata(query.name().clone(), 60, address_of(66));
                    let mut wrong = reply.clone();
                    wrong.metadata.id ^= 1;
                    wrong.add_answer(forged);
                    socket.send_to(&wrong.to_vec().unwrap(), client).unwrap();
                    let good = Record::from_rdata(query.name().clone(), 60, address_of(80));
                    reply.add_answer(good);
                }
                socket.send_to(&reply.to_vec().unwrap(), client).unwrap();
            }
        });
        Upstream { address, asked }
    }

    fn count(&self, name: &str) -> usize {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .filter(|n| *n == name)
            .count()
    }
}

fn address_of(last: u8) -> RData {
    RData::from(IpAddr::from(Ipv4Addr::new(192, 0, 2, last)))
}

fn query(asked: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(9, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(asked), kind));
    message.set_edns(Edns::new());
    message.to_vec().unwrap()
}

struct Node {
    resolver: Arc<Resolver>,
    address: SocketAddr,
    _server: Server,
    upstream: Upstream,
    _runtime: Runtime,
}

/// A server at an address of loopback, whose node asks `upstream` for all names.
fn node() -> Node {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let upstream = Upstream::start();
    let resolver = Arc::new(Resolver::new("/nowhere".into(), clock));
    resolver.configure(&v1::ClusterConfig {
        dns_address: "127.0.0.2".into(),
        dns_stubs: vec![v1::DnsStub {
            domain: "example".into(),
            servers: vec![upstream.address.to_string()],
        }],
        ..v1::ClusterConfig::default()
    });
    let service = |name: &str, target: &str| v1::Service {
        namespace: "default".into(),
        name: name.into(),
        external_name: target.into(),
        ..v1::Service::default()
    };
    resolver.change(|zone| {
        zone.put(&service("ext", "www.example"));
        zone.put(&service("loop", "loop.default.svc.cluster.local"));
    });
    let free = UdpSocket::bind("127.0.0.2:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let sockets = Sockets::open(free, Vec::new()).unwrap();
    let server = Server::start(&resolver, sockets, runtime.handle());
    Node {
        address: free,
        _server: server.unwrap(),
        resolver,
        upstream,
        _runtime: runtime,
    }
}

impl Node {
    fn udp(&self, bytes: &[u8]) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        socket.send_to(bytes, self.address).unwrap();
        let mut buffer = [0; 4096];
        let length = receive(&socket, &mut buffer).unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }

    fn ask(&self, asked: &str) -> (ResponseCode, Vec<String>) {
        let reply = self.udp(&query(asked, RecordType::A));
        let answers = reply
            .answers
            .iter()
            .map(|r| format!("{} {}", r.ttl, r.data));
        (reply.metadata.response_code, answers.collect())
    }

    fn counter(&self, name: &str) -> u64 {
        let all = self.resolver.counters.read();
        all.iter().find(|(n, _)| *n == name).unwrap().1
    }
}

#[test]
fn other_names_are_asked_for_once_and_age() {
    let node = node();
    let (code, answers) = node.ask("www.example.");
    assert_eq!(
        (code, answers),
        (ResponseCode::NoError, vec!["60 192.0.2.80".to_owned()])
    );
    NOW.fetch_add(7_000, Ordering::Relaxed);
    let aged = node.ask("WWW.Example.").1;
    assert_eq!(node.upstream.count("www.example."), 1);
    assert!(
        aged[0].ends_with("192.0.2.80") && !aged[0].starts_with("60 "),
        "{aged:?}"
    );
    assert_eq!(node.counter("cache_hits"), 1);
    for _ in 0..3 {
        assert_eq!(node.ask("no.example.").0, ResponseCode::NXDomain);
        assert_eq!(node.ask("bad.example.").0, ResponseCode::ServFail);
    }
    assert_eq!(node.upstream.count("no.example."), 1);
    // Twice, for the one server is asked again before it is given up.
    assert_eq!(node.upstream.count("bad.example."), 2);
    assert_eq!(node.counter("replies_servfail"), 3);
    // No server for it.
    assert_eq!(node.ask("www.elsewhere.").0, ResponseCode::ServFail);
}

#[test]
fn one_question_of_many_clients_is_one_upstream() {
    let node = node();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(node.ask("late.example.").0, ResponseCode::NoError));
        }
    });
    assert_eq!(node.upstream.count("late.example."), 1);
}

#[test]
fn a_silent_server_is_a_failure_and_holds_up_no_one_else() {
    let node = node();
    std::thread::scope(|scope| {
        let mute = scope.spawn(|| node.ask("mute.example."));
        assert_eq!(node.ask("www.example.").0, ResponseCode::NoError);
        assert_eq!(mute.join().unwrap().0, ResponseCode::ServFail);
    });
}

#[test]
fn names_for_other_names_are_followed_and_their_loops_end() {
    let node = node();
    let (code, answers) = node.ask("ext.default.svc.cluster.local.");
    assert_eq!(code, ResponseCode::NoError);
    assert_eq!(answers, ["5 www.example.", "60 192.0.2.80"]);
    assert_eq!(
        node.ask("loop.default.svc.cluster.local.").0,
        ResponseCode::ServFail
    );
}

#[test]
fn without_recursion_only_what_is_here() {
    let node = node();
    let mut bytes = query("www.example.", RecordType::A);
    bytes[2] &= !1;
    assert_eq!(
        node.udp(&bytes).metadata.response_code,
        ResponseCode::Refused
    );
    assert_eq!(node.upstream.count("www.example."), 0);
}

#[test]
fn tcp_takes_several_queries_and_closes_on_what_is_none() {
    let node = node();
    let mut stream = TcpStream::connect(node.address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let bytes = query("dns-version.cluster.local.", RecordType::TXT);
    let framed = [
        &u16::try_from(bytes.len()).unwrap().to_be_bytes(),
        bytes.as_slice(),
    ]
    .concat();
    // Two at once, the second in two pieces.
    stream
        .write_all(&[framed.as_slice(), &framed[..5]].concat())
        .unwrap();
    stream.write_all(&framed[5..]).unwrap();
    for _ in 0..2 {
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(Message::from_vec(&reply).unwrap().answers.len(), 1);
    }
    stream.write_all(&[0xff, 0xff, 1, 2, 3]).unwrap();
    let mut rest = Vec::new();
    // A reset, or the end: bytes that were not read may be thrown away.
    drop(stream.read_to_end(&mut rest));
    assert!(rest.is_empty());
}

#[test]
fn counters_are_told_to_the_node_alone() {
    let node = node();
    let (code, _) = node.ask("www.example.");
    assert_eq!(code, ResponseCode::NoError);
    node.ask("bad.example.");
    let lines = crate::status::ask(node.address).unwrap();
    for line in [
        "queries_udp 2",
        "queries_tcp 1",
        "queries_a 2",
        "replies_noerror 1",
        "replies_servfail 1",
        "cache_misses 2",
        "upstream_queries 3",
        "upstream_errors 2",
        "upstream_failures 1",
        "services 2",
    ] {
        assert!(lines.iter().any(|l| l == line), "{line}: {lines:?}");
    }
    let mut message = Message::new(9, MessageType::Query, OpCode::Query);
    let mut query = Query::query(name("counters.hydrofoil."), RecordType::TXT);
    query.set_query_class(hickory_proto::rr::DNSClass::CH);
    message.add_query(query);
    let bytes = message.to_vec().unwrap();
    node.resolver.configure(&v1::ClusterConfig {
        node_pod_cidrs: vec!["10.244.1.0/24".into()],
        ..v1::ClusterConfig::default()
    });
    let of_pod = node
        .resolver
        .handle(&bytes, [10, 244, 1, 5].into(), Transport::Udp);
    let Handled::Reply(reply) = of_pod else {
        panic!("{of_pod:?}");
    };
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
}

#[test]
fn one_clients_questions_leave_places_for_those_of_others() {
    let node = node();
    let flood = UdpSocket::bind("127.0.0.1:0").unwrap();
    flood.connect(node.address).unwrap();
    // All by one socket of the server, and more than it keeps waiting.
    for number in 0..3000 {
        let asked = format!("mute{number}.example.");
        flood.send(&query(&asked, RecordType::A)).unwrap();
    }
    // Enough ports of another client to come to each socket of the server.
    for number in 0..20 {
        let other = UdpSocket::bind("127.0.0.9:0").unwrap();
        let asked = format!("www{number}.example.");
        let reply = patiently(&other, node.address, &query(&asked, RecordType::A));
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::NoError,
            "{asked}"
        );
    }
    assert_ne!(node.counter("overloaded"), 0);
}

/// Asks again where a datagram was lost.
fn patiently(socket: &UdpSocket, server: SocketAddr, bytes: &[u8]) -> Message {
    let mut buffer = [0; 4096];
    let wait = Duration::from_millis(500);
    socket.set_read_timeout(Some(wait)).unwrap();
    for _ in 0..120 {
        socket.send_to(bytes, server).unwrap();
        match socket.recv(&mut buffer) {
            Ok(length) => return Message::from_vec(&buffer[..length]).unwrap(),
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
                ),
                "{error}"
            ),
        }
    }
    panic!("no answer");
}
