//! A control plane of a few lines: real TLS, real gRPC, and it says what a test
//! tells it to. For tests of the agent alone.
//!
//! Keeps the changes pushed so far and sends them as a snapshot to each new stream.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use proto::Message as _;
use proto::service_change;
use proto::v1;
use proto::v1::attach_up::Up as AttachUp;
use proto::v1::change::Change;
use proto::v1::node_down::Down;
use proto::v1::node_server::{Node, NodeServer};
use proto::v1::node_up::Up;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PublicKeyData};
use sha2::{Digest, Sha256};
use tests_harness::{NetNs, wait_until};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

/// The join token that is accepted.
pub(crate) const TOKEN: &str = "a-token-of-the-test";

/// What a stream was told, and what it said.
#[derive(Default)]
struct State {
    revision: u64,
    /// Current state by key.
    changes: BTreeMap<String, Change>,
    streams: Vec<mpsc::Sender<Result<v1::NodeDown, Status>>>,
    hellos: Vec<v1::Hello>,
    /// Of before the next join.
    refuses_certificates: bool,
    acknowledged: u64,
    failures: Vec<v1::Failure>,
    statuses: BTreeMap<String, v1::PodStatus>,
    gone: Vec<String>,
    events: Vec<v1::NodeEvent>,
    attached: BTreeMap<String, Attached>,
    /// How long certificates are valid; `None`: for ever.
    certificate_life: Option<Duration>,
    renewals: usize,
}

/// What came over one `Attach` call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attached {
    pub(crate) output: Vec<u8>,
    pub(crate) exit_code: Option<i32>,
    pub(crate) refused: Option<v1::OpenRefused>,
    pub(crate) over: bool,
}

#[derive(Clone)]
struct Service {
    state: Arc<Mutex<State>>,
    issuer: Arc<Issuer<'static, KeyPair>>,
    ca_pem: String,
}

/// The running control plane.
pub(crate) struct Control {
    state: Arc<Mutex<State>>,
    pub(crate) port: u16,
    /// "sha256:..." over the CA's public key.
    pub(crate) ca_hash: String,
    _runtime: Runtime,
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state
        .lock()
        .expect("no test thread panics while holding it")
}

fn key_of(change: &Change) -> String {
    match change {
        Change::Config(_) => "config".into(),
        Change::Pod(spec) => format!("pod {}", spec.uid),
        Change::PodRemoved(uid) => format!("pod {uid}"),
        Change::Service(service) => format!("service {}/{}", service.namespace, service.name),
        Change::ServiceChange(change) => format!("service {}/{}", change.namespace, change.name),
        Change::ServiceRemoved(name) => format!("service {name}"),
        Change::Route(route) => format!("route {}", route.node),
        Change::RouteRemoved(node) => format!("route {node}"),
    }
}

fn encoded(change: Change) -> proto::Bytes {
    let change = Some(change);
    v1::Change { change }.encode_to_vec().into()
}

fn message(update: v1::Update) -> v1::NodeDown {
    v1::NodeDown {
        down: Some(Down::Update(update)),
    }
}

impl Control {
    /// Listens on 127.0.0.1 of a namespace.
    pub(crate) fn start(netns: &NetNs) -> Self {
        let runtime = Runtime::new().expect("runtime");
        let listener = netns.enter(|| TcpListener::bind("127.0.0.1:0").expect("listen"));
        listener.set_nonblocking(true).expect("non-blocking");
        let port = listener.local_addr().expect("address").port();

        let ca_key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "test CA");
        let ca = params.self_signed(&ca_key).expect("CA");
        let (ca_pem, spki) = (ca.pem(), ca_key.subject_public_key_info());
        let ca_hash = format!("sha256:{}", hex::encode(Sha256::digest(spki)));
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().expect("key");
        let names = vec!["127.0.0.1".to_owned()];
        let leaf = CertificateParams::new(names).expect("names");
        let leaf = leaf.signed_by(&key, &issuer).expect("certificate");
        let chain = format!("{}{ca_pem}", leaf.pem());

