//! Probes and hooks: one request each, by exec, HTTP, TCP, gRPC or sleep.
//!
//! When and what follows from the answer is `agent-plan`'s. Called by `apply.rs`.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use agent_plan::action::{HookKind, Instance};
use agent_plan::outcome::{Call, Outcome};
use agent_plan::probe::Kind;
use agent_plan::world::container_id;
use agent_sys::shim::{Client, ShimError};
use proto::health::v1 as health;
use proto::v1;
use proto::v1::handler::Handler;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

use crate::startup::Sys;
use crate::tls;

/// Output of an exec probe or hook that is kept for its message, bytes.
const OUTPUT: usize = 1024;
/// A hook without a deadline of its own ends at the latest after this.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// One request to a container.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    handler: Option<Handler>,
    address: Ipv4Addr,
    timeout: Duration,
}

impl Request {
    /// To a pod's address, within so many milliseconds.
    pub(crate) fn new(handler: &v1::Handler, address: Ipv4Addr, timeout_ms: i64) -> Request {
        let timeout = Duration::from_millis(u64::try_from(timeout_ms).unwrap_or(0)).min(LONGEST);
        Request {
            handler: handler.handler.clone(),
            address,
            timeout,
        }
    }
}

/// Probes once.
pub(crate) fn probe(sys: &Arc<Sys>, instance: &Instance, kind: Kind, request: Request) {
    let (sys, instance) = (sys.clone(), instance.clone());
    tokio::spawn(async move {
        let outcome = match within(&sys, &instance, request, Purpose::Probe).await {
            Err(Failure::Unanswered) => Outcome::Unanswered {
                instance,
                call: Call::Probe(kind),
            },
            Err(Failure::Failed(message)) => Outcome::Probed {
                instance,
                kind,
                result: Err(message),
            },
            Ok(()) => Outcome::Probed {
                instance,
                kind,
                result: Ok(()),
            },
        };
        sys.tell(outcome).await;
    });
}

/// Runs a hook.
pub(crate) fn hook(sys: &Arc<Sys>, instance: &Instance, kind: HookKind, request: Request) {
    let (sys, instance) = (sys.clone(), instance.clone());
    tokio::spawn(async move {
        let outcome = match within(&sys, &instance, request, Purpose::Hook).await {
            Err(Failure::Unanswered) => Outcome::Unanswered {
                instance,
                call: Call::Hook(kind),
            },
            Err(Failure::Failed(message)) => Outcome::HookDone {
                instance,
                kind,
                result: Err(message),
            },
            Ok(()) => Outcome::HookDone {
                instance,
                kind,
                result: Ok(()),
            },
        };
        sys.tell(outcome).await;
    });
}

/// What a request is for: how its HTTP status is judged.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    /// Only a status from 200 to 399 is success.
    Probe,
    /// Any answer is success, as in kubelet: the container has been told.
    Hook,
}

/// Why a request did not succeed.
#[derive(Debug)]
enum Failure {
    /// The container's answer, or that there was none, in words.
    Failed(String),
    /// The pod's shim did not take the command: nothing is known of the container.
    Unanswered,
}

impl From<String> for Failure {
    fn from(message: String) -> Failure {
        Failure::Failed(message)
    }
}

async fn within(
    sys: &Sys,
    instance: &Instance,
    request: Request,
    purpose: Purpose,
) -> Result<(), Failure> {
    let timeout = request.timeout;
    let asks_shim = matches!(request.handler, Some(Handler::Exec(_)));
    match tokio::time::timeout(timeout, run(sys, instance, request, purpose)).await {
        Ok(result) => result,
        // Slow, or is it the shim that does not run?
        Err(_elapsed) if asks_shim && !answers(sys, instance).await => Err(Failure::Unanswered),
        Err(_elapsed) => Err(format!("timed out after {} ms", timeout.as_millis()).into()),
    }
}

/// True when the pod's shim answers a simple question.
async fn answers(sys: &Sys, instance: &Instance) -> bool {
    match Client::connect(&sys.layout, &instance.uid).await {
        Ok(mut client) => client.list().await.is_ok(),
        Err(_) => false,
    }
}

