//! Logs and Exec: a client's stream joined to one of the pod's node.

use proto::v1::{self, attach_down, attach_up, exec_input, exec_output, open};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{ClusterService, namespace_of};
use crate::attach::{Attached, refused_status};
use crate::refusal::Refusal;
use crate::stored::known;

/// Chunks that wait for a slow side.
const WINDOW: usize = 16;

/// Where a container is.
struct Place {
    node: String,
    uid: String,
    container: String,
}

async fn place(
    service: &ClusterService,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Place, Refusal> {
    let kind = known("", "v1", "Pod")?;
    let found = service
        .objects
        .get(kind, namespace_of(kind, namespace), pod)
        .await?
        .value;
    let names = |at: &str| -> Vec<String> {
        let list = found.pointer(at).and_then(Value::as_array);
        let names = list
            .into_iter()
            .flatten()
            .filter_map(|c| c.get("name")?.as_str());
        names.map(str::to_owned).collect()
    };
    let (main, init) = (names("/spec/containers"), names("/spec/initContainers"));
    let container = if container.is_empty() {
        let [only] = main.as_slice() else {
            return Err(Refusal::BadRequest(format!(
                "a container name must be specified for pod {pod}, choose one of: [{}]",
                main.join(" ")
            )));
        };
        only.clone()
    } else if main.iter().chain(&init).any(|name| name == container) {
        container.to_owned()
    } else {
        return Err(Refusal::BadRequest(format!(
            "container {container} is not valid for pod {pod}"
        )));
    };
    let node = found
        .pointer("/spec/nodeName")
        .and_then(Value::as_str)
        .unwrap_or("");
    if node.is_empty() {
        return Err(Refusal::BadRequest(format!(
            "pod {pod} does not have a host assigned"
        )));
    }
    let uid = control_api::meta::uid(&found).to_owned();
    Ok(Place {
        node: node.to_owned(),
        uid,
        container,
    })
}

pub(super) async fn logs(
    service: &ClusterService,
    request: v1::LogsRequest,
) -> Result<ReceiverStream<Result<v1::LogsChunk, Status>>, Status> {
    let place = place(
        service,
        &request.namespace,
        &request.pod,
        &request.container,
    )
    .await?;
    let what = open::What::Logs(v1::OpenLogs {
        pod_uid: place.uid,
        container: place.container,
        follow: request.follow,
        previous: request.previous,
        tail_lines: request.tail_lines,
        since_seconds: request.since_seconds,
        timestamps: request.timestamps,
    });
    let attached = service
        .attachments
        .open(&service.hub, &place.node, what)
        .await?;
    let (sender, receiver) = mpsc::channel(WINDOW);
    tokio::spawn(async move {
        let end = copy_logs(attached, &sender).await;
        if let Err(status) = end {
            // The client may be gone; the error is dropped then.
            drop(sender.send(Err(status)).await);
        }
    });
    Ok(ReceiverStream::new(receiver))
}

type LogSender = mpsc::Sender<Result<v1::LogsChunk, Status>>;

async fn copy_logs(mut attached: Attached, sender: &LogSender) -> Result<(), Status> {
    loop {
        let message = tokio::select! {
            message = attached.up.message() => message?,
            () = sender.closed() => return Ok(()),
        };
        let Some(up) = message.and_then(|m| m.up) else {
            return Ok(());
        };
        match up {
            attach_up::Up::Stdout(data) | attach_up::Up::Stderr(data) => {
                if sender.send(Ok(v1::LogsChunk { data })).await.is_err() {
                    return Ok(());
                }
            }
            attach_up::Up::Refused(refused) => return Err(refused_status(&refused)),
            attach_up::Up::ExitCode(_) => return Ok(()),
            attach_up::Up::Id(_) => return Err(Status::internal("the node sent a second id")),
        }
    }
}

pub(super) async fn exec(
    service: &ClusterService,
    mut input: Streaming<v1::ExecInput>,
) -> Result<ReceiverStream<Result<v1::ExecOutput, Status>>, Status> {
    let first = input.message().await?.and_then(|m| m.input);
    let Some(exec_input::Input::Start(start)) = first else {
        return Err(Status::invalid_argument(
            "the first message must be the start",
        ));
    };
    if start.command.is_empty() {
        let refusal = Refusal::BadRequest("a command is needed".to_owned());
        return Err(refusal.into());
    }
    let place = place(service, &start.namespace, &start.pod, &start.container).await?;
    let size = start.size.unwrap_or_default();
    let what = open::What::Exec(v1::OpenExec {
        pod_uid: place.uid,
        container: place.container,
        command: start.command,
        stdin: start.stdin,
        tty: start.tty,
        columns: size.columns,
        rows: size.rows,
    });
    let attached = service
        .attachments
        .open(&service.hub, &place.node, what)
        .await?;
    let (sender, receiver) = mpsc::channel(WINDOW);
    let Attached { up, down } = attached;
    let copying = tokio::spawn(copy_input(input, down));
    tokio::spawn(async move {
        let end = copy_output(up, &sender).await;
        copying.abort();
        if let Err(status) = end {
            drop(sender.send(Err(status)).await);
        }
    });
    Ok(ReceiverStream::new(receiver))
}

async fn copy_output(
    mut up: Streaming<v1::AttachUp>,
    sender: &mpsc::Sender<Result<v1::ExecOutput, Status>>,
) -> Result<(), Status> {
    loop {
        let message = tokio::select! {
            message = up.message() => message?,
            () = sender.closed() => return Ok(()),
        };
        let Some(up) = message.and_then(|m| m.up) else {
            return Err(Status::unavailable(
                "the node ended the stream without an exit code",
            ));
        };
        let (output, last) = match up {
            attach_up::Up::Stdout(data) => (exec_output::Output::Stdout(data), false),
            attach_up::Up::Stderr(data) => (exec_output::Output::Stderr(data), false),
            attach_up::Up::ExitCode(code) => (exec_output::Output::ExitCode(code), true),
            attach_up::Up::Refused(refused) => return Err(refused_status(&refused)),
            attach_up::Up::Id(_) => return Err(Status::internal("the node sent a second id")),
        };
        let sent = sender
            .send(Ok(v1::ExecOutput {
                output: Some(output),
            }))
            .await;
        if last || sent.is_err() {
            return Ok(());
        }
    }
}

/// Ends when either side does; what the client sent before its end is passed on.
async fn copy_input(
    mut input: Streaming<v1::ExecInput>,
    down: mpsc::Sender<Result<v1::AttachDown, Status>>,
) {
    while let Ok(Some(message)) = input.message().await {
        let Some(input) = message.input else { continue };
        let down_message = match input {
            exec_input::Input::Start(_) => continue,
            exec_input::Input::Stdin(data) => attach_down::Down::Stdin(data),
            exec_input::Input::StdinClosed(closed) => attach_down::Down::StdinClosed(closed),
            exec_input::Input::Resize(size) => {
                let (columns, rows) = (size.columns & 0xffff, size.rows & 0xffff);
                attach_down::Down::ColumnsRows(columns << 16 | rows)
            }
        };
        let sent = down
            .send(Ok(v1::AttachDown {
                down: Some(down_message),
            }))
            .await;
        if sent.is_err() {
            return;
        }
    }
    // Held open until the process ends: a closed direction is not the end.
    down.closed().await;
}
