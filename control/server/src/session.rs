//! The node service: joining, the session of each node, attached streams.
//!
//! What a node is to have comes from the hub; what it says goes to the store
//! (`report.rs`), to the recorder, or to whoever waits for a stream.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proto::v1::{self, attach_up, node_server, node_up};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::attach::{Attached, Attachments};
use crate::auth;
use crate::bounds;
use crate::hub::{Connected, Hub, Next};
use crate::join::Gate;
use crate::objects::Objects;
use crate::record::Recorder;
use crate::report::{self, Reports};

/// The first message has to come within this.
const HELLO: Duration = Duration::from_secs(10);
/// Failures of one acknowledgement that are logged.
const FAILURES: usize = 16;
/// Messages that wait for a slow node outside of its mailbox.
const WINDOW: usize = 4;

/// Serves nodes.
pub struct NodeService {
    /// The store.
    pub objects: Arc<Objects>,
    /// What nodes are to have.
    pub hub: Arc<Hub>,
    /// Takes nodes' events.
    pub recorder: Recorder,
    /// Lets nodes in.
    pub gate: Gate,
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
        let mut version = hello.agent_version.clone();
        bounds::version(&mut version);
        let mut node_status = hello.status.clone().unwrap_or_default();
        take_status(&self.hub, &self.objects, &node, &mut node_status, &version)
            .await
            .inspect_err(|status| {
                tracing::warn!(%from, node, "refused: {}", status.message());
            })?;
        let connected = self.hub.connect(&node, &hello);
        tracing::info!(
            %from, node, agent = version, revision = hello.revision,
            snapshot = connected.snapshot, "a node connected"
        );
        let (sender, receiver) = mpsc::channel(WINDOW);
        tokio::spawn(send(
            self.hub.clone(),
            node.clone(),
            connected.mailbox.clone(),
            sender,
        ));
        let listener = Listener {
            objects: self.objects.clone(),
            hub: self.hub.clone(),
            recorder: self.recorder.clone(),
            attachments: self.attachments.clone(),
            reports: Reports::start(self.objects.clone(), node.clone(), connected.budget.clone()),
            node,
            version,
            ends: caller.ends,
        };
        tokio::spawn(listener.listen(up, connected));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
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

async fn hello(up: &mut Streaming<v1::NodeUp>, node: &str) -> Result<v1::Hello, Status> {
    let first = tokio::time::timeout(HELLO, up.message()).await;
    let first = first.map_err(|_elapsed| Status::deadline_exceeded("no hello"))??;
    let Some(node_up::Up::Hello(hello)) = first.and_then(|m| m.up) else {
        return Err(Status::invalid_argument(
            "the first message must be a hello",
        ));
    };
    if hello.node_name != node {
        return Err(Status::permission_denied(format!(
            "the certificate is that of node {node:?}, the hello says {:?}",
            hello.node_name
        )));
    }
    Ok(hello)
}

/// Sends what is in the mailbox, as fast as the node takes it.
async fn send(
    hub: Arc<Hub>,
    node: String,
    mailbox: Arc<crate::mailbox::Mailbox>,
    sender: mpsc::Sender<Result<v1::NodeDown, Status>>,
) {
    loop {
        let collected = hub.collect(&node, &mailbox);
        for message in collected.messages {
            if sender.send(Ok(message)).await.is_err() {
                return;
            }
        }
        match collected.next {
            Next::More => {}
            Next::End => return,
            Next::Wait => tokio::select! {
                () = mailbox.wait() => {}
                () = sender.closed() => return,
            },
        }
    }
}

/// Takes what one node says.
struct Listener {
    objects: Arc<Objects>,
    hub: Arc<Hub>,
    recorder: Recorder,
    attachments: Arc<Attachments>,
    reports: Reports,
    node: String,
    /// Of the agent.
    version: String,
    /// When the certificate ends that the session was opened with.
    ends: Timestamp,
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
        // The node may still be there: it is not to wait for what nobody answers.
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
                for failure in ack.failures.iter().take(FAILURES) {
                    tracing::warn!(
                        node = self.node,
                        kind = failure.kind,
                        key = failure.key,
                        "not in force on the node: {}",
                        failure.message
                    );
                }
                self.hub.ack(&self.node, session, ack.revision);
            }
            node_up::Up::PodStatus(status) => self.pod_status(status),
            node_up::Up::PodGone(gone) => {
                if self.hub.pod(&self.node, &gone.uid).is_some() {
                    self.reports.gone(gone);
                }
            }
            node_up::Up::NodeStatus(mut status) => {
                let (node, version) = (&self.node, &self.version);
                take_status(&self.hub, &self.objects, node, &mut status, version).await?;
            }
            node_up::Up::Event(event) => self.event(event),
            node_up::Up::Heartbeat(_) => {}
            node_up::Up::OpenRefused(refused) => self.attachments.refuse(&self.node, &refused),
        }
        Ok(())
    }

    /// Of a pod that the node does not have, nothing is taken.
    fn pod_status(&self, mut status: v1::PodStatus) {
        if self.hub.pod(&self.node, &status.uid).is_none() {
            return;
        }
        if let Err(error) = bounds::pod_status(&mut status) {
            tracing::warn!(node = self.node, pod = status.uid, "{error}");
            return;
        }
        status.host_ip = self.hub.address(&self.node).unwrap_or_default();
        self.reports.status(status);
    }

    /// A node tells of itself and of its own pods.
    fn event(&self, mut event: v1::NodeEvent) {
        bounds::event(&mut event);
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
        self.recorder.record_node(&self.node, event);
    }
}

/// Takes what a node says of itself, in a hello or later. It waits until the node may
/// write: one that connects again and again has no more writes than another.
async fn take_status(
    hub: &Hub,
    objects: &Objects,
    node: &str,
    status: &mut v1::NodeStatus,
    version: &str,
) -> Result<(), Status> {
    hub.budget(node).take().await;
    judge(hub, objects, node, status)?;
    // Heard of before it is ready, or it would be called lost again.
    hub.report(node, status.clone(), version);
    report::register(objects, node, status, version).await?;
    Ok(())
}

/// Bounds what a node says of itself, and refuses what is another's.
fn judge(
    hub: &Hub,
    objects: &Objects,
    node: &str,
    status: &mut v1::NodeStatus,
) -> Result<(), Status> {
    bounds::node_status(status, objects.settings())
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    if let Some(other) = hub.node_at(&status.addresses, node) {
        return Err(Status::permission_denied(format!(
            "one of the addresses {:?} is that of node {other:?}",
            status.addresses
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use control_store::{Embedded, Options};
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_new_session_has_no_new_budget() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            history: 100,
            cache_bytes: 1 << 20,
        };
        let store = Embedded::open(&folder.path().join("store"), options).unwrap();
        let config = crate::Config::parse("data = \"/d\"").unwrap();
        let objects = Objects::new(Arc::new(store), config.settings());
        let hub = Hub::new("c".to_owned(), 1);
        let connected = hub.connect("n1", &v1::Hello::default());
        // Writes of several minutes.
        for _ in 0..20_000 {
            let _waits = connected.budget.take().now_or_never();
        }
        assert!(hub.disconnect("n1", connected.id));
        for (node, taken) in [("n1", false), ("n2", true)] {
            let mut status = v1::NodeStatus::default();
            // As far as it comes without waiting.
            let _rest = take_status(&hub, &objects, node, &mut status, "v").now_or_never();
            assert_eq!(hub.reported(node).is_some(), taken, "{node}");
        }
    }
}