        let state = Arc::new(Mutex::new(State::default()));
        let service = Service {
            state: state.clone(),
            issuer: Arc::new(issuer),
            ca_pem: ca_pem.clone(),
        };
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(chain, key.serialize_pem()))
            .client_ca_root(Certificate::from_pem(&ca_pem))
            .client_auth_optional(true);
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
            Server::builder()
                .tls_config(tls)
                .expect("TLS")
                .add_service(NodeServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .expect("serve");
        });
        Self {
            state,
            port,
            ca_hash,
            _runtime: runtime,
        }
    }

    /// Lifetime of certificates that are signed from now on.
    pub(crate) fn certificates_end_after(&self, life: Duration) {
        locked(&self.state).certificate_life = Some(life);
    }

    /// Refuses the certificates that were made so far, and ends all streams.
    pub(crate) fn refuse_certificates(&self) {
        locked(&self.state).refuses_certificates = true;
        self.hang_up();
    }

    /// Certificates that were renewed so far.
    pub(crate) fn renewals(&self) -> usize {
        locked(&self.state).renewals
    }

    /// Pushes changes as one delta; its revision.
    pub(crate) fn push(&self, changes: Vec<Change>) -> u64 {
        let mut state = locked(&self.state);
        state.revision += 1;
        for change in &changes {
            let key = key_of(change);
            match change {
                Change::ServiceChange(change) => {
                    if let Some(Change::Service(service)) = state.changes.get_mut(&key) {
                        service_change::apply(service, change.clone()).expect("a change that fits");
                    }
                }
                Change::PodRemoved(_) | Change::ServiceRemoved(_) | Change::RouteRemoved(_) => {
                    state.changes.remove(&key);
                }
                Change::Config(_) | Change::Pod(_) | Change::Service(_) | Change::Route(_) => {
                    state.changes.insert(key, change.clone());
                }
            }
        }
        let update = v1::Update {
            cluster_id: "test".into(),
            revision: state.revision,
            changes: changes.into_iter().map(encoded).collect(),
            ..Default::default()
        };
        state
            .streams
            .retain(|s| s.try_send(Ok(message(update.clone()))).is_ok());
        state.revision
    }

    /// Ends all streams, as a control plane that restarts does.
    pub(crate) fn hang_up(&self) {
        let goodbye = v1::NodeDown {
            down: Some(Down::Goodbye(v1::Goodbye {
                reason: "test".into(),
            })),
        };
        for stream in std::mem::take(&mut locked(&self.state).streams) {
            // The stream of an agent that was killed takes no more.
            drop(stream.try_send(Ok(goodbye.clone())));
        }
    }

    fn see<T>(&self, what: &str, look: impl Fn(&State) -> Result<T, String>) -> T {
        wait_until(what, || look(&locked(&self.state)))
    }

    /// Waits until so many streams began; what the last one said first.
    pub(crate) fn hello(&self, count: usize) -> v1::Hello {
        self.see("a hello", |s| match s.hellos.last() {
            Some(last) if s.hellos.len() >= count => Ok(last.clone()),
            _ => Err(format!("{} hellos", s.hellos.len())),
        })
    }

    /// Streams that began so far.
    pub(crate) fn hellos(&self) -> usize {
        locked(&self.state).hellos.len()
    }

    /// Waits until the node has acknowledged this revision.
    pub(crate) fn acknowledged(&self, revision: u64) {
        self.see("an acknowledgement", |s| {
            if s.acknowledged >= revision {
                Ok(())
            } else {
                Err(format!("{}", s.acknowledged))
            }
        });
    }

    /// What could not be put in force, so far.
    pub(crate) fn failures(&self) -> Vec<v1::Failure> {
        locked(&self.state).failures.clone()
    }

    /// Waits until a pod's status is as wanted.
    pub(crate) fn status(
        &self,
        uid: &str,
        wanted: impl Fn(&v1::PodStatus) -> bool,
    ) -> v1::PodStatus {
        self.see(&format!("status of pod {uid}"), |s| {
            match s.statuses.get(uid) {
                Some(status) if wanted(status) => Ok(status.clone()),
                seen => Err(format!(
                    "{seen:#?}\n{:#?}",
                    s.events.iter().map(|e| &e.message).collect::<Vec<_>>()
                )),
            }
        })
    }

    /// Waits until nothing of a pod is left on the node.
    pub(crate) fn gone(&self, uid: &str) {
        self.see(&format!("end of pod {uid}"), |s| {
            if s.gone.iter().any(|g| g == uid) {
                return Ok(());
            }
            Err(format!(
                "{:#?}",
                s.events.iter().map(|e| &e.message).collect::<Vec<_>>()
            ))
        });
    }

    /// Reasons of a pod's events so far.
    pub(crate) fn reasons(&self, uid: &str) -> Vec<String> {
        let state = locked(&self.state);
        state
            .events
            .iter()
            .filter(|e| e.uid == uid)
            .map(|e| e.reason.clone())
            .collect()
    }

    /// Asks for logs or a command, and waits for the end of the call.
    pub(crate) fn open(&self, id: &str, what: v1::open::What) -> Attached {
        let open = v1::NodeDown {
            down: Some(Down::Open(v1::Open {
                id: id.into(),
                what: Some(what),
            })),
        };
        let mut state = locked(&self.state);
        // Of an earlier call with this id.
        state.attached.remove(id);
        // The stream of an agent that was killed takes no more.
        state
            .streams
            .retain(|stream| stream.try_send(Ok(open.clone())).is_ok());
        drop(state);
        self.see(&format!("attach {id}"), |s| match s.attached.get(id) {
            Some(attached) if attached.over => Ok(attached.clone()),
            seen => Err(format!("{seen:?}")),
        })
    }
}

