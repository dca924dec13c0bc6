//! Tells load balancers whether this node has endpoints of a service whose
//! `externalTrafficPolicy` is `Local`, at the service's `healthCheckNodePort`.
//!
//! The answer is kube-proxy's (pkg/proxy/healthcheck/service_health.go): 200 with the number of
//! endpoints, 503 if there are none. A part of `services.rs`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
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
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

/// Before another try when the port cannot be opened, and when the node is out of descriptors.
const PAUSE: Duration = Duration::from_secs(5);
/// For a client at one port.
const LIMITS: Limits = Limits {
    patience: Duration::from_secs(10),
    connections: 64,
};
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

/// What clients may take.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// For the whole of a connection: a load balancer asks one question.
    patience: Duration,
    /// Connections at once; a further one ends the oldest of the client that has most.
    connections: usize,
}

/// One port that is answered.
#[derive(Debug)]
struct Served {
    port: u16,
    answer: watch::Sender<Answer>,
    task: JoinHandle<()>,
}

/// All ports that are answered, by the service's id.
#[derive(Debug)]
pub(crate) struct HealthChecks {
    served: BTreeMap<u32, Served>,
    /// Who may open a port: a task that was told to end may still have it.
    ports: BTreeMap<u16, Arc<Mutex<()>>>,
    limits: Limits,
}

impl Default for HealthChecks {
    fn default() -> Self {
        Self::new(LIMITS)
    }
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        for served in self.served.values() {
            served.task.abort();
        }
    }
}

impl HealthChecks {
    fn new(limits: Limits) -> Self {
        Self {
            served: BTreeMap::new(),
            ports: BTreeMap::new(),
            limits,
        }
    }

