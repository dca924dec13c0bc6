//! A server in this process, an operator's client, and agents without containers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use control_server::start::Running;
use control_server::token::{Scope, Tokens};
use control_server::{Config, start};
use jiff::Timestamp;
use proto::Message as _;
use proto::v1::cluster_client::ClusterClient;
use proto::v1::node_client::NodeClient;
use proto::v1::{self, change, node_down, node_up};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// Waits for a condition; generous, as the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Server {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) running: Option<Running>,
    pub(crate) client: ClusterClient<Channel>,
    extra: String,
    /// Of the nodes that have joined.
    identities: tokio::sync::Mutex<BTreeMap<String, Identity>>,
}

pub(crate) async fn server() -> Server {
    server_with("").await
}

pub(crate) async fn server_with(extra: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let running = run(folder.path(), extra).await;
    let client = admin(&running).await;
    Server {
        folder,
        running: Some(running),
        client,
        extra: extra.to_owned(),
        identities: tokio::sync::Mutex::default(),
    }
}

async fn run(folder: &Path, extra: &str) -> Running {
    let text = format!(
        "listen = \"127.0.0.1:0\"\ndata = {:?}\nnames = [\"localhost\", \"127.0.0.1\"]\n{extra}",
        folder
    );
    start(&Config::parse(&text).unwrap()).await.unwrap()
}

pub(crate) fn endpoint(running: &Running, tls: ClientTlsConfig) -> Endpoint {
    let tls = tls.domain_name("localhost");
    let uri = format!("https://{}", running.address);
    Endpoint::from_shared(uri).unwrap().tls_config(tls).unwrap()
}

pub(crate) fn trusting(running: &Running) -> ClientTlsConfig {
    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(running.pki.ca_pem()))
}

async fn admin(running: &Running) -> ClusterClient<Channel> {
    let admin = running.pki.admin(Timestamp::now()).unwrap();
    let tls = trusting(running).identity(Identity::from_pem(admin.chain_pem, admin.key_pem));
    ClusterClient::new(endpoint(running, tls).connect().await.unwrap())
}

/// group, version and kind of a word such as "pods".
pub(crate) fn kind(word: &str) -> Option<v1::KindRef> {
    let kind = control_api::by_word(word).unwrap();
    let (group, version, kind) = (kind.group.into(), kind.version.into(), kind.kind.into());
    Some(v1::KindRef {
        group,
        version,
        kind,
    })
}

/// Reason and fields of a refused request.
pub(crate) fn detail(status: &Status) -> (String, Vec<String>) {
    let bytes = status
        .metadata()
        .get_bin("hydrofoil-status-bin")
        .unwrap()
        .to_bytes()
        .unwrap();
    let detail = v1::StatusDetail::decode(bytes).unwrap();
    (
        detail.reason,
        detail.causes.into_iter().map(|c| c.field).collect(),
    )
}

impl Server {
    pub(crate) fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    /// Ends the server without a goodbye, and starts another on the same folder.
    pub(crate) async fn restart(&mut self) {
        self.running.take().unwrap().stop().await.unwrap();
        self.run_again().await;
    }

    /// Starts a server on the folder of one that ended, with more configuration.
    pub(crate) async fn run_with(&mut self, extra: &str) {
        self.extra = extra.to_owned();
        self.run_again().await;
    }

