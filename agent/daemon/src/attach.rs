//! One `Attach` call as its server sees it: the stream of messages to the control
//! plane, why the call ends early, and what its server may ask the loop.
//!
//! Used by `logs.rs` and `exec.rs`; made by `serve.rs`.

use agent_plan::action::Instance;
use proto::v1;
use proto::v1::attach_up::Up;
use tokio::sync::{mpsc, oneshot};

use crate::event::{Event, Instances, Question, Unknown};
use crate::startup::Sys;

/// Messages that wait to be sent: what a slow reader does not take stays in the pipe.
const QUEUE: usize = 16;

/// Why a request ends early: gRPC status code and words.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// gRPC status code.
    pub(crate) code: tonic::Code,
    /// In Kubernetes' words where it has some.
    pub(crate) message: String,
}

impl Refusal {
    /// With words.
    pub(crate) fn new(code: tonic::Code, message: impl Into<String>) -> Refusal {
        Refusal {
            code,
            message: message.into(),
        }
    }
}

/// The call has ended on the other side: not an error.
#[derive(Debug)]
pub(crate) struct Gone;

/// The stream of one call to the control plane.
#[derive(Debug, Clone)]
pub(crate) struct Upward(mpsc::Sender<v1::AttachUp>);

impl Upward {
    /// The stream's two ends.
    pub(crate) fn new() -> (Upward, mpsc::Receiver<v1::AttachUp>) {
        let (sender, queue) = mpsc::channel(QUEUE);
        (Upward(sender), queue)
    }

    /// Waits until the call has ended on the other side.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }

    /// Sends one message; waits while the reader is slow.
    pub(crate) async fn send(&self, up: Up) -> Result<(), Gone> {
        self.0
            .send(v1::AttachUp { up: Some(up) })
            .await
            .map_err(|_closed| Gone)
    }
}

/// Asks the loop for a container's instances.
pub(crate) async fn instances(sys: &Sys, uid: &str, container: &str) -> Result<Instances, Refusal> {
    let (answer, answered) = oneshot::channel();
    let question = Question::Instances {
        uid: uid.into(),
        container: container.into(),
        answer,
    };
    sys.tell(Event::Ask(question)).await;
    match answered.await {
        Ok(Ok(instances)) => Ok(instances),
        Ok(Err(Unknown(message))) => Err(Refusal::new(tonic::Code::NotFound, message)),
        Err(_ended) => Err(Refusal::new(
            tonic::Code::Unavailable,
            "the agent is ending",
        )),
    }
}

/// Asks the loop whether an instance may still write.
pub(crate) async fn lives(sys: &Sys, instance: &Instance) -> bool {
    let (answer, answered) = oneshot::channel();
    sys.tell(Event::Ask(Question::Lives {
        instance: instance.clone(),
        answer,
    }))
    .await;
    answered.await.unwrap_or(false)
}
