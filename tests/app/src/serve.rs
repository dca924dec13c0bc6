//! The server: HTTP/1.1 with keep-alive, raw TCP echo, UDP echo.
//!
//! A connection whose first byte is a capital letter speaks HTTP; any other is
//! echoed. A thread that waits in accept(2) serves the connection itself, so
//! that a new connection costs no thread.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use crate::args::Args;
use crate::client::CLOSE_AFTER;

/// After SIGTERM, idle connections may bring another request for so long.
const LINGER: Duration = Duration::from_secs(1);
/// After SIGTERM, requests are waited for at most so long.
const DRAIN: Duration = Duration::from_secs(25);
/// Nothing new for so long means that the queue of connections is empty.
const QUIET: Duration = Duration::from_millis(100);
/// A request line or header line is no longer than this.
const MAX_LINE: u64 = 16 << 10;

#[derive(Debug, Default)]
struct State {
    name: String,
    stopping: AtomicBool,
    /// Threads in accept(2).
    waiting: AtomicUsize,
    /// Connections.
    open: AtomicUsize,
    /// Connections that ever were.
    accepted: AtomicUsize,
    /// Requests that were not answered yet.
    busy: AtomicUsize,
}

/// Adds one while it lives.
struct Count<'a>(&'a AtomicUsize);

impl<'a> Count<'a> {
    fn up(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::SeqCst);
        Self(counter)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(args: &Args) -> Result<bool, String> {
    args.only(&["port", "udp"])?;
    let port: u16 = args.value("port")?.ok_or("--port is needed")?;
    // Before any thread: all inherit the mask, and only this one waits. As a
    // container's first process it would not get unhandled signals at all.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals
        .thread_block()
        .map_err(|error| format!("block signals: {error}"))?;

    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let state = Arc::new(State {
        name: name.trim().to_owned(),
        ..State::default()
    });
    let failed = |error: io::Error| format!("listen on port {port}: {error}");
    let listener = Arc::new(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map_err(failed)?);
    if args.flag("udp") {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).map_err(failed)?;
        let state = Arc::clone(&state);
        std::thread::spawn(move || echo_datagrams(&socket, &state));
    }
    add_acceptor(&listener, &state);
    println!("serving as {} on port {port}", state.name);

    let signal = signals
        .wait()
        .map_err(|error| format!("wait for signals: {error}"))?;
    state.stopping.store(true, Ordering::SeqCst);
    drain(&state);
    println!(
        "{signal}: {} connections served",
        state.accepted.load(Ordering::SeqCst)
    );
    Ok(true)
}

/// Waits until everything that was asked is answered.
fn drain(state: &State) {
    let (start, mut quiet_since) = (Instant::now(), Instant::now());
    let mut seen = state.accepted.load(Ordering::SeqCst);
    loop {
        std::thread::sleep(Duration::from_millis(10));
        let accepted = state.accepted.load(Ordering::SeqCst);
        let busy = state.busy.load(Ordering::SeqCst) > 0;
        if busy || accepted != seen {
            (seen, quiet_since) = (accepted, Instant::now());
        }
        let idle = state.open.load(Ordering::SeqCst) == 0 || start.elapsed() >= LINGER;
        if (idle && quiet_since.elapsed() >= QUIET) || start.elapsed() >= DRAIN {
            return;
        }
    }
}

fn add_acceptor(listener: &Arc<TcpListener>, state: &Arc<State>) {
    let (listener, state) = (Arc::clone(listener), Arc::clone(state));
    state.waiting.fetch_add(1, Ordering::SeqCst);
    std::thread::spawn(move || {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                // The peer was gone again, or descriptors ran out.
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
            };
            let _open = Count::up(&state.open);
            state.accepted.fetch_add(1, Ordering::SeqCst);
            if state.waiting.fetch_sub(1, Ordering::SeqCst) == 1 {
                add_acceptor(&listener, &state);
            }
            // The client sees how its connection ended; there is nobody else to tell.
            drop(connection(stream, &state));
            state.waiting.fetch_add(1, Ordering::SeqCst);
        }
    });
}