    async fn run_again(&mut self) {
        // The store is closed when the last request lets go of it.
        let until = tokio::time::Instant::now() + PATIENCE;
        let text = format!(
            "listen = \"127.0.0.1:0\"\ndata = {:?}\nnames = [\"localhost\"]\n{}",
            self.folder.path(),
            self.extra
        );
        let config = Config::parse(&text).unwrap();
        let running = loop {
            match start(&config).await {
                Ok(running) => break running,
                Err(error) if tokio::time::Instant::now() > until => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        self.client = admin(&running).await;
        self.running = Some(running);
    }

    pub(crate) async fn try_apply(&mut self, value: &Value) -> Result<v1::ApplyResponse, Status> {
        let request = v1::ApplyRequest {
            json: value.to_string().into_bytes(),
            field_manager: "test".to_owned(),
            ..v1::ApplyRequest::default()
        };
        Ok(self.client.apply(request).await?.into_inner())
    }

    pub(crate) async fn apply(&mut self, value: &Value) -> Value {
        let response = self.try_apply(value).await.unwrap();
        serde_json::from_slice(&response.object.unwrap().json).unwrap()
    }

    pub(crate) async fn get(&mut self, word: &str, name: &str) -> Result<Value, Status> {
        let name = name.to_owned();
        let request = v1::GetRequest {
            kind: kind(word),
            name,
            ..v1::GetRequest::default()
        };
        let object = self.client.get(request).await?.into_inner();
        Ok(serde_json::from_slice(&object.json).unwrap())
    }

    pub(crate) async fn list(&mut self, word: &str, labels: &str) -> Vec<Value> {
        let request = v1::ListRequest {
            kind: kind(word),
            label_selector: labels.to_owned(),
            ..v1::ListRequest::default()
        };
        let list = self.client.list(request).await.unwrap().into_inner();
        list.items
            .iter()
            .map(|o| serde_json::from_slice(&o.json).unwrap())
            .collect()
    }

    pub(crate) async fn delete(&mut self, word: &str, name: &str) -> v1::DeleteResponse {
        let name = name.to_owned();
        let request = v1::DeleteRequest {
            kind: kind(word),
            name,
            ..v1::DeleteRequest::default()
        };
        self.client.delete(request).await.unwrap().into_inner()
    }

    /// Waits until a list satisfies a condition.
    pub(crate) async fn until(
        &mut self,
        word: &str,
        labels: &str,
        what: &str,
        met: impl Fn(&[Value]) -> bool,
    ) -> Vec<Value> {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let items = self.list(word, labels).await;
            if met(&items) {
                return items;
            }
            if tokio::time::Instant::now() > end {
                panic!("waited for {what}: {items:#?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn agent(&self, name: &str) -> Agent {
        self.agent_with(name, Options::default()).await
    }

    pub(crate) async fn agent_with(&self, name: &str, options: Options) -> Agent {
        let client = self.node_client(name).await;
        Agent::start(client, name, options).await
    }

    /// A join token.
    pub(crate) fn token(&self, scope: &Scope) -> String {
        let tokens = Tokens::new(self.running().pki.folder());
        let hour = jiff::SignedDuration::from_hours(1);
        tokens.make(scope, hour, Timestamp::now()).unwrap()
    }

    /// What a node has in its folder once it has joined, which it does now if need be.
    pub(crate) async fn identity(&self, node: &str) -> Identity {
        let mut known = self.identities.lock().await;
        if let Some(identity) = known.get(node) {
            return identity.clone();
        }
        let token = self.token(&Scope::Once);
        let key = rcgen::KeyPair::generate().unwrap();
        let joined = join(self.running(), node, "system:nodes", &token, &key).await;
        let identity = joined.unwrap();
        known.insert(node.to_owned(), identity.clone());
        identity
    }

    /// The node's folder is emptied: it joins anew, with another key.
    pub(crate) async fn forget_identity(&self, node: &str) {
        self.identities.lock().await.remove(node);
    }

    pub(crate) async fn node_client(&self, node: &str) -> NodeClient<Channel> {
        node_client(self.running(), self.identity(node).await).await
    }
}

/// What an agent has been told.
#[derive(Clone, Default, Debug)]
pub(crate) struct Told {
    pub(crate) revision: u64,
    pub(crate) cluster_id: String,
    pub(crate) config: Option<v1::ClusterConfig>,
    pub(crate) pods: BTreeMap<String, v1::PodSpec>,
    pub(crate) services: BTreeMap<String, v1::Service>,
    pub(crate) routes: BTreeMap<String, v1::NodeRoute>,
    pub(crate) snapshots: u32,
    pub(crate) messages: usize,
    pub(crate) goodbye: bool,
    /// What was told, in order: "pod", "stop web-1", "terminating 10.0.0.1", ...
    pub(crate) story: Vec<String>,
}

#[derive(Clone)]
pub(crate) struct Options {
    /// Reports its pods as running and ready.
    pub(crate) runs: bool,
    /// Acknowledges.
    pub(crate) acks: bool,
    /// Begins here: (cluster id, revision).
    pub(crate) from: (String, u64),
    /// Reads no more than so many updates.
    pub(crate) messages: usize,
    pub(crate) cpu_millis: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            runs: true,
            acks: true,
            from: (String::new(), 0),
            messages: usize::MAX,
            cpu_millis: 4000,
        }
    }
}

pub(crate) struct Agent {
    pub(crate) up: mpsc::Sender<v1::NodeUp>,
    pub(crate) told: watch::Receiver<Told>,
    pub(crate) client: NodeClient<Channel>,
    pub(crate) opens: Arc<Mutex<mpsc::Receiver<v1::Open>>>,
    task: tokio::task::JoinHandle<()>,
}

pub(crate) fn up(up: node_up::Up) -> v1::NodeUp {
    v1::NodeUp { up: Some(up) }
}

pub(crate) fn csr(node: &str, group: &str, key: &rcgen::KeyPair) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::OrganizationName, group);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, format!("system:node:{node}"));
    params.serialize_request(key).unwrap().pem().unwrap()
}

