//! Round trips of single bytes, one at a time, in microseconds.

use crate::client::{TIME_OUT, resolve};
use crate::serve;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, sockopt};
use std::io::{Error, ErrorKind, Read as _, Result, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

/// Not measured: caches, slow start, the first packet of the flow.
pub(crate) const WARM_UP: u64 = 20;

/// Write, read, on one connection.
pub(crate) fn rr(target: &str, count: u64) -> Result<bool> {
    let mut stream = connect(resolve(target)?)?;
    let mut times = Vec::new();
    for round in 0..count + WARM_UP {
        let start = Instant::now();
        exchange(&mut stream)?;
        if round >= WARM_UP {
            times.push(start.elapsed());
        }
    }
    print(&mut times)
}

/// Connect, write, read, close.
pub(crate) fn crr(target: &str, count: u64) -> Result<bool> {
    let target = resolve(target)?;
    let mut times = Vec::new();
    for round in 0..count + WARM_UP {
        let start = Instant::now();
        let mut stream = connect(target)?;
        exchange(&mut stream)?;
        drop(stream);
        if round >= WARM_UP {
            times.push(start.elapsed());
        }
    }
    print(&mut times)
}

/// Connect, write, read, to two targets in turn from the same port, as a client does that reaches a
/// server through a service and directly. The server closes, so that its side waits (TIME-WAIT)
/// when the second connection comes.
pub(crate) fn mixed(targets: [&str; 2], count: u64, from: u16) -> Result<bool> {
    let [first, second] = targets.map(resolve);
    let targets = [first?, second?];
    let mut times = Vec::new();
    for (round, port) in (0..count).zip(from..) {
        for target in targets {
            let start = Instant::now();
            let mut stream = connect_from(port, target)?;
            stream.write_all(&[serve::LAST])?;
            stream.read_exact(&mut [0])?;
            times.push(start.elapsed());
            // Its FIN comes before ours.
            if stream.read_to_end(&mut Vec::new())? != 0 {
                return Err(Error::new(
                    ErrorKind::InvalidData,
                    format!("round {round}: more"),
                ));
            }
        }
    }
    print(&mut times)
}

/// A connection from a port that the one before may have had too.
fn connect_from(port: u16, target: SocketAddr) -> Result<TcpStream> {
    let SocketAddr::V4(target) = target else {
        return Err(Error::new(ErrorKind::Unsupported, "IPv4 only"));
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    let own = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
    socket::bind(socket.as_raw_fd(), &own)?;
    socket::connect(socket.as_raw_fd(), &SockaddrIn::from(target))?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIME_OUT))?;
    Ok(stream)
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, TIME_OUT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIME_OUT))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// One JSON line: smallest, median and 99th percentile.
pub(crate) fn print(times: &mut [Duration]) -> Result<bool> {
    times.sort_unstable();
    let us = |at: usize| times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e6);
    let last = times.len().saturating_sub(1);
    println!(
        "{{\"unit\":\"us\",\"n\":{},\"min\":{:.2},\"median\":{:.2},\"p99\":{:.2}}}",
        times.len(),
        us(0),
        us(times.len() / 2),
        us((times.len() * 99 / 100).min(last))
    );
    Ok(!times.is_empty())
}
