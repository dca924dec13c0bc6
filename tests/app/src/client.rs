//! Clients that make a new connection for each request, and count what happened.

use crate::serve;
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Read as _, Result, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// An answer that takes longer is a failure. Long enough for a machine that stands still for some
/// seconds; a packet that is lost for good is not answered by then either.
pub(crate) const TIME_OUT: Duration = Duration::from_secs(10);
/// How many different errors are told.
const MAX_ERRORS: usize = 5;

#[derive(Default)]
struct Counts {
    ok: u64,
    failed: u64,
    slowest: Duration,
    backends: BTreeMap<String, u64>,
    errors: Vec<String>,
}

impl Counts {
    fn request(&mut self, target: SocketAddr) {
        let start = Instant::now();
        match request(target) {
            Ok(backend) => {
                self.ok += 1;
                *self.backends.entry(backend).or_insert(0) += 1;
            }
            Err(error) => {
                self.failed += 1;
                let text = format!("{error} after {} ms", start.elapsed().as_millis());
                if self.errors.len() < MAX_ERRORS {
                    self.errors.push(text.replace(['"', '\\'], "'"));
                }
            }
        }
        self.slowest = self.slowest.max(start.elapsed());
    }

    fn print(&self) -> Result<()> {
        let backends: Vec<String> = self
            .backends
            .iter()
            .map(|(name, count)| format!("\"{name}\":{count}"))
            .collect();
        let errors: Vec<String> = self
            .errors
            .iter()
            .map(|error| format!("\"{error}\""))
            .collect();
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "{{\"ok\":{},\"failed\":{},\"slowest_ms\":{:.1},\"backends\":{{{}}},\"errors\":[{}]}}",
            self.ok,
            self.failed,
            self.slowest.as_secs_f64() * 1000.0,
            backends.join(","),
            errors.join(",")
        )?;
        out.flush()
    }
}

/// Address of `HOST:PORT`.
pub(crate) fn resolve(target: &str) -> Result<SocketAddr> {
    let none = || Error::new(ErrorKind::NotFound, format!("{target}: no such address"));
    target.to_socket_addrs()?.next().ok_or_else(none)
}

/// One connection, one GET; gives the line that the server said.
fn request(target: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, TIME_OUT)?;
    stream.set_read_timeout(Some(TIME_OUT))?;
    stream.set_nodelay(true)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let body = text
        .strip_prefix("HTTP/1.1 200 ")
        .and_then(|rest| rest.split_once("\r\n\r\n"));
    let cut = || Error::new(ErrorKind::UnexpectedEof, "the answer was cut off");
    body.filter(|(_, body)| body.ends_with('\n'))
        .map(|(_, body)| body.trim_end().to_owned())
        .ok_or_else(cut)
}

/// `count` requests; false if any failed.
pub(crate) fn call(target: &str, count: u64) -> Result<bool> {
    let target = resolve(target)?;
    let mut counts = Counts::default();
    for _ in 0..count {
        counts.request(target);
    }
    counts.print()?;
    Ok(counts.failed == 0)
}

/// Requests until SIGTERM.
pub(crate) fn load(target: &str, interval_ms: u64) -> Result<bool> {
    let target = resolve(target)?;
    let ended = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&ended);
    serve::at_end(move || end.store(true, Ordering::Relaxed))?;
    let mut counts = Counts::default();
    let mut printed = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        counts.request(target);
        if printed.elapsed() >= Duration::from_millis(500) {
            counts.print()?;
            printed = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(interval_ms));
    }
    counts.print()?;
    Ok(counts.failed == 0)
}
