//! The load client: calls, counts, and forgets nothing that failed.
//!
//! A request on a connection that was used before and closed without a byte of
//! answer is tried once more on a new one, as HTTP clients do (RFC 9112, 9.3.1);
//! the result says how often.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SigSet, Signal};

use crate::args::Args;
use crate::client::{Answer, Failure, Http, ask_by_datagram};
use crate::json;

/// Failures listed one by one; all are counted.
const LISTED: usize = 100;

struct Job {
    address: SocketAddr,
    path: String,
    keepalive: bool,
    udp: bool,
    timeout: Duration,
    interval: Duration,
    requests: u64,
    deadline: Option<Instant>,
    taken: AtomicU64,
    stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct Report {
    ok: u64,
    failed: u64,
    retried: u64,
    /// (milliseconds since the epoch, failure)
    failures: Vec<(u128, Failure)>,
    backends: BTreeMap<String, u64>,
    /// Microseconds.
    latencies: Vec<u64>,
    /// (microseconds, milliseconds since the epoch, backend)
    slowest: (u64, u128, String),
}

/// Runs the load; false if a request failed.
pub(crate) fn run(args: &Args) -> Result<bool, String> {
    args.only(&[
        "addr",
        "url",
        "requests",
        "duration",
        "connections",
        "keepalive",
        "interval-ms",
        "timeout-ms",
        "udp",
    ])?;
    let (address, path) = args.target()?;
    let duration: Option<f64> = args.value("duration")?;
    let unbounded = if duration.is_some() { u64::MAX } else { 1 };
    let job = Arc::new(Job {
        address,
        path,
        keepalive: args.flag("keepalive"),
        udp: args.flag("udp"),
        timeout: args.millis("timeout-ms", 2000)?,
        interval: args.millis("interval-ms", 0)?,
        requests: args.value("requests")?.unwrap_or(unbounded),
        deadline: duration
            .map(|seconds| Instant::now() + Duration::from_secs_f64(seconds.max(0.0))),
        taken: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
    });
    stop_on_signal(&job)?;
    let start = Instant::now();
    let workers: Vec<_> = (0..args.value::<usize>("connections")?.unwrap_or(1).max(1))
        .map(|_| {
            let job = Arc::clone(&job);
            std::thread::spawn(move || work(&job))
        })
        .collect();
    let mut report = Report::default();
    for worker in workers {
        report.add(
            worker
                .join()
                .map_err(|_panicked| "a worker died".to_owned())?,
        );
    }
    println!("{}", report.json(start.elapsed()));
    Ok(report.failed == 0)
}

fn stop_on_signal(job: &Arc<Job>) -> Result<(), String> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals
        .thread_block()
        .map_err(|error| format!("block signals: {error}"))?;
    let job = Arc::clone(job);
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            job.stopped.store(true, Ordering::SeqCst);
        }
    });
    Ok(())
}

fn work(job: &Job) -> Report {
    let mut report = Report::default();
    let mut connection = None;
    while !job.stopped.load(Ordering::SeqCst)
        && job
            .deadline
            .is_none_or(|deadline| Instant::now() < deadline)
        && job.taken.fetch_add(1, Ordering::SeqCst) < job.requests
    {
        let start = Instant::now();
        let result = call(job, &mut connection, &mut report.retried);
        let took = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        report.count(result, took);
        std::thread::sleep(job.interval);
    }
    report
}

fn call(job: &Job, kept: &mut Option<Http>, retried: &mut u64) -> Result<Answer, Failure> {
    if job.udp {
        return ask_by_datagram(job.address, job.timeout, b"ping");
    }
    loop {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => Http::connect(job.address, job.timeout)?,
        };
        match connection.get(&job.path, job.keepalive) {
            Ok(answer) => {
                if job.keepalive && !answer.close {
                    *kept = Some(connection);
                }
                return Ok(answer);
            }
            Err((failure, true))
                if connection.answered > 0 && !failure.kind.ends_with("timeout") =>
            {
                *retried += 1;
            }
            Err((failure, _)) => return Err(failure),
        }
    }
}

fn now_ms() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis()
}

impl Report {
    fn count(&mut self, result: Result<Answer, Failure>, took: u64) {
        match result {
            Ok(answer) => {
                self.ok += 1;
                self.latencies.push(took);
                if took >= self.slowest.0 {
                    self.slowest = (took, now_ms(), answer.backend.clone());
                }
                *self.backends.entry(answer.backend).or_default() += 1;
            }
            Err(failure) => {
                self.failed += 1;
                if self.failures.len() < LISTED {
                    self.failures.push((now_ms(), failure));
                }
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.ok += other.ok;
        self.failed += other.failed;
        self.retried += other.retried;
        self.failures.extend(other.failures);
        self.latencies.extend(other.latencies);
        for (name, count) in other.backends {
            *self.backends.entry(name).or_default() += count;
        }
        if other.slowest.0 >= self.slowest.0 {
            self.slowest = other.slowest;
        }
    }

    fn json(&mut self, took: Duration) -> String {
        self.latencies.sort_unstable();
        self.failures.sort_by_key(|(at, _)| *at);
        self.failures.truncate(LISTED);
        let failures: Vec<String> = self
            .failures
            .iter()
            .map(|(at, failure)| {
                let (kind, text) = (json::string(&failure.kind), json::string(&failure.text));
                format!("{{\"at_ms\":{at},\"kind\":{kind},\"error\":{text}}}")
            })
            .collect();
        let backends: Vec<String> = self
            .backends
            .iter()
            .map(|(name, n)| format!("{}:{n}", json::string(name)))
            .collect();
        format!(
            "{{\"ok\":{},\"failed\":{},\"retried\":{},\"errors\":[{}],\"backends\":{{{}}},\
             \"latency_us\":{},\"slowest\":{{\"us\":{},\"at_ms\":{},\"backend\":{}}},\"seconds\":{:.3}}}",
            self.ok,
            self.failed,
            self.retried,
            failures.join(","),
            backends.join(","),
            json::percentiles(&self.latencies),
            self.slowest.0,
            self.slowest.1,
            json::string(&self.slowest.2),
            took.as_secs_f64()
        )
    }
}
