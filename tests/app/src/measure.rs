//! Round trips of single bytes, one at a time, in microseconds.

use crate::client::{TIME_OUT, resolve};
use std::io::{Read as _, Result, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Not measured: caches, slow start, the first packet of the flow.
const WARM_UP: u64 = 100;

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

fn print(times: &mut [Duration]) -> Result<bool> {
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