async fn run(
    sys: &Sys,
    instance: &Instance,
    request: Request,
    purpose: Purpose,
) -> Result<(), Failure> {
    let host = |named: &str| {
        if named.is_empty() {
            request.address.to_string()
        } else {
            named.to_owned()
        }
    };
    match &request.handler {
        None => Err(Failure::Failed("the probe says not what to do".into())),
        Some(Handler::Exec(exec)) => command(sys, instance, &exec.command).await,
        Some(Handler::TcpSocket(tcp)) => {
            drop(dial(&host(&tcp.host), tcp.port).await?);
            Ok(())
        }
        Some(Handler::HttpGet(get)) => Ok(http(&host(&get.host), get, purpose).await?),
        Some(Handler::Grpc(probe)) => Ok(grpc(request.address, probe).await?),
        Some(Handler::Sleep(sleep)) => {
            let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Ok(())
        }
    }
}

async fn command(sys: &Sys, instance: &Instance, command: &[String]) -> Result<(), Failure> {
    let refused = |error: ShimError| match error.is_answer() {
        true => Failure::Failed(error.to_string()),
        false => Failure::Unanswered,
    };
    let client = Client::connect(&sys.layout, &instance.uid)
        .await
        .map_err(refused)?;
    let exec = v1::ShimExec {
        id: container_id(&instance.uid, &instance.container, instance.attempt),
        args: command.to_vec(),
        ..v1::ShimExec::default()
    };
    // Dropping it, at the time-out, kills the process.
    let running = client.exec(exec).await.map_err(refused)?;
    let (code, output) = running.collect(OUTPUT).await.map_err(refused)?;
    if code == 0 {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&output);
    let output = output.trim();
    Err(Failure::Failed(if output.is_empty() {
        format!("command exited with {code}")
    } else {
        output.to_owned()
    }))
}

async fn dial(host: &str, port: u32) -> Result<TcpStream, String> {
    let port = u16::try_from(port).map_err(|e| format!("port {port}: {e}"))?;
    TcpStream::connect((host, port))
        .await
        .map_err(|e| format!("dial tcp {host}:{port}: {e}"))
}

async fn http(host: &str, get: &v1::handler::HttpGet, purpose: Purpose) -> Result<(), String> {
    let stream = dial(host, get.port).await?;
    let request = request(host, get);
    let status = if get.scheme.eq_ignore_ascii_case("HTTPS") {
        let config = tls::unverified().map_err(|e| e.to_string())?;
        let name = rustls_pki_types::ServerName::try_from(host.to_owned())
            .map_err(|e| format!("{host}: {e}"))?;
        let connector = tokio_rustls::TlsConnector::from(config);
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(|e| e.to_string())?;
        exchange(stream, &request).await?
    } else {
        exchange(stream, &request).await?
    };
    match purpose {
        Purpose::Hook => Ok(()),
        Purpose::Probe if (200..400).contains(&status) => Ok(()),
        Purpose::Probe => Err(format!("HTTP probe failed with statuscode: {status}")),
    }
}

fn request(host: &str, get: &v1::handler::HttpGet) -> String {
    let path = if get.path.is_empty() { "/" } else { &get.path };
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut text = format!("GET {slash}{path} HTTP/1.1\r\n");
    let named = |name: &str| {
        get.headers
            .iter()
            .any(|h| h.name.eq_ignore_ascii_case(name))
    };
    if !named("Host") {
        text.push_str(&format!("Host: {host}:{}\r\n", get.port));
    }
    if !named("User-Agent") {
        text.push_str("User-Agent: hydrofoil-probe\r\n");
    }
    if !named("Accept") {
        text.push_str("Accept: */*\r\n");
    }
    for header in &get.headers {
        // A line break would begin another header, or another request.
        let clean = |text: &str| text.replace(['\r', '\n'], " ");
        text.push_str(&format!(
            "{}: {}\r\n",
            clean(&header.name),
            clean(&header.value)
        ));
    }
    text.push_str("Connection: close\r\n\r\n");
    text
}

