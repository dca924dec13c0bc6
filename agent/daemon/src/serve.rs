//! Serves what somebody asked the control plane for: logs and commands, each over
//! an `Attach` call of its own.
//!
//! The loop only answers questions about pods (`answer.rs`); bytes never pass
//! through it.

use std::sync::Arc;
use std::time::Duration;

use proto::v1;
use proto::v1::attach_up::Up;
use proto::v1::node_client::NodeClient;
use proto::v1::open::What;
use tokio_stream::wrappers::ReceiverStream;

use crate::attach::{Refusal, Upward};
use crate::exec;
use crate::logs;
use crate::startup::Sys;
use crate::tls::Calls;

/// How long the other side may take to read what was sent.
const LINGER: Duration = Duration::from_secs(30);

/// Serves one request in a task of its own.
pub(crate) fn open(sys: &Arc<Sys>, calls: Calls, open: v1::Open) {
    let sys = sys.clone();
    tokio::spawn(async move {
        let Some(channel) = calls.borrow().clone() else {
            return;
        };
        let (up, queue) = Upward::new();
        let id = open.id.clone();
        if up.send(Up::Id(id.clone())).await.is_err() {
            return;
        }
        let call = NodeClient::new(channel)
            .attach(ReceiverStream::new(queue))
            .await;
        let mut down = match call {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                tracing::warn!(id, %status, "a stream of logs or exec failed");
                return;
            }
        };
        let served = match open.what {
            Some(What::Logs(request)) => logs::serve(&sys, &up, &request, &mut down).await,
            Some(What::Exec(request)) => exec::serve(&sys, &up, &request, &mut down).await,
            None => Err(Refusal::new(
                tonic::Code::Unimplemented,
                "this agent does not know how",
            )),
        };
        if let Err(refusal) = served {
            let refused = v1::OpenRefused {
                id,
                code: refusal.code as i32,
                message: refusal.message,
            };
            // The caller may be gone already.
            drop(up.send(Up::Refused(refused)).await);
        }
        drop(up);
        // Until the other side has read all of it: ending the call resets it, and
        // what is still on its way would be lost.
        let read = async { while let Ok(Some(_)) = down.message().await {} };
        if tokio::time::timeout(LINGER, read).await.is_err() {
            tracing::debug!("an attach call was cut off");
        }
    });
}
