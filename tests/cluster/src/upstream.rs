//! A DNS server for other names than the cluster's, on the wire between the nodes: a few
//! answers of its own, and a list of what it was asked.
//!
//! Called by the DNS cases. The nodes' resolv.conf names it, see `tests-harness`.

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tests_harness::{Cluster, topology::WIRE_IP};

/// A name with this address.
pub const KNOWN: (&str, [u8; 4]) = ("www.example.com.", [192, 0, 2, 80]);
/// A name whose answer does not fit into UDP.
pub const LARGE: &str = "large.example.com.";
/// Bytes of that answer, at least.
pub const LARGE_BYTES: usize = 3000;

/// The server; it ends when this is dropped.
#[derive(Debug)]
pub struct Upstream {
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    address: SocketAddr,
    netns: std::path::PathBuf,
}

/// "udp www.example.com. A" of a message, and the reply to it.
fn reply(bytes: &[u8], transport: &str) -> Option<(String, Vec<u8>)> {
    let asked = Message::from_vec(bytes).ok()?;
    let query = asked.queries.first()?.clone();
    let text = format!(
        "{transport} {} {}",
        query.name().to_lowercase(),
        query.query_type()
    );
    let mut message = asked.into_response();
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    let name = query.name().clone();
    let is = |known: &str| name.to_lowercase().to_string() == known;
    if is(KNOWN.0) {
        if query.query_type() == RecordType::A {
            let data = RData::from(IpAddr::from(KNOWN.1));
            message.add_answer(Record::from_rdata(name, 300, data));
        } else {
            message.add_authority(soa());
        }
    } else if is(LARGE) && query.query_type() == RecordType::TXT {
        message.metadata.truncation = transport == "udp";
        if transport == "tcp" {
            let lines = vec!["x".repeat(250); LARGE_BYTES / 250 + 1];
            message.add_answer(Record::from_rdata(name, 300, RData::TXT(TXT::new(lines))));
        }
    } else {
        message.metadata.response_code = ResponseCode::NXDomain;
        message.add_authority(soa());
    }
    Some((text, message.to_vec().ok()?))
}

fn soa() -> Record {
    let name = |text: &str| Name::from_ascii(text).expect("a name");
    let soa = SOA::new(
        name("ns.example.com."),
        name("h.example.com."),
        1,
        1,
        1,
        1,
        300,
    );
    Record::from_rdata(name("com."), 300, RData::SOA(soa))
}

impl Upstream {
    /// Serves in the wire's namespace.
    ///
    /// # Panics
    /// If the port is taken.
    pub fn start(cluster: &Cluster) -> Self {
        let address: SocketAddr = format!("{WIRE_IP}:53").parse().expect("an address");
        let (udp, tcp) = cluster.wire().enter(|| {
            let udp = UdpSocket::bind(address).expect("bind UDP port 53 on the wire");
            let tcp = TcpListener::bind(address).expect("bind TCP port 53 on the wire");
            (udp, tcp)
        });
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        udp.set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a time-out");
        let note = |text: String, asked: &Mutex<Vec<String>>| {
            asked
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(text);
        };
        let (list, end) = (Arc::clone(&asked), Arc::clone(&stop));
        let over_udp = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !end.load(Ordering::Relaxed) {
                let Ok((length, client)) = udp.recv_from(&mut buffer) else {
                    continue;
                };
                if let Some((text, bytes)) = reply(&buffer[..length], "udp") {
                    note(text, &list);
                    udp.send_to(&bytes, client).expect("send a reply");
                }
            }
        });
        let (list, end) = (Arc::clone(&asked), Arc::clone(&stop));
        let over_tcp = std::thread::spawn(move || {
            for stream in tcp.incoming() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                if let Some(text) = serve(stream) {
                    note(text, &list);
                }
            }
        });
        Self {
            asked,
            stop,
            threads: vec![over_udp, over_tcp],
            address,
            netns: cluster.wire().path(),
        }
    }

    /// What it was asked so far: "udp www.example.com. A".
    pub fn asked(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// One query of one connection.
fn serve(mut stream: TcpStream) -> Option<String> {
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes).ok()?;
    let (text, bytes) = reply(&bytes, "tcp")?;
    let length = u16::try_from(bytes.len()).ok()?;
    stream.write_all(&length.to_be_bytes()).ok()?;
    stream.write_all(&bytes).ok()?;
    Some(text)
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // So that `accept` returns.
        let (path, address) = (self.netns.clone(), self.address);
        let waker = std::thread::spawn(move || {
            let file = std::fs::File::open(path)?;
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
            TcpStream::connect(address).map(drop)
        });
        if let Ok(Err(error)) = waker.join() {
            eprintln!("the DNS server on the wire is not woken: {error}");
            return;
        }
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}
