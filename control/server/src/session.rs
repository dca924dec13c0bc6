//! The node service: joining, the session of each node, attached streams.
//!
//! What a node is to have comes from the hub; what it says goes to the store
//! (`report.rs`), to the recorder, or to the caller that waits for a stream.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use control_api::meta;
use control_plan::{Settings, Severity};
use jiff::{SignedDuration, Timestamp};
use proto::v1::{self, attach_up, node_server, node_up};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::attach::{Attached, Attachments};
use crate::auth::{self, NodeCaller};
use crate::bounds;
use crate::hub::{Connected, Hub, Next, Rejected, Reported};
use crate::join::Gate;
use crate::mailbox::Mailbox;
use crate::objects::Objects;
use crate::record::{self, Recorder};
use crate::refusal::Refusal;
use crate::report::{self, Report, Reports};
use crate::stored::known;

/// The first message has to come within this.
const HELLO: Duration = Duration::from_secs(10);
/// Reason of the event about an object that is not in force on a node.
const FAILED: &str = "FailedApply";
/// Parts of logs or of an exec's input that wait for a slow node.
const WINDOW: usize = 4;

/// Serves nodes.
pub struct NodeService {
    /// The store.
    pub objects: Arc<Objects>,
    /// What nodes are to have.
    pub hub: Arc<Hub>,
    /// Takes nodes' events.
    pub recorder: Recorder,
    /// Takes what nodes say of their pods.
    pub reports: Arc<Reports>,
    /// Lets nodes in.
    pub gate: Arc<Gate>,
    /// The CA's certificate, PEM.
    pub ca_pem: String,
    /// Who waits for streams.
    pub attachments: Arc<Attachments>,
}

