//! An agent that speaks the node's protocol and runs nothing: it notes what it is told, and
//! reports every pod as running and ready unless its options say otherwise.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use proto::Message as _;
use proto::bucket::{self, Digests, Replacing};
use proto::v1::node_client::NodeClient;
use proto::v1::{self, change, node_down, node_up};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::wait::PATIENCE;

/// What an agent has been told.
#[derive(Clone, Default, Debug)]
pub struct Told {
    pub revision: u64,
    pub cluster_id: String,
    pub source: u64,
    pub digests: Digests,
    replacing: Option<Replacing>,
    pub config: Option<v1::ClusterConfig>,
    pub pods: BTreeMap<String, v1::PodSpec>,
    pub services: BTreeMap<String, v1::Service>,
    pub routes: BTreeMap<String, v1::NodeRoute>,
    pub snapshots: u32,
    pub messages: usize,
    /// In the messages, together.
    pub changes: usize,
    pub bytes: usize,
    pub goodbye: bool,
    /// What was told, in order: "pod", "stop web-1", "terminating 10.0.0.1", ...
    pub story: Vec<String>,
}

impl Told {
    /// What an agent that comes back begins with: what it has, and nothing told yet.
    fn again(&self) -> Self {
        Self {
            config: None,
            snapshots: 0,
            messages: 0,
            changes: 0,
            bytes: 0,
            goodbye: false,
            story: Vec::new(),
            replacing: None,
            ..self.clone()
        }
    }
}

/// As the agent's own.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// What an agent does.
#[derive(Clone)]
pub struct Options {
    /// Reports its pods as running and ready.
    pub runs: bool,
    /// Acknowledges.
    pub acks: bool,
    /// Is heard of every few seconds, also if it has nothing to say.
    pub beats: bool,
    /// Leaves these out, and says so with the acknowledgement.
    pub refuses: fn(&change::Change) -> bool,
    /// Begins with what an agent of this node was told before.
    pub from: Told,
    /// Reads no more than so many updates.
    pub messages: usize,
    pub cpu_millis: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            runs: true,
            acks: true,
            beats: true,
            refuses: |_| false,
            from: Told::default(),
            messages: usize::MAX,
            cpu_millis: 4000,
        }
    }
}

/// A connected agent.
pub struct Agent {
    pub up: mpsc::Sender<v1::NodeUp>,
    pub told: watch::Receiver<Told>,
    pub client: NodeClient<Channel>,
    pub opens: Arc<Mutex<mpsc::Receiver<v1::Open>>>,
    task: tokio::task::JoinHandle<()>,
}

/// A message to the server.
pub fn up(up: node_up::Up) -> v1::NodeUp {
    v1::NodeUp { up: Some(up) }
}

/// What a node says of itself.
pub fn node_status(name: &str, cpu_millis: u64) -> v1::NodeStatus {
    let number = name
        .trim_start_matches(|c: char| !c.is_ascii_digit())
        .parse()
        .unwrap_or(1);
    v1::NodeStatus {
        addresses: vec![format!("172.31.0.{}", 10 + number)],
        hostname: name.to_owned(),
        cpu_millis,
        memory_bytes: 8 << 30,
        max_pods: 110,
        architecture: "x86_64".to_owned(),
        ..v1::NodeStatus::default()
    }
}

