//! Tells load balancers whether this node has endpoints of a service whose
//! `externalTrafficPolicy` is `Local`, at the service's `healthCheckNodePort`.
//!
//! The answer is kube-proxy's (pkg/proxy/healthcheck/service_health.go): 200 with the number of
//! endpoints, 503 if there are none. A part of `services.rs`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use agent_plan::choice::{self, Place};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use proto::v1;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

/// Before another try when the port cannot be opened, and when the node is out of descriptors.
const PAUSE: Duration = Duration::from_secs(5);
/// For the whole of a connection: a load balancer asks one question.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections to one port at once; further ones wait.
const CONNECTIONS: usize = 64;
/// Header with the number of endpoints, by which load balancers may weigh nodes.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";

/// What is answered about one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    service: Name,
    local_endpoints: usize,
    /// The agent itself, which answers.
    service_proxy_healthy: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Name {
    namespace: String,
    name: String,
}

/// One port that is answered.
#[derive(Debug)]
struct Served {
    port: u16,
    answer: watch::Sender<Answer>,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All ports that are answered, by the service's id.
#[derive(Debug, Default)]
pub(crate) struct HealthChecks {
    served: BTreeMap<u32, Served>,
}

impl HealthChecks {
    /// A service is like this now on the node at `place`; `None`: it is gone. Needs a tokio
    /// runtime if it has a port.
    pub(crate) fn put(&mut self, id: u32, service: Option<&v1::Service>, place: Place<'_>) {
        let port = service.map_or(0, |s| s.health_check_node_port);
        let (Some(service), Ok(port @ 1..)) = (service, u16::try_from(port)) else {
            self.served.remove(&id);
            return;
        };
        let answer = Answer {
            service: Name {
                namespace: service.namespace.clone(),
                name: service.name.clone(),
            },
            local_endpoints: choice::local_endpoints(service, place),
            service_proxy_healthy: true,
        };
        if let Some(there) = self.served.get(&id).filter(|there| there.port == port) {
            there.answer.send_replace(answer);
            return;
        }
        // The port may have been another service's, whose answer ends first.
        self.served.retain(|_, there| there.port != port);
        let (answer, answers) = watch::channel(answer);
        let task = tokio::spawn(serve(port, answers));
        let served = Served { port, answer, task };
        self.served.insert(id, served);
    }
}

/// Answers until it is aborted.
async fn serve(port: u16, answers: watch::Receiver<Answer>) {
    let listener = loop {
        match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await {
            Ok(listener) => break listener,
            Err(error) => {
                let service = answers.borrow().service.clone();
                tracing::error!(
                    port,
                    namespace = service.namespace,
                    service = service.name,
                    %error,
                    "the health check of a service is not answered; trying again"
                );
            }
        }
        tokio::time::sleep(PAUSE).await;
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(port, %error, "cannot accept a health check");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let answers = answers.clone();
        tokio::spawn(async move {
            let service = service_fn(|_request| {
                let answer = answers.borrow().clone();
                async move { Ok::<_, Infallible>(response(&answer)) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(PATIENCE, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(port, %error, "a health check failed"),
                Err(_elapsed) => tracing::debug!(port, "a health check took too long"),
            }
            drop(place);
        });
    }
}

fn response(answer: &Answer) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec_pretty(answer).unwrap_or_default();
    let mut response = Response::new(Full::from(body));
    if answer.local_endpoints == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    headers.insert(WEIGHT, answer.local_endpoints.into());
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    fn service(port: u16, nodes: &[&str]) -> v1::Service {
        let backend = |(number, node): (usize, &&str)| v1::Backend {
            address: format!("10.244.1.{number}"),
            port: 8080,
            node: (*node).into(),
            state: v1::backend::State::Active.into(),
            ..Default::default()
        };
        v1::Service {
            namespace: "team".into(),
            name: "web".into(),
            health_check_node_port: port.into(),
            ports: vec![v1::ServicePort {
                backends: nodes.iter().enumerate().map(backend).collect(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    /// Asks until somebody answers.
    async fn ask(port: u16) -> String {
        loop {
            if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
                let request = b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n";
                let mut text = String::new();
                if stream.write_all(request).await.is_ok()
                    && stream.read_to_string(&mut text).await.is_ok()
                    && !text.is_empty()
                {
                    return text;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_load_balancer_is_told_of_this_nodes_endpoints() {
        // A port that is free; another process may take it before the agent does, which then
        // waits for it.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let place = Place {
            node: "here",
            ..Place::default()
        };
        let mut checks = HealthChecks::default();
        let both = service(port, &["here", "there", "here"]);
        checks.put(1, Some(&both), place);
        let text = ask(port).await;
        assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
        assert!(
            text.contains("x-load-balancing-endpoint-weight: 2\r\n"),
            "{text}"
        );
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let wanted = serde_json::json!({
            "service": {"namespace": "team", "name": "web"},
            "localEndpoints": 2,
            "serviceProxyHealthy": true
        });
        assert_eq!(body, wanted);
        checks.put(1, Some(&service(port, &["there"])), place);
        let text = ask(port).await;
        assert!(
            text.starts_with("HTTP/1.1 503 Service Unavailable"),
            "{text}"
        );
        checks.put(1, None, place);
        assert!(checks.served.is_empty());
    }
}
