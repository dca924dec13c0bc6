//! Serving at one address: threads for UDP, tasks for TCP. Sockets are bound before the node
//! has the address (IP_FREEBIND), so that serving begins with the agent and not with the
//! plan of its routes.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
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

/// A server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    accept: JoinHandle<()>,
}

impl Server {
    /// Serves at `address` from now on. Questions to other servers, and TCP, are tasks of
    /// `runtime`.
    ///
    /// # Errors
    /// [`ServeError`]; nothing is served then.
    pub fn start(
        resolver: &Arc<Resolver>,
        address: SocketAddr,
        runtime: &Handle,
    ) -> Result<Server, ServeError> {
        let failed = |source| ServeError { address, source };
        let count = std::thread::available_parallelism().map_or(1, |n| n.get().min(THREADS));
        let sockets: io::Result<Vec<UdpSocket>> = (0..count)
            .map(|_| Ok(bound(address, SockType::Datagram)?.into()))
            .collect();
        let sockets = sockets.map_err(failed)?;
        let listener = listener(address).map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        for socket in sockets {
            udp::start(resolver.clone(), socket, runtime.clone(), stop.clone()).map_err(failed)?;
        }
        let accept = tcp::start(resolver.clone(), listener, runtime).map_err(failed)?;
        Ok(Server {
            address,
            stop,
            accept,
        })
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
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
    let listener = TcpListener::from(fd);
    listener.set_nonblocking(true)?;
    Ok(listener)
}