fn connection(stream: TcpStream, state: &State) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?.ip();
    let peer = stream.peer_addr()?;
    let mut answers = stream.try_clone()?;
    let mut requests = BufReader::new(stream);
    let Some(first) = requests.fill_buf()?.first().copied() else {
        return Ok(());
    };
    if !first.is_ascii_uppercase() {
        return echo(&mut requests, &mut answers, state);
    }
    loop {
        if requests.fill_buf()?.is_empty() {
            return Ok(());
        }
        let _busy = Count::up(&state.busy);
        let Some(request) = Request::read(&mut requests)? else {
            return Ok(());
        };
        let close = request.close || state.stopping.load(Ordering::SeqCst);
        let mut body = format!(
            "{{\"host\":\"{}\",\"ip\":\"{local}\",\"client\":\"{peer}\",\"path\":\"{}\"}}\n",
            state.name, request.path
        );
        if let Some(milliseconds) = request
            .path
            .strip_prefix("/sleep/")
            .and_then(|ms| ms.parse().ok())
        {
            std::thread::sleep(Duration::from_millis(milliseconds));
        }
        if let Some(name) = request.path.strip_prefix("/env/") {
            let value = std::env::vars().find(|(known, _)| known == name);
            body = format!("{}\n", value.map(|(_, value)| value).unwrap_or_default());
        }
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nX-Backend: {}\r\n{}\r\n",
            body.len(),
            state.name,
            if close { "Connection: close\r\n" } else { "" }
        );
        // One write, one packet.
        answers.write_all((head + &body).as_bytes())?;
        if close {
            return Ok(());
        }
    }
}

/// Everything back as it came. A first byte of [`CLOSE_AFTER`] wants the
/// connection closed after its echo, so that the waiting of TIME_WAIT is here.
fn echo(requests: &mut impl BufRead, answers: &mut impl Write, state: &State) -> io::Result<()> {
    loop {
        let bytes = requests.fill_buf()?;
        if bytes.is_empty() {
            return Ok(());
        }
        let _busy = Count::up(&state.busy);
        let (count, close) = (bytes.len(), bytes.first() == Some(&CLOSE_AFTER));
        answers.write_all(bytes)?;
        requests.consume(count);
        if close {
            return Ok(());
        }
    }
}

/// The name of this host, a newline, and what came.
fn echo_datagrams(socket: &UdpSocket, state: &State) {
    let mut buffer = [0; 65_536];
    let mut answer = Vec::new();
    loop {
        // An ICMP error to an earlier answer shows here; the next receive goes on.
        let Ok((count, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        answer.clear();
        answer.extend_from_slice(state.name.as_bytes());
        answer.push(b'\n');
        answer.extend_from_slice(&buffer[..count]);
        drop(socket.send_to(&answer, peer));
    }
}

/// As much of an HTTP request as matters here.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    path: String,
    /// The client wants the connection closed.
    close: bool,
}

impl Request {
    fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let Some(first) = line(from)? else {
            return Ok(None);
        };
        let mut words = first.split(' ');
        let (path, version) = (
            words.nth(1).unwrap_or("/").to_owned(),
            words.next().unwrap_or(""),
        );
        let (mut close, mut length) = (version == "HTTP/1.0", 0);
        loop {
            let Some(header) = line(from)? else {
                return Ok(None);
            };
            if header.is_empty() {
                break;
            }
            let Some((name, value)) = header.split_once(':') else {
                continue;
            };
            match (name.to_ascii_lowercase().as_str(), value.trim()) {
                ("connection", value) => close = value.eq_ignore_ascii_case("close"),
                ("content-length", value) => length = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        io::copy(&mut from.take(length), &mut io::sink())?;
        // It goes into JSON as it is.
        let path = path.replace(['"', '\\'], "_");
        Ok(Some(Self { path, close }))
    }
}

/// A line without its end; none at the end of the stream.
fn line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    from.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes)?;
    if bytes.pop() != Some(b'\n') {
        return Ok(None);
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_one_after_the_other() {
        let text = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n\
            POST /\"b HTTP/1.1\r\nContent-Length: 4\r\n\r\nGET \
            GET /c HTTP/1.0\r\n\r\n\
            GET /d HTTP/1.1\r\nconnection: Close\r\n\r\n\
            GET /cut HTTP/1.1\r\nHo";
        let mut stream = text.as_bytes();
        for (path, close) in [("/a", false), ("/_b", false), ("/c", true), ("/d", true)] {
            let request = Request::read(&mut stream).unwrap().unwrap();
            assert_eq!(
                request,
                Request {
                    path: path.to_owned(),
                    close
                }
            );
        }
        assert_eq!(Request::read(&mut stream).unwrap(), None);
    }
}