impl Agent {
    /// Connects, and follows what it is told.
    pub async fn start(mut client: NodeClient<Channel>, name: &str, options: Options) -> Self {
        let (sender, receiver) = mpsc::channel(1024);
        let hello = v1::Hello {
            node_name: name.to_owned(),
            agent_version: "test".to_owned(),
            cluster_id: options.from.cluster_id.clone(),
            revision: options.from.revision,
            source: options.from.source,
            buckets: bucket::COUNT,
            digests: options.from.digests.list(),
            service_changes: true,
            status: Some(node_status(name, options.cpu_millis)),
        };
        sender.send(up(node_up::Up::Hello(hello))).await.unwrap();
        let down = client
            .session(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        let (told, receiver) = watch::channel(options.from.again());
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
    pub async fn until(&mut self, what: &str, met: impl Fn(&Told) -> bool) -> Told {
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
    pub fn kill(self) {
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
    let mut failures = Vec::new();
    let mut beats = tokio::time::interval(HEARTBEAT);
    loop {
        let message = tokio::select! {
            message = down.message() => message,
            _ = beats.tick(), if options.beats => {
                let beat = up(node_up::Up::Heartbeat(v1::Heartbeat {}));
                if sender.send(beat).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let Ok(Some(message)) = message else {
            return;
        };
        match message.down {
            Some(node_down::Down::Update(update)) => {
                let revision = update.revision;
                told.send_modify(|told| failures.extend(take(told, update, options.refuses)));
                if told.borrow().messages >= options.messages {
                    return;
                }
                if options.acks && revision > 0 {
                    let failures = std::mem::take(&mut failures);
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

/// Takes an update in; what was refused of it.
fn take(
    told: &mut Told,
    update: v1::Update,
    refuses: fn(&change::Change) -> bool,
) -> Vec<v1::Failure> {
    let mut failures = Vec::new();
    told.bytes += update.encoded_len();
    if update.snapshot_begin {
        *told = Told {
            snapshots: told.snapshots + 1,
            messages: told.messages,
            changes: told.changes,
            bytes: told.bytes,
            story: std::mem::take(&mut told.story),
            ..Told::default()
        };
    }
    if !update.replaced.is_empty() {
        let replacing = Replacing::new(update.replaced);
        replacing
            .buckets()
            .for_each(|bucket| told.digests.forget(bucket));
        told.replacing = Some(replacing);
    }
    let decoded = |change| v1::Change::decode(change).unwrap().change.unwrap();
    let mut changes: Vec<change::Change> = update.changes.into_iter().map(decoded).collect();
    if let Some(replacing) = &mut told.replacing {
        changes.iter().for_each(|change| replacing.note(change));
    }
    if update.revision > 0
        && let Some(replacing) = told.replacing.take()
    {
        let (services, routes) = (told.services.keys(), told.routes.keys());
        changes.extend(replacing.removals(services, routes, told.pods.keys()));
    }
    for change in changes {
        told.changes += 1;
        if let Some(bucket) = bucket::of(&change) {
            told.digests.forget(bucket);
        }
        if refuses(&change) {
            failures.push(failure(&change));
            continue;
        }
        match change {
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
                tell_terminating(&mut told.story, backends);
                told.services
                    .insert(format!("{}/{}", service.namespace, service.name), service);
            }
            change::Change::ServiceChange(changed) => {
                let backends = changed.ports.iter().flat_map(|p| &p.backends);
                tell_terminating(&mut told.story, backends);
                let name = format!("{}/{}", changed.namespace, changed.name);
                // It has none that it has refused.
                if let Some(service) = told.services.get_mut(&name) {
                    proto::service_change::apply(service, changed).unwrap();
                }
            }
            change::Change::ServiceRemoved(name) => drop(told.services.remove(&name)),
            change::Change::Route(route) => drop(told.routes.insert(route.node.clone(), route)),
            change::Change::RouteRemoved(node) => drop(told.routes.remove(&node)),
        }
    }
    told.messages += 1;
    if update.revision > 0 {
        told.source = update.source;
    }
    for digest in update.digests {
        told.digests.note(digest);
    }
    told.revision = told.revision.max(update.revision);
    told.cluster_id = update.cluster_id;
    failures
}

fn tell_terminating<'a>(story: &mut Vec<String>, backends: impl Iterator<Item = &'a v1::Backend>) {
    for backend in backends.filter(|b| b.state() == v1::backend::State::Terminating) {
        story.push(format!("terminating {}", backend.pod_name));
    }
}

fn failure(change: &change::Change) -> v1::Failure {
    let (kind, key) = if let change::Change::Pod(pod) = change {
        ("Pod", pod.uid.clone())
    } else if let change::Change::Service(service) = change {
        ("Service", format!("{}/{}", service.namespace, service.name))
    } else {
        panic!("no agent refuses {change:?}")
    };
    v1::Failure {
        kind: kind.to_owned(),
        key,
        message: "it is refused".to_owned(),
    }
}

/// Running and ready; or gone, when it was told to stop.
pub fn report(pod: &v1::PodSpec) -> v1::NodeUp {
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
