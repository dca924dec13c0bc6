//! Streams of bytes from a node to a client: logs and exec.
//!
//! A node is asked over its session to call `Attach` with an id; who asked
//! waits for that call here. Called by `serve/` (asking) and `session.rs`
//! (answering).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::v1;
use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Status, Streaming};

use crate::hub::Hub;
use crate::refusal::Refusal;

/// A node that has not called by then is not going to.
const PATIENCE: Duration = Duration::from_secs(10);

/// Both directions of one stream.
pub struct Attached {
    /// From the node.
    pub up: Streaming<v1::AttachUp>,
    /// To the node.
    pub down: mpsc::Sender<Result<v1::AttachDown, Status>>,
}

type Answer = Result<Attached, Status>;

/// Who waits for which node.
#[derive(Default)]
pub struct Attachments {
    waiting: Mutex<HashMap<String, (String, oneshot::Sender<Answer>)>>,
}

impl Attachments {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (String, oneshot::Sender<Answer>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the node, and waits for its call.
    pub async fn open(
        &self,
        hub: &Hub,
        node: &str,
        what: v1::open::What,
    ) -> Result<Attached, Status> {
        let id = uuid::Uuid::new_v4().to_string();
        let (sender, receiver) = oneshot::channel();
        self.lock().insert(id.clone(), (node.to_owned(), sender));
        let asked = hub.open(
            node,
            v1::Open {
                id: id.clone(),
                what: Some(what),
            },
        );
        let answer = if asked {
            tokio::time::timeout(PATIENCE, receiver).await
        } else {
            Ok(Ok(Err(unavailable(node, "is not connected"))))
        };
        self.lock().remove(&id);
        match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(unavailable(node, "does not answer")),
        }
    }

    /// The node called. `NOT_FOUND`: no client waits for this id from this node.
    pub fn answer(&self, node: &str, id: &str, attached: Attached) -> Result<(), Status> {
        let not_found = || Status::not_found(format!("no client waits for stream {id:?}"));
        let sender = self.take(node, id).ok_or_else(not_found)?;
        sender.send(Ok(attached)).map_err(|_attached| not_found())
    }

    /// The node will not call.
    pub fn refuse(&self, node: &str, refused: &v1::OpenRefused) {
        if let Some(sender) = self.take(node, &refused.id)
            && sender.send(Err(refused_status(refused))).is_err()
        {
            tracing::debug!(
                node,
                id = refused.id,
                "the node refused a stream that no client waits for any more"
            );
        }
    }

    /// The node's session ended: clients need not wait for it any longer.
    pub fn gone(&self, node: &str) {
        self.lock().retain(|_, (whose, _)| whose != node);
    }

    fn take(&self, node: &str, id: &str) -> Option<oneshot::Sender<Answer>> {
        let mut waiting = self.lock();
        if waiting.get(id).is_none_or(|(whose, _)| whose != node) {
            return None;
        }
        waiting.remove(id).map(|(_, sender)| sender)
    }
}

/// What a node said when it refused.
pub fn refused_status(refused: &v1::OpenRefused) -> Status {
    Status::new(Code::from_i32(refused.code), refused.message.clone())
}

fn unavailable(node: &str, what: &str) -> Status {
    Refusal::Unavailable(format!("node {node:?} {what}")).into()
}
