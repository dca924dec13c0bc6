//! The application of the demo, the tests and the benchmark: one static binary.
//!
//! `serve` answers with its name, `load` calls it and says exactly what failed,
//! `rr` and `crr` measure latency. It runs in containers without any library
//! and without DNS: addresses are numbers. Not a product part; pushed into test
//! images by `tests-harness`.
//! Reading order: `args`, `serve`, `client`, `load`, `latency`, `json`.

#![forbid(unsafe_code)]

mod args;
mod client;
mod json;
mod latency;
mod load;
mod serve;

use std::process::ExitCode;

use args::Args;

const HELP: &str = "\
app serve --port N [--udp]
    HTTP (keep-alive) and raw TCP echo on one port; with --udp UDP as well.
    HTTP: any path answers 200 with this host's name and address; /sleep/MS answers
    after so many milliseconds; /env/NAME answers with that variable.
    SIGTERM: answers what was asked, then exits.

app load --addr IP:PORT | --url http://IP:PORT/PATH
         [--requests N] [--duration SECONDS] [--connections C] [--keepalive]
         [--interval-ms MS] [--timeout-ms MS] [--udp]
    Calls it, and prints one line of JSON: ok, failed, errors, backends, latency.
    Ends after N requests (of all connections), after SECONDS, or on SIGTERM.
    Exit code 1 if a request failed.

app rr  --addr IP:PORT [--requests N] [--warmup N] [--interval-ms MS] [--samples FILE]
app crr --addr IP:PORT [--requests N] [--warmup N] [--interval-ms MS] [--samples FILE]
    Round trips of one byte over one connection (rr), or connect, round trip and
    close each time (crr). One line of JSON; FILE: nanoseconds, a line each.
";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let done = Args::parse(words).and_then(|args| match command.as_str() {
        "serve" => serve::run(&args),
        "load" => load::run(&args),
        "rr" => latency::run(&args, latency::Kind::RoundTrip),
        "crr" => latency::run(&args, latency::Kind::Connect),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(true)
        }
        _ => Err(format!("unknown command {command:?}\n{HELP}")),
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("app: {error}");
            ExitCode::from(2)
        }
    }
}