/// Joins as a fresh node does: without certificate, with this token.
pub(crate) async fn join(
    running: &Running,
    node: &str,
    group: &str,
    token: &str,
    key: &rcgen::KeyPair,
) -> Result<Identity, Status> {
    let channel = endpoint(running, trusting(running))
        .connect()
        .await
        .unwrap();
    let request = v1::JoinRequest {
        token: token.to_owned(),
        csr_pem: csr(node, group, key),
        node_name: node.to_owned(),
    };
    let response = NodeClient::new(channel).join(request).await?.into_inner();
    assert_eq!(response.ca_pem, running.pki.ca_pem());
    Ok(Identity::from_pem(
        response.certificate_pem,
        key.serialize_pem(),
    ))
}

pub(crate) async fn node_client(running: &Running, identity: Identity) -> NodeClient<Channel> {
    let tls = trusting(running).identity(identity);
    NodeClient::new(endpoint(running, tls).connect().await.unwrap())
}

impl Agent {
    async fn start(mut client: NodeClient<Channel>, name: &str, options: Options) -> Self {
        let (sender, receiver) = mpsc::channel(1024);
        let number = name
            .trim_start_matches(|c: char| !c.is_ascii_digit())
            .parse()
            .unwrap_or(1);
        let hello = v1::Hello {
            node_name: name.to_owned(),
            agent_version: "test".to_owned(),
            cluster_id: options.from.0.clone(),
            revision: options.from.1,
            status: Some(v1::NodeStatus {
                addresses: vec![format!("172.31.0.{}", 10 + number)],
                hostname: name.to_owned(),
                cpu_millis: options.cpu_millis,
                memory_bytes: 8 << 30,
                max_pods: 110,
                architecture: "x86_64".to_owned(),
                ..v1::NodeStatus::default()
            }),
        };
        sender.send(up(node_up::Up::Hello(hello))).await.unwrap();
        let down = client
            .session(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        let (told, receiver) = watch::channel(Told::default());
        let (open_sender, opens) = mpsc::channel(16);
        let task = tokio::spawn(follow(down, told, sender.clone(), open_sender, options));
        let opens = Arc::new(Mutex::new(opens));
        Self {
            up: sender,
            told: receiver,
            client,
            opens,
            task,
        }
    }

    /// Waits until what it was told satisfies a condition.
    pub(crate) async fn until(&mut self, what: &str, met: impl Fn(&Told) -> bool) -> Told {
        let waited = async {
            self.told
                .wait_for(|told| met(told))
                .await
                .map(|told| told.clone())
        };
        let waited = tokio::time::timeout(PATIENCE, waited).await;
        match waited {
            Ok(Ok(told)) => told,
            Ok(Err(_)) => panic!(
                "the session ended; waited for {what}: {:#?}",
                self.told.borrow()
            ),
            Err(_) => panic!("waited for {what}: {:#?}", self.told.borrow()),
        }
    }

    /// Ends at once, as a killed process does.
    pub(crate) fn kill(self) {
        self.task.abort();
    }
}

async fn follow(
    mut down: tonic::Streaming<v1::NodeDown>,
    told: watch::Sender<Told>,
    sender: mpsc::Sender<v1::NodeUp>,
    opens: mpsc::Sender<v1::Open>,
    options: Options,
) {
    let mut reported: BTreeMap<String, u64> = BTreeMap::new();
    while let Ok(Some(message)) = down.message().await {
        match message.down {
            Some(node_down::Down::Update(update)) => {
                let revision = update.revision;
                told.send_modify(|told| take(told, update));
                if told.borrow().messages >= options.messages {
                    return;
                }
                if options.acks && revision > 0 {
                    let failures = Vec::new();
                    let ack = v1::Ack { revision, failures };
                    if sender.send(up(node_up::Up::Ack(ack))).await.is_err() {
                        return;
                    }
                }
                if options.runs {
                    let pods: Vec<v1::PodSpec> = told.borrow().pods.values().cloned().collect();
                    for pod in pods {
                        if reported.insert(pod.uid.clone(), pod.generation) != Some(pod.generation)
                        {
                            sender.send(report(&pod)).await.unwrap();
                        }
                    }
                }
            }
            Some(node_down::Down::Open(open)) => opens.send(open).await.unwrap(),
            Some(node_down::Down::Goodbye(_)) => told.send_modify(|told| told.goodbye = true),
            None => {}
        }
    }
}

fn take(told: &mut Told, update: v1::Update) {
    if update.snapshot_begin {
        *told = Told {
            snapshots: told.snapshots + 1,
            messages: told.messages,
            story: std::mem::take(&mut told.story),
            ..Told::default()
        };
    }
    for change in update.changes {
        match change.change.unwrap() {
            change::Change::Config(config) => told.config = Some(config),
            change::Change::Pod(pod) => {
                if pod.stop_grace_seconds.is_some() {
                    told.story.push(format!("stop {}", pod.name));
                }
                told.pods.insert(pod.uid.clone(), pod);
            }
            change::Change::PodRemoved(uid) => drop(told.pods.remove(&uid)),
            change::Change::Service(service) => {
                let backends = service.ports.iter().flat_map(|p| &p.backends);
                for backend in backends.filter(|b| b.state() == v1::backend::State::Terminating) {
                    told.story.push(format!("terminating {}", backend.pod_name));
                }
                told.services
                    .insert(format!("{}/{}", service.namespace, service.name), service);
            }
            change::Change::ServiceRemoved(name) => drop(told.services.remove(&name)),
            change::Change::Route(route) => drop(told.routes.insert(route.node.clone(), route)),
            change::Change::RouteRemoved(node) => drop(told.routes.remove(&node)),
        }
    }
    told.messages += 1;
    told.revision = told.revision.max(update.revision);
    told.cluster_id = update.cluster_id;
}

/// Running and ready; or gone, when it was told to stop.
pub(crate) fn report(pod: &v1::PodSpec) -> v1::NodeUp {
    if pod.stop_grace_seconds.is_some() {
        return up(node_up::Up::PodGone(v1::PodGone {
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
        }));
    }
    let conditions = ["Initialized", "ContainersReady", "Ready"].map(|kind| v1::Condition {
        r#type: kind.to_owned(),
        status: "True".to_owned(),
        last_transition_ms: Timestamp::now().as_millisecond(),
        ..v1::Condition::default()
    });
    up(node_up::Up::PodStatus(v1::PodStatus {
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        observed_generation: pod.generation,
        phase: "Running".to_owned(),
        pod_ips: pod.ips.clone(),
        conditions: conditions.to_vec(),
        ..v1::PodStatus::default()
    }))
}

pub(crate) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "main", "image": "busybox"}]},
    })
}

pub(crate) fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{
                    "name": "main", "image": image,
                    "ports": [{"name": "http", "containerPort": 8080}],
                }]},
            },
        },
    })
}

pub(crate) fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "selector": {"app": name},
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    })
}

pub(crate) fn text<'a>(value: &'a Value, at: &str) -> &'a str {
    value.pointer(at).and_then(Value::as_str).unwrap_or("")
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    control_api::condition::is_true(pod, "Ready")
}
