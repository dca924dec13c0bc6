//! Commands in containers: bytes between an `Attach` call and the pod's shim.
//!
//! Called by `serve.rs`.

use agent_plan::world::container_id;
use agent_sys::shim::{Client, ExecEvent, ShimError};
use proto::v1;
use proto::v1::attach_down::Down;
use proto::v1::attach_up::Up;
use proto::v1::shim_error::Kind;

use crate::attach::{Refusal, Upward, instances};
use crate::startup::Sys;

/// Serves one request.
pub(crate) async fn serve(
    sys: &Sys,
    up: &Upward,
    request: &v1::OpenExec,
    down: &mut tonic::Streaming<v1::AttachDown>,
) -> Result<(), Refusal> {
    let found = instances(sys, &request.pod_uid, &request.container).await?;
    if !found.running {
        let message = format!(
            "container {:?} in pod {:?} is not running: {}",
            found.current.container, found.pod, found.waits
        );
        return Err(Refusal::new(tonic::Code::FailedPrecondition, message));
    }
    let this = &found.current;
    let refused = |error: ShimError| {
        let code = match &error {
            ShimError::Refused {
                kind: Kind::Command,
                ..
            } => tonic::Code::InvalidArgument,
            ShimError::Version(_)
            | ShimError::Refused {
                kind: Kind::NotFound | Kind::Invalid | Kind::Version,
                ..
            } => tonic::Code::FailedPrecondition,
            ShimError::Refused {
                kind: Kind::Runtime | Kind::OutOfMemory | Kind::Unspecified,
                ..
            }
            | ShimError::State(_)
            | ShimError::Prepare { .. }
            | ShimError::Spawn { .. }
            | ShimError::Ended { .. }
            | ShimError::Connect { .. }
            | ShimError::Frame(_)
            | ShimError::Closed
            | ShimError::Unexpected => tonic::Code::Internal,
            ShimError::Timeout { .. } => tonic::Code::Unavailable,
        };
        Refusal::new(code, error.to_string())
    };
    let client = Client::connect(&sys.layout, &this.uid)
        .await
        .map_err(refused)?;
    let running = client
        .exec(v1::ShimExec {
            id: container_id(&this.uid, &this.container, this.attempt),
            args: request.command.clone(),
            tty: request.tty,
            stdin: request.stdin,
            columns: request.columns,
            rows: request.rows,
        })
        .await
        .map_err(refused)?;
    let (mut input, mut output) = (running.input, running.output);
    let feed = async move {
        while let Ok(Some(message)) = down.message().await {
            let sent = match message.down {
                Some(Down::Stdin(bytes)) => input.write(bytes).await,
                Some(Down::StdinClosed(_)) => input.close().await,
                Some(Down::ColumnsRows(size)) => input.resize(size >> 16, size & 0xffff).await,
                None => Ok(()),
            };
            if sent.is_err() {
                // It has ended; its exit is on the way.
                std::future::pending::<()>().await;
            }
        }
        // The asker went away: dropping both halves ends the process.
    };
    let drain = async {
        loop {
            let (message, last) = match output.next().await.map_err(refused)? {
                ExecEvent::Stdout(bytes) => (Up::Stdout(bytes), false),
                ExecEvent::Stderr(bytes) => (Up::Stderr(bytes), false),
                ExecEvent::Exit(code) => (Up::ExitCode(code), true),
            };
            if up.send(message).await.is_err() || last {
                return Ok(());
            }
        }
    };
    tokio::select! {
        () = feed => Ok(()),
        result = drain => result,
        // Input may wait for a process that does not read, or for a shim that is stopped.
        () = up.closed() => Ok(()),
    }
}
