//! What runs in the tests' containers: a small HTTP server, and clients that count.
//!
//! Static, without a runtime, so that its image is one file beside busybox. Clients print one
//! JSON object a line, which `tests-cluster` reads. Not a benchmark of HTTP: `rr` and `crr`
//! exchange single bytes with `echo`.
#![forbid(unsafe_code)]

mod bulk;
mod client;
mod dns;
mod hold;
mod measure;
mod serve;
mod udp;

use std::process::ExitCode;

const HELP: &str = "\
app serve [--port 8080]                answer each GET with `HOSTNAME VERSION`; SIGTERM drains
app echo [--port 8080]                 send back each byte, one connection at a time, and each
                                       datagram; a stream to the port above is read to its end
app call HOST:PORT [-n 300]            so many requests, a new connection each
app load HOST:PORT [--interval-ms 2]   the same until SIGTERM, a line each half second
app hold HOST:PORT                     one connection, a request each 50 ms, until it ends
app rr HOST:PORT [-n 10000]            round trips on one connection to `echo`, microseconds
app crr HOST:PORT [-n 2000]            connect, round trip, close
app mixed A:PORT B:PORT [-n 500] [--from 10000]   the same, in turn to A and B from one port
                                       each, counting up; the server closes first
app udp_rr HOST:PORT [-n 10000]        round trips of datagrams
app bulk HOST:PORT [--mib 256]         one stream to the port above that of `echo`, Gbit/s
app dns HOST:53 NAME [-n 10000] [--window 1]   A queries, so many at a time, microseconds
app eat MEBIBYTES                      take so much memory, then sleep
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str, default: u64| {
        let at = words.iter().position(|word| word == name)?;
        Some(
            words
                .get(at + 1)
                .and_then(|word| word.parse().ok())
                .unwrap_or(default),
        )
    };
    let number = |name: &str, default: u64| option(name, default).unwrap_or(default);
    let port = u16::try_from(number("--port", 8080)).unwrap_or(8080);
    let target = words.get(1).map_or("", String::as_str);
    let done = match words.first().map_or("", String::as_str) {
        "serve" => serve::run(port),
        "echo" => udp::echo(port)
            .and_then(|()| bulk::sink(port.saturating_add(1)))
            .and_then(|()| serve::echo(port)),
        "call" => client::call(target, number("-n", 300)),
        "load" => client::load(target, number("--interval-ms", 2)),
        "hold" => hold::run(target),
        "rr" => measure::rr(target, number("-n", 10_000)),
        "crr" => measure::crr(target, number("-n", 2_000)),
        "mixed" => {
            let other = words.get(2).map_or("", String::as_str);
            let from = u16::try_from(number("--from", 10_000)).unwrap_or(10_000);
            measure::mixed([target, other], number("-n", 500), from)
        }
        "udp_rr" => udp::rr(target, number("-n", 10_000)),
        "bulk" => bulk::send(target, number("--mib", 256)),
        "dns" => {
            let name = words.get(2).map_or("", String::as_str);
            dns::run(target, name, number("-n", 10_000), number("--window", 1))
        }
        "eat" => eat(target),
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("app: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Touches each page, so that a memory limit is met.
fn eat(mebibytes: &str) -> std::io::Result<bool> {
    let wanted: usize = mebibytes.parse().unwrap_or(1);
    let mut taken = Vec::new();
    for _ in 0..wanted {
        taken.push(vec![1_u8; 1 << 20]);
    }
    println!("took {} MiB", taken.len());
    serve::wait_for_end();
    Ok(true)
}