    /// A service is like this now on the node at `place`; `None`: it is gone. Needs a tokio
    /// runtime if it has a port.
    pub(crate) fn put(&mut self, id: u32, service: Option<&v1::Service>, place: Place<'_>) {
        let port = service.map_or(0, |s| s.health_check_node_port);
        let (Some(service), Ok(port @ 1..)) = (service, u16::try_from(port)) else {
            self.end(|of, _| of == id);
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
        // The port may have been another service's.
        self.end(|of, of_port| of == id || of_port == port);
        let turn = self.ports.entry(port).or_default().clone();
        let (answer, answers) = watch::channel(answer);
        let task = tokio::spawn(serve(port, answers, turn, self.limits));
        let served = Served { port, answer, task };
        self.served.insert(id, served);
    }

    /// Ends those that are chosen by service and port.
    fn end(&mut self, chosen: impl Fn(u32, u16) -> bool) {
        self.ports.retain(|_, turn| Arc::strong_count(turn) > 1);
        let ended = self
            .served
            .extract_if(.., |id, served| chosen(*id, served.port));
        for (_, served) in ended {
            served.task.abort();
        }
    }
}

/// Answers until it is aborted, once all tasks before it have closed the port.
async fn serve(port: u16, answers: watch::Receiver<Answer>, turn: Arc<Mutex<()>>, limits: Limits) {
    // Released after the listener is closed: locals are dropped in reverse order.
    let _turn = turn.lock_owned().await;
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
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                connections.make_space(limits.connections);
                let answer = answer_one(stream, port, answers.clone(), limits.patience);
                connections.add(client.ip(), answer);
            }
            Err(error) => {
                tracing::debug!(port, %error, "cannot accept a health check");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Connections that are answered, the oldest first. They end with it.
#[derive(Debug, Default)]
struct Connections {
    tasks: JoinSet<()>,
    order: VecDeque<(IpAddr, AbortHandle)>,
}

impl Connections {
    /// Ends some until there are fewer than `most`, each the oldest of the client that has most:
    /// clients that send nothing must not keep a load balancer's question waiting.
    fn make_space(&mut self, most: usize) {
        while self.tasks.try_join_next().is_some() {}
        self.order.retain(|(_, task)| !task.is_finished());
        while self.order.len() >= most.max(1) {
            let mut counts: HashMap<IpAddr, usize> = HashMap::new();
            for (client, _) in &self.order {
                *counts.entry(*client).or_default() += 1;
            }
            let largest = counts.values().copied().max();
            let of_largest = |(client, _): &(IpAddr, _)| counts.get(client).copied() == largest;
            let oldest = self.order.iter().position(of_largest);
            if let Some((_, task)) = oldest.and_then(|at| self.order.remove(at)) {
                task.abort();
            }
        }
    }

    fn add(&mut self, client: IpAddr, connection: impl Future<Output = ()> + Send + 'static) {
        self.order.push_back((client, self.tasks.spawn(connection)));
    }
}

/// Answers the one request of a connection.
async fn answer_one(
    stream: TcpStream,
    port: u16,
    answers: watch::Receiver<Answer>,
    patience: Duration,
) {
    let service = service_fn(|_request| {
        let answer = answers.borrow().clone();
        async move { Ok::<_, Infallible>(response(&answer)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(patience, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(port, %error, "a health check failed"),
        Err(_elapsed) => tracing::debug!(port, "a health check took too long"),
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
    use std::sync::atomic::{AtomicU16, Ordering};
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

    /// A port that is free, and that the kernel gives to no other test or connection; another
    /// process may take it before the agent does, which then waits for it.
    async fn free_port() -> u16 {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        loop {
            let offset = std::process::id() as u16 % 100 * 100;
            let port = 20_000 + offset + NEXT.fetch_add(1, Ordering::Relaxed) % 100;
            let free = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await;
            if free.is_ok() {
                return port;
            }
        }
    }

    const PLACE: Place<'_> = Place {
        node: "here",
        zone: "",
    };

    /// As many connections as are answered at once send nothing, and have all the time that they
    /// want: a load balancer is answered all the same.
    #[tokio::test]
    async fn silent_connections_keep_none_waiting() {
        let port = free_port().await;
        let mut checks = HealthChecks::new(Limits {
            patience: Duration::from_hours(1),
            connections: 4,
        });
        checks.put(1, Some(&service(port, &["here"])), PLACE);
        ask(port).await;
        let mut silent = Vec::new();
        for _ in 0..4 {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
            silent.push(stream.unwrap());
        }
        let text = ask(port).await;
        assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
        // The oldest had to go.
        assert_eq!(silent[0].read(&mut [0; 8]).await.unwrap(), 0);
    }

    /// Others cannot crowd out a load balancer between its connect and its request.
    #[tokio::test]
    async fn who_has_most_connections_loses_the_first() {
        let port = free_port().await;
        let mut checks = HealthChecks::new(Limits {
            patience: Duration::from_hours(1),
            connections: 4,
        });
        checks.put(1, Some(&service(port, &["here"])), PLACE);
        ask(port).await;
        let connect = |from: [u8; 4]| async move {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind((Ipv4Addr::from(from), 0).into()).unwrap();
            let to = (Ipv4Addr::LOCALHOST, port).into();
            socket.connect(to).await.unwrap()
        };
        let mut balancer = connect([127, 0, 0, 1]).await;
        let mut silent = Vec::new();
        for _ in 0..8 {
            silent.push(connect([127, 0, 0, 2]).await);
        }
        // All of them were accepted.
        assert_eq!(silent[4].read(&mut [0; 8]).await.unwrap(), 0);
        let request = b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n";
        balancer.write_all(request).await.unwrap();
        let mut text = String::new();
        balancer.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    }

    /// The port of a service is given to another one, also in the same moment.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_port_goes_to_another_service() {
        let port = free_port().await;
        let mut checks = HealthChecks::default();
        for id in 1..50 {
            let mut next = service(port, &["here"]);
            next.name = format!("web-{id}");
            if id % 2 == 0 {
                // The one before has given it up already.
                checks.put(id - 1, None, PLACE);
            }
            checks.put(id, Some(&next), PLACE);
            let name = format!("\"name\": \"web-{id}\"");
            while !ask(port).await.contains(&name) {}
            assert_eq!(checks.served.len(), 1);
        }
    }

    /// Also if the second of three services has had no time to begin, and the first has yet to
    /// close the port.
    #[tokio::test]
    async fn a_port_waits_for_all_who_had_it() {
        let port = free_port().await;
        let mut checks = HealthChecks::default();
        let first = checks.ports.entry(port).or_default().clone();
        let first = first.lock_owned().await;
        for id in 2..=3 {
            let mut next = service(port, &["here"]);
            next.name = format!("web-{id}");
            checks.put(id, Some(&next), PLACE);
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
            let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
            refused.unwrap_err();
        }
        drop(first);
        assert!(ask(port).await.contains("\"name\": \"web-3\""));
        checks.put(3, None, PLACE);
        checks.end(|_, _| true);
    }

    #[tokio::test]
    async fn a_load_balancer_is_told_of_this_nodes_endpoints() {
        let port = free_port().await;
        let place = PLACE;
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
