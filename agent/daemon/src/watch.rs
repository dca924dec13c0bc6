//! The stream of the control plane: connects, says what the node has, hands on
//! what comes, and begins again when it breaks. The node runs on without it.
//!
//! One task; speaks to the loop by events and to `serve.rs` for `Attach`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use proto::v1;
use proto::v1::node_client::NodeClient;
use proto::v1::node_down::Down;
use proto::v1::node_up::Up;
use rand::Rng;
use rustls::ClientConfig;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::transport::Channel;

use crate::config::ControlAddress;
use crate::credentials::Credentials;
use crate::event::Event;
use crate::startup::Sys;
use crate::tls::{self, Handshake, TlsError};

/// Messages on their way up.
const QUEUE: usize = 256;
/// Silence after which a heartbeat is sent.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// First pause before another connection.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause: the control plane is back for a while before we notice.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    /// No channel.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A certificate was refused after the channel was made.
    #[error("TLS: {0}")]
    Certificate(rustls::Error),
    /// The call failed, or was ended with an error.
    #[error("{code}: {message}")]
    Status { code: tonic::Code, message: String },
    /// The control plane said goodbye.
    #[error("the control plane closed the session: {0}")]
    Goodbye(String),
    /// It ended the stream without a word.
    #[error("the control plane ended the stream")]
    Ended,
    /// The certificate was renewed: the next stream is opened with the new one, as
    /// this one ends with the old.
    #[error("the node's certificate was renewed")]
    Renewed,
    /// The loop has ended.
    #[error("the agent is ending")]
    Ending,
}

/// Why a call on this channel failed.
fn call_failed(status: &tonic::Status, handshake: &Handshake) -> StreamError {
    match handshake.refused() {
        Some(error) => StreamError::Certificate(error),
        None => StreamError::Status {
            code: status.code(),
            message: tls::status_text(status),
        },
    }
}

/// What the task needs.
pub(crate) struct Watch {
    /// Where the control plane listens.
    pub(crate) control: ControlAddress,
    /// The node's certificate; replaced when it is renewed.
    pub(crate) tls: watch::Receiver<Arc<ClientConfig>>,
    /// Asked when the certificate is refused.
    pub(crate) credentials: Credentials,
    /// Where the channel is told.
    pub(crate) calls: watch::Sender<Option<Channel>>,
    /// Where the certificate lies, for messages.
    pub(crate) folder: PathBuf,
    /// The node had no pods when the agent started.
    pub(crate) idle: bool,
    /// The loop.
    pub(crate) sys: Arc<Sys>,
}

/// The control plane does not want this node.
#[derive(Debug, thiserror::Error)]
#[error("refused by the control plane: {reason}; the node's certificate is in {folder}")]
pub(crate) struct Refused {
    reason: String,
    folder: PathBuf,
}