/// Sends the request and reads no more than the status line.
async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> Result<u16, String> {
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(|e| e.to_string())?;
    let mut head = Vec::new();
    while !head.contains(&b'\n') && head.len() < 1024 {
        if stream
            .read_buf(&mut head)
            .await
            .map_err(|e| e.to_string())?
            == 0
        {
            break;
        }
    }
    status_code(&head).ok_or_else(|| "malformed HTTP response".to_owned())
}

/// "HTTP/1.1 200 OK"
fn status_code(head: &[u8]) -> Option<u16> {
    let line = head.split(|b| *b == b'\n').next()?;
    let text = std::str::from_utf8(line).ok()?;
    let mut words = text.split_ascii_whitespace();
    words
        .next()
        .filter(|version| version.starts_with("HTTP/"))?;
    words.next()?.parse().ok()
}

/// The health protocol of gRPC: grpc.health.v1.Health/Check.
async fn grpc(address: Ipv4Addr, probe: &v1::handler::GrpcProbe) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}:{}", probe.port))
        .map_err(|e| e.to_string())?;
    let channel = endpoint
        .connect()
        .await
        .map_err(|e| proto::error::chain(&e))?;
    let request = health::HealthCheckRequest {
        service: probe.service.clone(),
    };
    let answer = health::health_client::HealthClient::new(channel)
        .check(request)
        .await
        .map_err(|status| status.to_string())?;
    let status = answer.into_inner().status();
    if status == health::health_check_response::ServingStatus::Serving {
        return Ok(());
    }
    Err(format!(
        "service unhealthy (responded with {:?})",
        status.as_str_name()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines() {
        let rows: [(&[u8], Option<u16>); 5] = [
            (b"HTTP/1.1 200 OK\r\nA: b\r\n", Some(200)),
            (b"HTTP/1.0 503\r\n", Some(503)),
            (b"SSH-2.0-x\r\n", None),
            (b"", None),
            (b"HTTP/1.1 abc\n", None),
        ];
        for (head, expected) in rows {
            assert_eq!(status_code(head), expected, "{head:?}");
        }
    }

    #[test]
    fn a_request_has_the_headers_that_are_asked_for_and_no_others_by_trick() {
        let get = v1::handler::HttpGet {
            port: 8080,
            path: "healthz".into(),
            headers: vec![
                v1::EnvVar {
                    name: "Host".into(),
                    value: "a".into(),
                    expand: false,
                },
                v1::EnvVar {
                    name: "X".into(),
                    value: "1\r\nY: 2".into(),
                    expand: false,
                },
            ],
            ..Default::default()
        };
        let text = request("10.0.0.1", &get);
        assert!(text.starts_with("GET /healthz HTTP/1.1\r\n"), "{text}");
        assert_eq!(text.matches("Host:").count(), 1);
        assert!(!text.contains("\r\nY:"), "{text}");
        assert!(text.ends_with("\r\n\r\n"));
    }

    #[tokio::test]
    async fn http_and_tcp_against_a_real_listener() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = u32::from(listener.local_addr().unwrap().port());
        let server = tokio::spawn(async move {
            for status in ["204 No Content", "500 Oh", "500 Oh"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut seen = [0; 512];
                assert!(stream.read(&mut seen).await.unwrap() > 0);
                let answer = format!("HTTP/1.1 {status}\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let get = v1::handler::HttpGet {
            port,
            path: "/".into(),
            ..Default::default()
        };
        let ask = |purpose| http("127.0.0.1", &get, purpose);
        assert_eq!(ask(Purpose::Probe).await, Ok(()));
        assert!(ask(Purpose::Probe).await.unwrap_err().contains("500"));
        assert_eq!(ask(Purpose::Hook).await, Ok(()));
        server.await.unwrap();
        assert!(
            dial("127.0.0.1", port)
                .await
                .unwrap_err()
                .contains("refused")
        );
        assert!(ask(Purpose::Hook).await.unwrap_err().contains("refused"));
    }
}
