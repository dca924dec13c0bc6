//! The servers: HTTP that says which pod and version answered, and an echo of bytes.
//!
//! A thread per connection. After SIGTERM it goes on for a moment, for connections that were
//! on their way, and ends when no request is in flight: what a well-behaved server does.

use nix::sys::signal::{SigSet, Signal};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Result, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How long new connections are still answered after SIGTERM.
const DRAIN: Duration = Duration::from_millis(300);

/// Blocks SIGTERM and SIGINT in this and all later threads. A blocked signal reaches
/// [`wait_for_end`] even in the init process of a PID namespace, where the kernel drops
/// those that would only have their default effect.
fn end_signals() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals
}

/// Sleeps until SIGTERM or SIGINT.
pub(crate) fn wait_for_end() {
    let signals = end_signals();
    if signals.thread_block().is_ok() {
        signals.wait().ok();
    }
}

/// Calls `then` on a thread of its own at SIGTERM or SIGINT. Call before other threads start.
pub(crate) fn at_end(then: impl FnOnce() + Send + 'static) -> Result<()> {
    end_signals().thread_block()?;
    std::thread::spawn(move || {
        wait_for_end();
        then();
    });
    Ok(())
}

/// HTTP until SIGTERM.
pub(crate) fn run(port: u16) -> Result<bool> {
    let in_flight = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&in_flight);
    at_end(move || {
        std::thread::sleep(DRAIN);
        while counted.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::process::exit(0);
    })?;
    let name = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    // The image sets it; which image answered is what a rolling update is judged by.
    #[expect(
        clippy::disallowed_methods,
        reason = "a container's settings are its environment"
    )]
    let version = std::env::var("APP_VERSION").unwrap_or_else(|_| "0".to_owned());
    let body: Arc<str> = format!("{name} {version}\n").into();
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    println!("{name} {version} listens on port {port}");
    loop {
        let (stream, _) = listener.accept()?;
        let (body, in_flight) = (Arc::clone(&body), Arc::clone(&in_flight));
        std::thread::spawn(move || answer(stream, &body, &in_flight).ok());
    }
}

/// Requests of one connection, until the client closes it or asks for that.
fn answer(stream: TcpStream, body: &str, in_flight: &AtomicUsize) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut close = false;
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        in_flight.fetch_add(1, Ordering::SeqCst);
        let answered = (|| {
            loop {
                line.clear();
                if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
                    break;
                }
                close |= line.to_ascii_lowercase().starts_with("connection: close");
            }
            let connection = if close { "close" } else { "keep-alive" };
            let length = body.len();
            let text = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
                 Connection: {connection}\r\n\r\n{body}"
            );
            writer.write_all(text.as_bytes())
        })();
        in_flight.fetch_sub(1, Ordering::SeqCst);
        answered?;
        if close {
            return Ok(());
        }
    }
}

/// The byte after which [`echo`] closes the connection, and not the client.
pub(crate) const LAST: u8 = b'q';

/// Bytes back as they come, without a thread per connection, which would cost more than a
/// round trip does.
pub(crate) fn echo(port: u16) -> Result<bool> {
    at_end(|| std::process::exit(0))?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let mut bytes = [0; 4096];
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => {
                    let said = &bytes[..count];
                    if stream.write_all(said).is_err() || said.ends_with(&[LAST]) {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }
}