/// Runs for as long as the agent does. Ends with an error only if the node was
/// refused before it ever had a stream, and has no pods to look after.
pub(crate) async fn run(mut watch: Watch) -> Result<(), Refused> {
    let mut pause = FIRST_PAUSE;
    let mut last = String::new();
    let mut ever = false;
    loop {
        let mut connected = false;
        let error = match session(&mut watch, &mut connected).await {
            Ok(()) | Err(StreamError::Ending) => return Ok(()),
            Err(error) => error,
        };
        watch.calls.send_replace(None);
        ever |= connected;
        if connected {
            watch.sys.tell(Event::Disconnected).await;
            pause = FIRST_PAUSE;
            last.clear();
        }
        if matches!(error, StreamError::Renewed) {
            continue;
        }
        if refusal(&error) == Some(Refusal::Certificate) && watch.credentials.replace().await {
            continue;
        }
        let reason = error.to_string();
        let news = reason != last;
        last.clone_from(&reason);
        if refusal(&error).is_some() {
            let refused = Refused {
                reason,
                folder: watch.folder.clone(),
            };
            if !ever && watch.idle && !watch.credentials.may_replace() {
                return Err(refused);
            }
            if news {
                tracing::error!("{refused}");
            }
        } else if news {
            tracing::warn!(
                error = reason,
                "no connection to the control plane, retrying; pods keep running"
            );
        }
        // Not all nodes of a cluster at the same moment.
        let jitter = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(pause.mul_f64(jitter)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What the control plane refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// The certificate: another one may help.
    Certificate,
    /// What the node says of itself: its name, or an address that is another node's.
    Node,
}

/// What was refused; `None`: it may go better next time.
fn refusal(error: &StreamError) -> Option<Refusal> {
    match error {
        StreamError::Status { code, .. } => refused(*code),
        StreamError::Certificate(_) | StreamError::Tls(TlsError::Certificate { .. }) => {
            Some(Refusal::Certificate)
        }
        StreamError::Tls(
            TlsError::Connect { .. }
            | TlsError::Host { .. }
            | TlsError::Pem { .. }
            | TlsError::Rustls(_),
        )
        | StreamError::Goodbye(_)
        | StreamError::Ended
        | StreamError::Renewed
        | StreamError::Ending => None,
    }
}

/// As the codes of `Node.Session` are documented (node.proto).
fn refused(code: tonic::Code) -> Option<Refusal> {
    let is_of_certificate =
        code == tonic::Code::PermissionDenied || code == tonic::Code::Unauthenticated;
    let is_of_node = code == tonic::Code::FailedPrecondition;
    is_of_certificate
        .then_some(Refusal::Certificate)
        .or(is_of_node.then_some(Refusal::Node))
}

async fn session(watch: &mut Watch, connected: &mut bool) -> Result<(), StreamError> {
    let tls = watch.tls.borrow_and_update().clone();
    let (channel, handshake) = tls::connect(&watch.control, tls).await?;
    let failed = |status: tonic::Status| call_failed(&status, &handshake);
    let (sender, queue) = mpsc::channel(QUEUE);
    let events = watch.sys.events.clone();
    let tell = async |event: Event| {
        events
            .send(event)
            .await
            .map_err(|_gone| StreamError::Ending)
    };
    let (answer, hello) = oneshot::channel();
    tell(Event::Greet(answer)).await?;
    let hello = hello.await.map_err(|_gone| StreamError::Ending)?;
    let first = v1::NodeUp {
        up: Some(Up::Hello(hello)),
    };
    let mut client =
        NodeClient::new(channel.clone()).max_decoding_message_size(proto::limits::UPDATE_BYTES);
    let session = client.session(upstream(first, queue)).await;
    let mut down = session.map_err(failed)?.into_inner();
    *connected = true;
    tracing::info!("connected to the control plane");
    watch.calls.send_replace(Some(channel));
    tell(Event::Connected(sender)).await?;
    loop {
        let message = tokio::select! {
            message = down.message() => message.map_err(failed)?,
            Ok(()) = watch.tls.changed() => return Err(StreamError::Renewed),
        };
        let Some(message) = message else {
            return Err(StreamError::Ended);
        };
        match message.down {
            Some(Down::Update(update)) => tell(Event::Update(Box::new(update))).await?,
            Some(Down::Open(open)) => tell(Event::Open(Box::new(open))).await?,
            Some(Down::Goodbye(goodbye)) => return Err(StreamError::Goodbye(goodbye.reason)),
            // Of a newer control plane; what it says is not for us.
            None => {}
        }
    }
}

/// The messages of the queue after a first one; heartbeats where it is silent. None is
/// longer than the control plane takes: it would end the session, and the next one too.
fn upstream(
    first: v1::NodeUp,
    queue: mpsc::Receiver<v1::NodeUp>,
) -> impl Stream<Item = v1::NodeUp> + Send + 'static {
    futures::stream::unfold((Some(first), queue), |(first, mut queue)| async move {
        if let Some(mut first) = first {
            proto::bounds::up(&mut first);
            return Some((first, (None, queue)));
        }
        let mut message = match tokio::time::timeout(HEARTBEAT, queue.recv()).await {
            Ok(message) => message?,
            Err(_silent) => v1::NodeUp {
                up: Some(Up::Heartbeat(v1::Heartbeat {})),
            },
        };
        proto::bounds::up(&mut message);
        Some((message, (None, queue)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A join token that is spent on what no certificate can mend is missing later.
    #[test]
    fn only_a_refused_certificate_is_to_be_replaced() {
        use tonic::Code;
        let of = |code| {
            let message = String::new();
            refusal(&StreamError::Status { code, message })
        };
        assert_eq!(of(Code::PermissionDenied), Some(Refusal::Certificate));
        assert_eq!(of(Code::Unauthenticated), Some(Refusal::Certificate));
        assert_eq!(of(Code::FailedPrecondition), Some(Refusal::Node));
        assert_eq!(of(Code::Unavailable), None);
        assert_eq!(of(Code::ResourceExhausted), None);
    }
}
