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
use crate::hub::{Connected, Hub, Next};
use crate::objects::Objects;
use crate::pki::Pki;
use crate::record::Recorder;
use crate::report::{self, Reports};

/// The first message has to come within this.
const HELLO: Duration = Duration::from_secs(10);
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
    /// Signs nodes' certificates.
    pub pki: Arc<Pki>,
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
        let now = Timestamp::now();
        if !self.pki.accepts(&join.token, now) {
            tracing::warn!(%from, node = join.node_name, "refused: unknown or expired join token");
            return Err(Status::permission_denied("unknown or expired join token"));
        }
        let certificate_pem = self
            .pki
            .sign_node(&join.csr_pem, &join.node_name, now)
            .map_err(|error| {
                tracing::warn!(%from, node = join.node_name, "refused: {error}");
                Status::invalid_argument(error.to_string())
            })?;
        tracing::info!(%from, node = join.node_name, "signed a node's certificate");
        let ca_pem = self.pki.ca_pem().to_owned();
        Ok(Response::new(v1::JoinResponse {
            certificate_pem,
            ca_pem,
        }))
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::NodeUp>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let node = auth::node(&request, "open a session")?;
        let from = request
            .remote_addr()
            .map_or_else(|| "?".to_owned(), |a| a.to_string());
        let mut up = request.into_inner();
        let hello = hello(&mut up, &node).await.inspect_err(|status| {
            tracing::warn!(%from, node, "refused: {}", status.message());
        })?;
        let node_status = hello.status.clone().unwrap_or_default();
        // Heard of before it is ready, or it would be called lost again.
        let version = &hello.agent_version;
        self.hub.report(&node, node_status.clone(), version);
        report::register(&self.objects, &node, &node_status, version).await?;
        let connected = self.hub.connect(&node, &hello);
        tracing::info!(
            %from, node, agent = hello.agent_version, revision = hello.revision,
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
            reports: Reports::start(self.objects.clone(), node.clone()),
            node,
            version: hello.agent_version,
        };
        tokio::spawn(listener.listen(up, connected));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn attach(
        &self,
        request: Request<Streaming<v1::AttachUp>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let node = auth::node(&request, "attach")?;
        let mut up = request.into_inner();
        let first = tokio::time::timeout(HELLO, up.message()).await;
        let first = first.map_err(|_elapsed| Status::deadline_exceeded("no first message"))??;
        let Some(attach_up::Up::Id(id)) = first.and_then(|m| m.up) else {
            return Err(Status::invalid_argument("the first message must be the id"));
        };
        let (down, receiver) = mpsc::channel(WINDOW);
        self.attachments.answer(&node, &id, Attached { up, down })?;
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
}

impl Listener {
    async fn listen(self, mut up: Streaming<v1::NodeUp>, connected: Connected) {
        let node = &self.node;
        let why = loop {
            match up.message().await {
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
                for failure in &ack.failures {
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
            node_up::Up::PodStatus(status) => self.reports.status(status)?,
            node_up::Up::PodGone(gone) => self.reports.gone(gone)?,
            node_up::Up::NodeStatus(status) => {
                self.hub.report(&self.node, status.clone(), &self.version);
                report::register(&self.objects, &self.node, &status, &self.version).await?;
            }
            node_up::Up::Event(event) => self.recorder.record_node(&self.node, event),
            node_up::Up::Heartbeat(_) => {}
            node_up::Up::OpenRefused(refused) => self.attachments.refuse(&self.node, &refused),
        }
        Ok(())
    }
}
