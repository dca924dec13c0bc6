//! UDP: one loop per socket that answers what is known here; the rest is asked for in tasks,
//! which answer over the same socket.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::counters::Counters;
use crate::lookup::Answer;
use crate::message::{Request, Transport};
use crate::places::{Limits, Places};
use crate::resolver::{Handled, Resolver};
use hickory_proto::op::ResponseCode;

/// Questions of one socket that wait for other servers.
const WAITING: Limits = Limits {
    all: 1024,
    of_client: 128,
};
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
        waiting: Places::new(WAITING),
    };
    let thread = std::thread::Builder::new().name("dns".to_owned());
    thread.spawn(move || serve.run(&stop)).map(drop)
}

struct Serve {
    resolver: Arc<Resolver>,
    socket: Arc<UdpSocket>,
    runtime: Handle,
    waiting: Places,
}

impl Serve {
    fn run(&self, stop: &AtomicBool) {
        let mut buffer = vec![0; QUERY_MOST];
        while !stop.load(Ordering::Relaxed) {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, client)) => self.one(buffer.get(..length).unwrap_or_default(), client),
                // EINTR: a socket with a time-out gives it when the process was stopped.
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => {
                    tracing::debug!(%error, "DNS socket");
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    fn one(&self, bytes: &[u8], client: SocketAddr) {
        match self.resolver.handle(bytes, client.ip(), Transport::Udp) {
            Handled::Silent => {}
            Handled::Reply(bytes) => send(&self.socket, &bytes, client),
            Handled::Later(request) => self.later(request, client),
        }
    }

    fn later(&self, request: Box<Request>, client: SocketAddr) {
        let Some(place) = self.waiting.take(client.ip()) else {
            Counters::add(&self.resolver.counters.overloaded);
            let failed = Answer::empty(ResponseCode::ServFail);
            let bytes = self.resolver.reply(&request, (&failed, 0), Transport::Udp);
            return send(&self.socket, &bytes, client);
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

fn send(socket: &UdpSocket, bytes: &[u8], client: SocketAddr) {
    if bytes.is_empty() {
        return;
    }
    if let Err(error) = socket.send_to(bytes, client) {
        tracing::debug!(%client, %error, "DNS reply");
    }
}
