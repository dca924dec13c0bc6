//! Serving at one address: threads for UDP, tasks for TCP. Sockets are bound before the node
//! has the address (IP_FREEBIND), so that serving begins with the agent and not with the
//! plan of its routes; or they were bound by an earlier process, and hold what clients asked
//! since that one ended.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, getsockopt,
    listen, setsockopt, socket, sockopt,
};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::resolver::Resolver;
use crate::{tcp, udp};

/// Threads that answer over UDP at most.
const THREADS: usize = 4;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// The server cannot serve.
#[derive(Debug, thiserror::Error)]
#[error("serve DNS at {address}: {source}")]
pub struct ServeError {
    /// Where.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

/// Bound sockets. Those of one address share its queries, so each of them has to be served
/// or closed by all that hold it.
#[derive(Debug)]
pub struct Sockets {
    address: SocketAddr,
    udp: Vec<UdpSocket>,
    tcp: TcpListener,
    reused: usize,
}

impl Sockets {
    /// Those of `inherited` that are bound to the address, and new ones where there are too
    /// few. The others of `inherited` are closed.
    ///
    /// # Errors
    /// [`ServeError`]
    pub fn open(address: SocketAddr, inherited: Vec<OwnedFd>) -> Result<Sockets, ServeError> {
        let failed = |source| ServeError { address, source };
        let (mut udp, mut tcp) = (Vec::new(), None);
        for fd in inherited.into_iter().filter(|fd| is_bound(fd, address)) {
            let kind = getsockopt(&fd, sockopt::SockType).ok();
            if kind == Some(SockType::Datagram) {
                udp.push(UdpSocket::from(fd));
            } else if kind == Some(SockType::Stream) {
                tcp = Some(TcpListener::from(fd));
            }
        }
        let reused = udp.len() + usize::from(tcp.is_some());
        let count = std::thread::available_parallelism().map_or(1, |n| n.get().min(THREADS));
        while udp.len() < count {
            let fd = bound(address, SockType::Datagram).map_err(failed)?;
            udp.push(fd.into());
        }
        let tcp = match tcp {
            Some(tcp) => tcp,
            None => listener(address).map_err(failed)?,
        };
        tcp.set_nonblocking(true).map_err(failed)?;
        Ok(Sockets {
            address,
            udp,
            tcp,
            reused,
        })
    }

    /// How many of them were inherited.
    pub fn reused(&self) -> usize {
        self.reused
    }

    /// All of them, to be kept for the next process.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let udp = self.udp.iter().map(AsFd::as_fd);
        udp.chain([self.tcp.as_fd()]).collect()
    }
}

fn is_bound(fd: &OwnedFd, address: SocketAddr) -> bool {
    getsockname::<SockaddrStorage>(fd.as_raw_fd()) == Ok(address.into())
}

/// A server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    accept: JoinHandle<()>,
}

impl Server {
    /// Serves from now on. Questions to other servers, and TCP, are tasks of `runtime`.
    ///
    /// # Errors
    /// [`ServeError`]; nothing is served then.
    pub fn start(
        resolver: &Arc<Resolver>,
        sockets: Sockets,
        runtime: &Handle,
    ) -> Result<Server, ServeError> {
        let Sockets {
            address, udp, tcp, ..
        } = sockets;
        let failed = |source| ServeError { address, source };
        let stop = Arc::new(AtomicBool::new(false));
        let accept = tcp::start(resolver.clone(), tcp, runtime).map_err(failed)?;
        // Ends what was started, also where one of the next fails.
        let server = Server { stop, accept };
        for socket in udp {
            let stop = server.stop.clone();
            udp::start(resolver.clone(), socket, runtime.clone(), stop).map_err(failed)?;
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.accept.abort();
    }
}

/// A socket at the address, beside others of ours.
fn bound(address: SocketAddr, kind: SockType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    setsockopt(&fd, sockopt::IpFreebind, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd)
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let fd = bound(address, SockType::Stream)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(fd.into())
}

#[cfg(test)]
#[path = "tests/server.rs"]
mod tests;