fn certified<T>(request: &Request<T>) -> Result<(), Status> {
    if request.peer_certs().is_none_or(|all| all.is_empty()) {
        return Err(Status::unauthenticated("no client certificate"));
    }
    Ok(())
}

impl Service {
    fn sign(&self, csr_pem: &str) -> Result<String, Status> {
        let mut csr = rcgen::CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        if let Some(life) = locked(&self.state).certificate_life {
            let now = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_err(|e| Status::internal(e.to_string()))?;
            let epoch = rcgen::date_time_ymd(1970, 1, 1);
            csr.params.not_before = epoch + now;
            csr.params.not_after = epoch + now + life;
        }
        let signed = csr
            .signed_by(&self.issuer)
            .map_err(|e| Status::internal(e.to_string()))?;
        Ok(signed.pem())
    }
}

type Down2<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Node for Service {
    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinResponse>, Status> {
        let request = request.into_inner();
        if request.token != TOKEN {
            return Err(Status::permission_denied("the join token is not known"));
        }
        locked(&self.state).refuses_certificates = false;
        Ok(Response::new(v1::JoinResponse {
            certificate_pem: self.sign(&request.csr_pem)?,
            ca_pem: self.ca_pem.clone(),
        }))
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::RenewResponse>, Status> {
        certified(&request)?;
        let certificate_pem = self.sign(&request.into_inner().csr_pem)?;
        locked(&self.state).renewals += 1;
        Ok(Response::new(v1::RenewResponse {
            certificate_pem,
            ca_pem: self.ca_pem.clone(),
        }))
    }

    type SessionStream = Down2<v1::NodeDown>;

    async fn session(
        &self,
        request: Request<Streaming<v1::NodeUp>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        certified(&request)?;
        if locked(&self.state).refuses_certificates {
            return Err(Status::permission_denied("it needs a new join token"));
        }
        let mut up = request.into_inner();
        let (sender, down) = mpsc::channel(1024);
        let state = self.state.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = up.next().await {
                let mut state = locked(&state);
                match message.up {
                    Some(Up::Hello(hello)) => {
                        state.hellos.push(hello);
                        let changes = state.changes.values();
                        let snapshot = v1::Update {
                            cluster_id: "test".into(),
                            revision: state.revision,
                            snapshot_begin: true,
                            snapshot_end: true,
                            changes: changes.cloned().map(encoded).collect(),
                            ..Default::default()
                        };
                        if sender.try_send(Ok(self::message(snapshot))).is_ok() {
                            state.streams.push(sender.clone());
                        }
                    }
                    Some(Up::Ack(ack)) => {
                        state.acknowledged = state.acknowledged.max(ack.revision);
                        state.failures.extend(ack.failures);
                    }
                    Some(Up::PodStatus(status)) => {
                        state.statuses.insert(status.uid.clone(), status);
                    }
                    Some(Up::PodGone(gone)) => state.gone.push(gone.uid),
                    Some(Up::Event(event)) => state.events.push(event),
                    Some(Up::NodeStatus(_) | Up::Heartbeat(_) | Up::OpenRefused(_)) | None => {}
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(down))))
    }

    type AttachStream = Down2<v1::AttachDown>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::AttachUp>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut up = request.into_inner();
        let state = self.state.clone();
        let (sender, down) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut id = String::new();
            while let Some(Ok(message)) = up.next().await {
                let mut state = locked(&state);
                let attached = state.attached.entry(id.clone()).or_default();
                match message.up {
                    Some(AttachUp::Id(given)) => id = given,
                    Some(AttachUp::Stdout(bytes) | AttachUp::Stderr(bytes)) => {
                        attached.output.extend(bytes);
                    }
                    Some(AttachUp::ExitCode(code)) => attached.exit_code = Some(code),
                    Some(AttachUp::Refused(refused)) => attached.refused = Some(refused),
                    None => {}
                }
            }
            locked(&state).attached.entry(id).or_default().over = true;
            // Held until here: its end says that there is no reader.
            drop(sender);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(down))))
    }
}
