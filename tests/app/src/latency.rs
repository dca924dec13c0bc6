//! Latency of single round trips: over one connection, or with a new one each time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::client::{CLOSE_AFTER, Failure, connect};
use crate::json;

/// A round trip that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What one sample is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A byte there and back.
    RoundTrip,
    /// Connect, a byte there and back, until the server has closed.
    Connect,
}

/// Measures and prints; false at the first failure, with what was measured before.
pub(crate) fn run(args: &Args, kind: Kind) -> Result<bool, String> {
    args.only(&["addr", "requests", "warmup", "interval-ms", "samples"])?;
    let (address, _) = args.target()?;
    let requests: usize = args.value("requests")?.unwrap_or(10_000);
    let warmup: usize = args.value("warmup")?.unwrap_or(requests / 10);
    let interval = args.millis("interval-ms", 0)?;
    let mut samples = Vec::with_capacity(requests);
    let mut connection = None;
    let mut failure = None;
    for number in 0..warmup + requests {
        let start = Instant::now();
        let done = match kind {
            Kind::RoundTrip => kept(&mut connection, || connect(address, TIMEOUT))
                .and_then(|stream| round_trip(stream, 1)),
            Kind::Connect => connect(address, TIMEOUT).and_then(|mut stream| {
                round_trip(&mut stream, CLOSE_AFTER)?;
                until_closed(&mut stream)
            }),
        };
        let took = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if let Err(error) = done {
            failure = Some(error);
            break;
        }
        if number >= warmup {
            samples.push(took);
        }
        if !interval.is_zero() {
            std::thread::sleep(interval);
        }
    }
    if let Some(file) = args.text("samples") {
        let lines: String = samples.iter().map(|sample| format!("{sample}\n")).collect();
        std::fs::write(file, lines).map_err(|error| format!("write {file}: {error}"))?;
    }
    samples.sort_unstable();
    let error = failure.as_ref().map_or("null".to_owned(), |failure| {
        json::string(&format!("{}: {}", failure.kind, failure.text))
    });
    let what = match kind {
        Kind::RoundTrip => "rr",
        Kind::Connect => "crr",
    };
    let latency = json::percentiles(&samples);
    println!(
        "{{\"what\":\"{what}\",\"n\":{},\"ns\":{latency},\"error\":{error}}}",
        samples.len()
    );
    Ok(failure.is_none())
}

fn kept(
    connection: &mut Option<TcpStream>,
    connect: impl FnOnce() -> Result<TcpStream, Failure>,
) -> Result<&mut TcpStream, Failure> {
    match connection {
        Some(stream) => Ok(stream),
        empty => Ok(empty.insert(connect()?)),
    }
}

fn round_trip(stream: &mut TcpStream, byte: u8) -> Result<(), Failure> {
    let mut answer = [0];
    stream
        .write_all(&[byte])
        .map_err(|error| Failure::of("write", &error))?;
    stream
        .read_exact(&mut answer)
        .map_err(|error| Failure::of("read", &error))?;
    if answer == [byte] {
        Ok(())
    } else {
        Err(Failure {
            kind: "bad answer".to_owned(),
            text: format!("{answer:?}"),
        })
    }
}

fn until_closed(stream: &mut TcpStream) -> Result<(), Failure> {
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(Failure {
            kind: "bad answer".to_owned(),
            text: "more than an echo".to_owned(),
        }),
        Err(error) => Err(Failure::of("close", &error)),
    }
}
