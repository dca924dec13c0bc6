//! Datagrams: an echo, and round trips on a connected socket.

use crate::client::{TIME_OUT, resolve};
use crate::measure;
use std::io::{Error, ErrorKind, Result};
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Instant;

/// Sends each datagram back to where it came from.
pub(crate) fn echo(port: u16) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    std::thread::spawn(move || {
        let mut bytes = [0; 2048];
        loop {
            // An ICMP error for an answer is reported here; the next client is not concerned.
            if let Ok((count, from)) = socket.recv_from(&mut bytes) {
                socket.send_to(&bytes[..count], from).ok();
            }
        }
    });
    Ok(())
}

/// Send, receive, on one connected socket.
pub(crate) fn rr(target: &str, count: u64) -> Result<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(resolve(target)?)?;
    // A datagram may be lost; the measurement must not hang on it.
    socket.set_read_timeout(Some(TIME_OUT))?;
    let mut times = Vec::new();
    for round in 0..count + measure::WARM_UP {
        let start = Instant::now();
        socket.send(b"x")?;
        receive(&socket)?;
        if round >= measure::WARM_UP {
            times.push(start.elapsed());
        }
    }
    measure::print(&mut times)
}

fn receive(socket: &UdpSocket) -> Result<()> {
    loop {
        match socket.recv(&mut [0; 8]) {
            Ok(1) => return Ok(()),
            Ok(count) => {
                let text = format!("a datagram of {count} bytes");
                return Err(Error::new(ErrorKind::InvalidData, text));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