type Sent<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl node_server::Node for NodeService {
    type SessionStream = Sent<v1::NodeDown>;
    type AttachStream = Sent<v1::AttachDown>;

    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinResponse>, Status> {
        let from = request
            .remote_addr()
            .map_or_else(|| "?".to_owned(), |a| a.to_string());
        let join = request.into_inner();
        let node = join.node_name.clone();
        let certificate_pem = self
            .gate
            .join(join, Timestamp::now())
            .await
            .inspect_err(|error| tracing::warn!(%from, node, "refused: {error}"))?;
        tracing::info!(%from, node, "joined: signed its certificate");
        Ok(Response::new(v1::JoinResponse {
            certificate_pem,
            ca_pem: self.ca_pem.clone(),
        }))
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::RenewResponse>, Status> {
        let caller = auth::node(&request, "renew a certificate")?;
        let node = &caller.name;
        let certificate_pem = self
            .gate
            .renew(&caller, &request.into_inner().csr_pem, Timestamp::now())
            .await
            .inspect_err(|error| tracing::warn!(node, "certificate not renewed: {error}"))?;
        tracing::info!(node, "renewed its certificate");
        Ok(Response::new(v1::RenewResponse {
            certificate_pem,
            ca_pem: self.ca_pem.clone(),
        }))
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::NodeUp>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = auth::node(&request, "open a session")?;
        let node = caller.name.clone();
        let from = request
            .remote_addr()
            .map_or_else(|| "?".to_owned(), |a| a.to_string());
        let mut up = request.into_inner();
        let hello = hello(&mut up, &node).await.inspect_err(|status| {
            tracing::warn!(%from, node, "refused: {}", status.message());
        })?;
        self.gate.admit(&caller).await.inspect_err(|error| {
            tracing::warn!(%from, node, "refused: {error}");
        })?;
        let (connected, version) = self.begin(&caller, hello).await.inspect_err(|status| {
            tracing::warn!(%from, node, "refused: {}", status.message());
        })?;
        tracing::info!(
            %from, node, agent = version, snapshot = connected.snapshot, "a node connected"
        );
        let down = down(self.hub.clone(), node.clone(), connected.mailbox.clone());
        let listener = self.listener(node, version, caller.ends);
        tokio::spawn(listener.listen(up, connected));
        Ok(Response::new(Box::pin(down)))
    }

    async fn attach(
        &self,
        request: Request<Streaming<v1::AttachUp>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let caller = auth::node(&request, "attach")?;
        self.gate.admit(&caller).await?;
        let mut up = request.into_inner();
        let first = tokio::time::timeout(HELLO, up.message()).await;
        let first = first.map_err(|_elapsed| Status::deadline_exceeded("no first message"))??;
        let Some(attach_up::Up::Id(id)) = first.and_then(|m| m.up) else {
            return Err(Status::invalid_argument("the first message must be the id"));
        };
        let (down, receiver) = mpsc::channel(WINDOW);
        self.attachments
            .answer(&caller.name, &id, Attached { up, down })?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl NodeService {
    fn listener(&self, node: String, version: String, ends: Timestamp) -> Listener {
        Listener {
            objects: self.objects.clone(),
            hub: self.hub.clone(),
            recorder: self.recorder.clone(),
            attachments: self.attachments.clone(),
            reports: self.reports.clone(),
            node,
            version,
            ends,
            last_event: AtomicI64::new(i64::MIN),
        }
    }

    /// Begins a node's session with what it says of itself, and the agent's version.
    /// Waits until the node may write: one that connects again and again has no more
    /// writes than another.
    async fn begin(
        &self,
        caller: &NodeCaller,
        hello: v1::Hello,
    ) -> Result<(Connected, String), Status> {
        let node = caller.name.as_str();
        let mut reported = Reported {
            version: hello.agent_version.clone(),
            status: hello.status.clone().unwrap_or_default(),
        };
        proto::bounds::version(&mut reported.version);
        let version = reported.version.clone();
        self.hub.budget(node).take().await;
        bound(&mut reported.status, self.objects.settings())?;
        // Its Node may be another's by now: it must not end that one's session.
        self.gate.admit(caller).await?;
        // Heard of before it is ready, or it would be called lost again.
        let connected = self
            .hub
            .connect(node, &caller.key, &hello, reported)
            .map_err(rejected)?;
        let mut opening = Opening {
            hub: &self.hub,
            node,
            id: connected.id,
            began: false,
        };
        // From here on the Node's deletion ends the session: look once more for one
        // that came before.
        self.gate.admit(caller).await?;
        match report::register(&self.objects, &self.hub, node).await {
            // It tells of all its pods in a session that begins.
            Ok(_was_lost) => {}
            Err(refusal @ Refusal::NotFound { .. }) => {
                self.hub
                    .dismiss(node, Some(&caller.key), &refusal.to_string());
                return Err(refusal.into());
            }
            Err(refusal) => return Err(refusal.into()),
        }
        opening.began = true;
        Ok((connected, version))
    }
}

/// Takes a session out again that does not begin: the node may break the call off.
struct Opening<'a> {
    hub: &'a Hub,
    node: &'a str,
    id: u64,
    began: bool,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if !self.began {
            self.hub.disconnect(self.node, self.id);
        }
    }
}

fn rejected(rejected: Rejected) -> Status {
    // No fault of its certificate, as `permission_denied` would be.
    Status::failed_precondition(rejected.to_string())
}

fn bound(status: &mut v1::NodeStatus, settings: &Settings) -> Result<(), Status> {
    bounds::node_status(status, settings)
        .map_err(|error| Status::invalid_argument(error.to_string()))
}

async fn hello(up: &mut Streaming<v1::NodeUp>, node: &str) -> Result<v1::Hello, Status> {
    let first = tokio::time::timeout(HELLO, up.message()).await;
    let first = first.map_err(|_elapsed| Status::deadline_exceeded("no hello"))??;
    let Some(node_up::Up::Hello(hello)) = first.and_then(|m| m.up) else {
        return Err(Status::invalid_argument(
            "the first message must be a hello",
        ));
    };
    if hello.node_name != node {
        return Err(Status::failed_precondition(format!(
            "the certificate is that of node {node:?}, the hello says {:?}",
            hello.node_name
        )));
    }
    Ok(hello)
}

/// What is in the mailbox, as fast as the node takes it: a part of a step is made when the
/// one before it was taken, so that a slow node costs the memory of one part.
fn down(
    hub: Arc<Hub>,
    node: String,
    mailbox: Arc<Mailbox>,
) -> impl Stream<Item = Result<v1::NodeDown, Status>> {
    let begin = (VecDeque::new(), Next::More);
    futures::stream::unfold(begin, move |(mut messages, mut next)| {
        let (hub, node, mailbox) = (hub.clone(), node.clone(), mailbox.clone());
        async move {
            loop {
                if let Some(message) = messages.pop_front() {
                    return Some((Ok(message), (messages, next)));
                }
                match next {
                    Next::More => {}
                    Next::Wait => mailbox.wait().await,
                    Next::End => return None,
                }
                let collected = hub.collect(&node, &mailbox);
                messages.extend(collected.messages);
                next = collected.next;
            }
        }
    })
}

/// Takes what one node says.
struct Listener {
    objects: Arc<Objects>,
    hub: Arc<Hub>,
    recorder: Recorder,
    attachments: Arc<Attachments>,
    reports: Arc<Reports>,
    node: String,
    /// Of the agent.
    version: String,
    /// When the certificate ends that the session was opened with.
    ends: Timestamp,
    /// Time of the last event, microseconds since the epoch.
    last_event: AtomicI64,
}

/// How old an event of a node may be: as old as Kubernetes keeps them.
const OLDEST_EVENT: SignedDuration = SignedDuration::from_hours(1);

/// When an event of a node happened, as far as the node is believed; later than the event
/// before, as events are ordered by their times alone.
fn event_time(time_ms: i64, last: &AtomicI64, now: Timestamp) -> Timestamp {
    let said = Timestamp::from_millisecond(time_ms).ok();
    let said = said.filter(|_| time_ms != 0).unwrap_or(now);
    let oldest = now.checked_sub(OLDEST_EVENT).unwrap_or(now);
    let time = said.clamp(oldest, now);
    let time = record::later(last.load(Ordering::Relaxed), time);
    last.store(time, Ordering::Relaxed);
    Timestamp::from_microsecond(time).unwrap_or(now)
}

impl Listener {
    async fn listen(self, mut up: Streaming<v1::NodeUp>, connected: Connected) {
        let node = &self.node;
        let left = self.ends.duration_since(Timestamp::now());
        let ended = tokio::time::sleep(Duration::try_from(left).unwrap_or_default());
        tokio::pin!(ended);
        let why = loop {
            let message = tokio::select! {
                message = up.message() => message,
                () = &mut ended => break "its certificate has ended".to_owned(),
            };
            match message {
                Ok(Some(message)) => {
                    if !self.hub.heard(node, connected.id) {
                        break "a newer stream took over".to_owned();
                    }
                    if let Err(status) = self.take(message, connected.id).await {
                        break status.message().to_owned();
                    }
                }
                Ok(None) => break "it closed the stream".to_owned(),
                Err(status) => break status.message().to_owned(),
            }
        };
        // The node may still be there: it must not wait for an answer that will not come.
        connected.mailbox.say_goodbye(why.clone());
        if self.hub.disconnect(node, connected.id) {
            // Else they wait for the session that took over.
            self.attachments.gone(node);
        }
        tracing::info!(node, "a node disconnected: {why}");
    }

    async fn take(&self, message: v1::NodeUp, session: u64) -> Result<(), Status> {
        let Some(up) = message.up else { return Ok(()) };
        match up {
            node_up::Up::Hello(_) => return Err(Status::invalid_argument("a second hello")),
            node_up::Up::Ack(ack) => {
                self.hub.ack(&self.node, session, ack.revision);
                for failure in ack.failures.into_iter().take(proto::bounds::FAILURES) {
                    self.failure(failure).await?;
                }
            }
            node_up::Up::PodStatus(status) => self.pod_status(status, session),
            node_up::Up::PodGone(gone) => {
                if self.hub.pod(&self.node, &gone.uid).is_some() {
                    self.report(session, Report::Gone(gone));
                }
            }
            node_up::Up::NodeStatus(status) => self.node_status(status, session).await?,
            node_up::Up::Event(event) => self.event(event),
            node_up::Up::Heartbeat(_) => {}
            node_up::Up::OpenRefused(refused) => self.attachments.refuse(&self.node, &refused),
        }
        Ok(())
    }

    /// Takes what the node says of itself, when it may write again.
    async fn node_status(&self, mut status: v1::NodeStatus, session: u64) -> Result<(), Status> {
        self.hub.budget(&self.node).take().await;
        bound(&mut status, self.objects.settings())?;
        let version = self.version.clone();
        let reported = Reported { status, version };
        self.hub
            .report(&self.node, session, reported)
            .map_err(rejected)?;
        if report::register(&self.objects, &self.hub, &self.node).await? {
            self.hub.reopen(&self.node);
        }
        Ok(())
    }

    fn report(&self, session: u64, report: Report) {
        let budget = self.hub.budget(&self.node);
        self.hub.in_session(&self.node, session, || {
            self.reports.push(&self.node, report, budget);
        });
    }

    /// Of a pod that the node does not have, nothing is taken.
    fn pod_status(&self, mut status: v1::PodStatus, session: u64) {
        if self.hub.pod(&self.node, &status.uid).is_none() {
            return;
        }
        if let Err(error) = bounds::pod_status(&mut status) {
            tracing::warn!(node = self.node, pod = status.uid, "{error}");
            return;
        }
        status.host_ip = self.hub.address(&self.node).unwrap_or_default();
        self.report(session, Report::Status(Box::new(status)));
    }

    /// Something that the node was told is not in force there: its users are told.
    async fn failure(&self, failure: v1::Failure) -> Result<(), Status> {
        let v1::Failure { kind, key, message } = failure;
        if !self.may_tell() {
            return Ok(());
        }
        tracing::warn!(
            node = self.node,
            kind,
            key,
            "not in force on the node: {message}"
        );
        let event = v1::NodeEvent {
            r#type: Severity::Warning.as_str().to_owned(),
            reason: FAILED.to_owned(),
            message,
            kind,
            ..v1::NodeEvent::default()
        };
        match event.kind.as_str() {
            "Pod" => self.about_own(v1::NodeEvent { uid: key, ..event }),
            "Service" => {
                let Some((namespace, name)) = key.split_once('/') else {
                    return Ok(());
                };
                let kind = known("", "v1", "Service")?;
                let found = self.objects.find(kind, namespace, name).await?;
                if let Some(service) = found {
                    self.record(v1::NodeEvent {
                        namespace: namespace.to_owned(),
                        name: name.to_owned(),
                        uid: meta::uid(&service.value).to_owned(),
                        ..event
                    });
                }
            }
            "Node" => self.about_own(event),
            _ => {}
        }
        Ok(())
    }

    /// Charged before anything is read or kept for it.
    fn may_tell(&self) -> bool {
        let may = self.hub.budget(&self.node).may_tell();
        if !may {
            tracing::debug!(node = self.node, "more events than a node may tell");
        }
        may
    }

    fn event(&self, event: v1::NodeEvent) {
        if self.may_tell() {
            self.about_own(event);
        }
    }

    /// A node tells of itself and of its own pods.
    fn about_own(&self, mut event: v1::NodeEvent) {
        match event.kind.as_str() {
            "Pod" => {
                let Some(pod) = self.hub.pod(&self.node, &event.uid) else {
                    tracing::debug!(
                        node = self.node,
                        pod = event.uid,
                        "an event of no pod of its"
                    );
                    return;
                };
                (event.namespace, event.name) = pod;
            }
            "Node" => {
                event.namespace.clear();
                event.name.clone_from(&self.node);
                // As kubelet does: it knows no uid of its Node.
                event.uid.clone_from(&self.node);
            }
            other => {
                tracing::warn!(node = self.node, "an event about a {other:?} was not taken");
                return;
            }
        }
        self.record(event);
    }

    fn record(&self, mut event: v1::NodeEvent) {
        proto::bounds::event(&mut event);
        let time = event_time(event.time_ms, &self.last_event, Timestamp::now());
        self.recorder.record_node(&self.node, event, time);
    }
}

#[cfg(test)]
mod tests {
    use control_store::{Embedded, Options};
    use futures::FutureExt as _;
    use serde_json::json;

    use tokio::time::Instant;

    use super::*;
    use crate::budget::Budget;
    use crate::delete::DeleteOptions;
    use crate::pki::Pki;
    use crate::writing::{AGENT, Change, Writing};

    const NODE: &str = "Node";

    /// A Node object as joining makes it.
    async fn make(objects: &Objects, name: &str, key: &str) {
        let node = json!({"apiVersion": "v1", "kind": NODE,
            "metadata": {"name": name, "annotations": {crate::join::KEY: key}}});
        let kind = known("", "v1", NODE).unwrap();
        let writing = Writing::system(AGENT);
        let made = objects.create(kind, Change::To(node), &[], &writing).await;
        made.unwrap();
    }

    fn caller(name: &str, key: &str) -> NodeCaller {
        NodeCaller {
            name: name.to_owned(),
            key: key.to_owned(),
            ends: Timestamp::MAX,
        }
    }

    /// Serves nodes from a store in the folder.
    fn service(folder: &std::path::Path) -> NodeService {
        let options = Options {
            history: 100,
            cache_bytes: 1 << 20,
        };
        let store = Embedded::open(&folder.join("store"), options).unwrap();
        let config = crate::Config::parse("data = \"/d\"").unwrap();
        let objects = Arc::new(Objects::new(Arc::new(store), config.settings()));
        let pki = Arc::new(Pki::open(folder, Timestamp::now()).unwrap());
        NodeService {
            hub: Arc::new(Hub::new("c".to_owned(), 1)),
            recorder: Recorder::start(objects.clone()),
            reports: Arc::new(Reports::new(objects.clone())),
            gate: Arc::new(Gate::new(
                objects.clone(),
                pki,
                SignedDuration::from_hours(1),
            )),
            objects,
            ca_pem: String::new(),
            attachments: Arc::default(),
        }
    }

    /// About objects that differ each time, which is more than the correlator remembers.
    #[tokio::test]
    async fn what_a_node_tells_is_bounded_for_all_objects_together() {
        let folder = tempfile::tempdir().unwrap();
        let service = service(folder.path());
        let hub = &service.hub;
        hub.put_config("n1", v1::ClusterConfig::default());
        let connect = || {
            hub.connect("n1", "k", &v1::Hello::default(), Reported::default())
                .unwrap()
        };
        let connected = connect();
        let full = connected.budget.events_left();
        let listener = service.listener("n1".to_owned(), String::new(), Timestamp::MAX);
        let take = async |up| {
            let message = v1::NodeUp { up: Some(up) };
            listener.take(message, connected.id).await.unwrap();
        };
        for n in 0..100 {
            let failures = vec![v1::Failure {
                kind: "Service".to_owned(),
                key: format!("default/{n}"),
                message: "x".to_owned(),
            }];
            let revision = 1;
            take(node_up::Up::Ack(v1::Ack { revision, failures })).await;
            take(node_up::Up::Event(v1::NodeEvent {
                kind: "Pod".to_owned(),
                uid: n.to_string(),
                ..v1::NodeEvent::default()
            }))
            .await;
        }
        // Of 200, as it fills up again slowly.
        assert!(connected.budget.events_left() < full - 100.0);
        assert!(hub.disconnect("n1", connected.id));
        assert!(connect().budget.events_left() < full - 100.0);
        let budget = Budget::new(Instant::now());
        let told = (0..10_000).filter(|_| budget.may_tell()).count();
        assert!((1500..3000).contains(&told), "{told}");
    }

    #[test]
    fn a_node_is_believed_about_the_last_hour() {
        let now: Timestamp = "2024-05-01T12:00:00Z".parse().unwrap();
        for (said, expected) in [
            ("2024-05-01T11:59:00Z", "2024-05-01T11:59:00Z"),
            ("2024-05-01T12:00:01Z", "2024-05-01T12:00:00Z"),
            ("2024-05-01T10:00:00Z", "2024-05-01T11:00:00Z"),
            ("1970-01-01T00:00:00Z", "2024-05-01T12:00:00Z"),
        ] {
            let ms = said.parse::<Timestamp>().unwrap().as_millisecond();
            let got = event_time(ms, &AtomicI64::new(i64::MIN), now);
            assert_eq!(got, expected.parse().unwrap(), "{said}");
        }
        // In one millisecond, and by a clock that was set back.
        let last = AtomicI64::new(i64::MIN);
        let ms = now.as_millisecond();
        let times = [ms - 5, ms - 5, ms - 9].map(|ms| event_time(ms, &last, now));
        assert!(times.is_sorted() && times[0] < times[1] && times[1] < times[2]);
    }

    #[tokio::test]
    async fn a_new_session_has_no_new_budget() {
        let folder = tempfile::tempdir().unwrap();
        let service = service(folder.path());
        for name in ["n1", "n2"] {
            make(&service.objects, name, "k").await;
        }
        let hub = &service.hub;
        hub.put_config("n1", v1::ClusterConfig::default());
        let first = hub.connect("n1", "k", &v1::Hello::default(), Reported::default());
        let first = first.unwrap();
        // Writes of several minutes.
        for _ in 0..20_000 {
            let _waits = first.budget.take().now_or_never();
        }
        assert!(hub.disconnect("n1", first.id));
        let begin = async |node: &str| {
            let hello = v1::Hello {
                agent_version: "v".to_owned(),
                ..v1::Hello::default()
            };
            service.begin(&caller(node, "k"), hello).await.map(drop)
        };
        assert!(begin("n2").await.is_ok());
        // Not within the time that another needs for a write.
        let n1 = begin("n1");
        tokio::pin!(n1);
        let other = begin("n2");
        let first = futures::future::select(n1, Box::pin(other)).await;
        assert!(matches!(first, futures::future::Either::Right((Ok(()), _))));
        assert!(hub.reported("n1").is_none_or(|(r, _)| r.version != "v"));
    }

    /// Between two looks at the Node.
    #[tokio::test]
    async fn what_a_machine_says_is_not_written_onto_its_successor() {
        let folder = tempfile::tempdir().unwrap();
        let service = service(folder.path());
        let (objects, hub) = (&service.objects, &service.hub);
        let kind = known("", "v1", NODE).unwrap();
        make(objects, "n1", "new").await;
        for (key, written) in [("old", false), ("new", true)] {
            let reported = Reported {
                status: v1::NodeStatus {
                    hostname: key.to_owned(),
                    addresses: vec!["192.0.2.1".to_owned()],
                    ..v1::NodeStatus::default()
                },
                version: key.to_owned(),
            };
            hub.connect("n1", key, &v1::Hello::default(), reported)
                .unwrap();
            report::register(objects, hub, "n1").await.unwrap();
            let node = objects.get(kind, "", "n1").await.unwrap();
            let address = node.value.pointer("/status/addresses/0/address");
            assert_eq!(address.is_some(), written, "{key}");
        }
    }

    #[tokio::test]
    async fn who_waited_to_write_while_its_node_was_replaced_stays_out() {
        let folder = tempfile::tempdir().unwrap();
        let service = service(folder.path());
        let (objects, hub) = (&service.objects, &service.hub);
        make(objects, "n1", "old").await;
        let hello = v1::Hello::default;
        let first = hub
            .connect("n1", "old", &hello(), Reported::default())
            .unwrap();
        for _ in 0..150 {
            let _waits = first.budget.take().now_or_never();
        }
        let old = caller("n1", "old");
        let waits = service.begin(&old, hello());
        tokio::pin!(waits);
        assert!(waits.as_mut().now_or_never().is_none());
        let kind = known("", "v1", NODE).unwrap();
        let now = DeleteOptions::default();
        objects.delete(kind, "", "n1", &now).await.unwrap();
        make(objects, "n1", "new").await;
        let new = hub
            .connect("n1", "new", &hello(), Reported::default())
            .unwrap();
        let refused = waits.await.err().map(|status| status.code());
        assert_eq!(refused, Some(tonic::Code::PermissionDenied));
        assert!(hub.heard("n1", new.id), "the new machine's session goes on");
    }
}
