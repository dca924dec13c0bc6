//! UDP: one loop per socket that answers what is known here; the rest is asked for in tasks,
//! which answer over the same socket.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::counters::Counters;
use crate::lookup::Answer;
use crate::message::{self, Read, Transport};
use crate::resolver::{Now, Resolver};
use hickory_proto::op::ResponseCode;

/// Questions of one socket that wait for other servers.
const WAITING: usize = 1024;
/// Longest query that is read; a longer one is cut, and then no query.
const QUERY_MOST: usize = 4096;
/// A loop that is to end sees it after so long.
const LOOK: Duration = Duration::from_millis(500);
/// Before another try when the socket fails.
const PAUSE: Duration = Duration::from_millis(20);

/// Begins the loop, on a thread of its own.
pub(crate) fn start(
    resolver: Arc<Resolver>,
    socket: UdpSocket,
    runtime: Handle,
    stop: Arc<AtomicBool>,
) -> io::Result<()> {
    socket.set_read_timeout(Some(LOOK))?;
    let serve = Serve {
        resolver,
        socket: Arc::new(socket),
        runtime,
        waiting: Arc::new(Semaphore::new(WAITING)),
    };
    let thread = std::thread::Builder::new().name("dns".to_owned());
    thread.spawn(move || serve.run(&stop)).map(drop)
}

struct Serve {
    resolver: Arc<Resolver>,
    socket: Arc<UdpSocket>,
    runtime: Handle,
    waiting: Arc<Semaphore>,
}

impl Serve {
    fn run(&self, stop: &AtomicBool) {
        let mut buffer = vec![0; QUERY_MOST];
        while !stop.load(Ordering::Relaxed) {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, client)) => self.one(buffer.get(..length).unwrap_or_default(), client),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::debug!(%error, "DNS socket");
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    fn one(&self, bytes: &[u8], client: SocketAddr) {
        let counters = &self.resolver.counters;
        Counters::add(&counters.udp);
        if !self.resolver.names(|zone| zone.serves(client.ip())) {
            Counters::add(&counters.dropped);
            return;
        }
        let request = match message::read(bytes) {
            Read::Request(request) => request,
            Read::Refused(code, bytes) => {
                counters.reply(code);
                return send(&self.socket, &bytes, client);
            }
            Read::Ignored => return Counters::add(&counters.dropped),
        };
        let answer = |answer: &Answer, age| {
            let bytes = self.resolver.reply(&request, (answer, age), Transport::Udp);
            send(&self.socket, &bytes, client);
        };
        match self.resolver.now(&request) {
            Now::Answer(known, age) => answer(&known, age),
            Now::Later => {
                let Ok(place) = self.waiting.clone().try_acquire_owned() else {
                    return answer(&Answer::empty(ResponseCode::ServFail), 0);
                };
                let (resolver, socket) = (self.resolver.clone(), self.socket.clone());
                self.runtime.spawn(async move {
                    let answer = resolver.later(&request).await;
                    let bytes = resolver.reply(&request, (&answer, 0), Transport::Udp);
                    send(&socket, &bytes, client);
                    drop(place);
                });
            }
        }
    }
}

fn send(socket: &UdpSocket, bytes: &[u8], client: SocketAddr) {
    if bytes.is_empty() {
        return;
    }
    if let Err(error) = socket.send_to(bytes, client) {
        tracing::debug!(%client, %error, "DNS reply");
    }
}
