//! A queries over UDP, `window` of them under way at a time, in microseconds.

use crate::client::{TIME_OUT, resolve};
use std::io::{Error, ErrorKind, Result};
use std::net::UdpSocket;
use std::time::Instant;

/// Not measured: the first answer is from another server.
const WARM_UP: u64 = 100;

/// The question for `name`, except its id.
fn query(name: &str) -> Vec<u8> {
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        bytes.push(u8::try_from(label.len()).unwrap_or(63));
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// One datagram. A process that was stopped and continued gets EINTR from a socket with a time-out.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Result<usize> {
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Sends `count` queries; prints min, median and 99th percentile, and answers a second.
pub(crate) fn run(server: &str, name: &str, count: u64, window: u64) -> Result<bool> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(resolve(server)?)?;
    socket.set_read_timeout(Some(TIME_OUT))?;
    let mut bytes = query(name);
    let mut sent = vec![Instant::now(); 1 << 16];
    let mut times = Vec::new();
    let mut send = |id: u64, sent: &mut Vec<Instant>| -> Result<()> {
        let id = (id % (1 << 16)) as u16;
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        sent[usize::from(id)] = Instant::now();
        socket.send(&bytes).map(drop)
    };
    let all = count + WARM_UP;
    let start = Instant::now();
    for id in 0..window.min(all) {
        send(id, &mut sent)?;
    }
    let mut buffer = [0; 2048];
    for answered in 0..all {
        let length = receive(&socket, &mut buffer)?;
        // NOERROR with at least one record.
        if length < 12 || buffer[3] & 0xf != 0 || buffer[7] == 0 {
            return Err(Error::other(format!("not the answer: {:?}", &buffer[..12])));
        }
        let id = u16::from_be_bytes([buffer[0], buffer[1]]);
        if answered >= WARM_UP {
            times.push(sent[usize::from(id)].elapsed());
        }
        if answered + window < all {
            send(answered + window, &mut sent)?;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    times.sort_unstable();
    let us = |at: usize| times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e6);
    println!(
        "{{\"unit\":\"us\",\"n\":{},\"min\":{:.2},\"median\":{:.2},\"p99\":{:.2},\"answers_per_s\":{:.0}}}",
        times.len(),
        us(0),
        us(times.len() / 2),
        us((times.len() * 99 / 100).min(times.len().saturating_sub(1))),
        all as f64 / seconds
    );
    Ok(!times.is_empty())
}
