//! Serves what somebody asked the control plane for: logs and commands, each over
//! an `Attach` call of its own.
//!
//! The loop only answers questions about pods; bytes never pass through it.

use std::sync::Arc;
use std::time::Duration;

use agent_plan::action::Instance;
use agent_plan::status;
use agent_plan::world::{Life, container_id};
use agent_sys::clock;
use agent_sys::shim::{Client, ExecEvent, ShimError};
use proto::v1;
use proto::v1::attach_down::Down;
use proto::v1::attach_up::Up;
use proto::v1::node_client::NodeClient;
use proto::v1::open::What;
use proto::v1::shim_error::Kind;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use crate::event::{Event, Instances, Question, Unknown};
use crate::logs;
use crate::node::Node;
use crate::startup::Sys;
use crate::watch::Calls;

/// Messages on their way up: bytes of a slow reader stay in the pipe.
const QUEUE: usize = 16;

/// How long the other side may take to read what was sent.
const LINGER: Duration = Duration::from_secs(30);

/// Why a request ends early: gRPC status code and words.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// gRPC status code.
    pub(crate) code: tonic::Code,
    /// In Kubernetes' words where it has some.
    pub(crate) message: String,
}

impl Refusal {
    fn new(code: tonic::Code, message: impl Into<String>) -> Refusal {
        Refusal {
            code,
            message: message.into(),
        }
    }
}

/// Nobody reads any more: no error, just the end.
#[derive(Debug)]
pub(crate) struct Gone;

/// The way up of one call.
#[derive(Debug, Clone)]
pub(crate) struct Upward(mpsc::Sender<v1::AttachUp>);

impl Upward {
    /// Sends one message; waits while the reader is slow.
    pub(crate) async fn send(&self, up: Up) -> Result<(), Gone> {
        self.0
            .send(v1::AttachUp { up: Some(up) })
            .await
            .map_err(|_closed| Gone)
    }
}

/// Serves one request in a task of its own.
pub(crate) fn open(sys: &Arc<Sys>, calls: Calls, open: v1::Open) {
    let sys = sys.clone();
    tokio::spawn(async move {
        let Some(channel) = calls.borrow().clone() else {
            return;
        };
        let (sender, queue) = mpsc::channel(QUEUE);
        let up = Upward(sender);
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
                tracing::warn!(id, %status, "attach");
                return;
            }
        };
        let served = match open.what {
            Some(What::Logs(request)) => logs::serve(&sys, &up, &request, &mut down).await,
            Some(What::Exec(request)) => exec(&sys, &up, &request, &mut down).await,
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
            // The asker may be gone; then nobody is to be told.
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

async fn exec(
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
            ShimError::Refused {
                kind: Kind::NotFound | Kind::Invalid,
                ..
            } => tonic::Code::FailedPrecondition,
            ShimError::Refused {
                kind: Kind::Runtime | Kind::Unspecified,
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
            env: Vec::new(),
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
    }
}

impl Node {
    /// Answers a task that serves a request.
    pub(crate) fn answer(&mut self, question: Question) {
        match question {
            Question::Instances {
                uid,
                container,
                answer,
            } => {
                // Who asked may be gone; then the answer is for nobody.
                drop(answer.send(self.instances_of(&uid, &container)));
            }
            Question::Lives { instance, answer } => {
                let lives = self
                    .observed
                    .pods
                    .get(&instance.uid)
                    .and_then(|pod| pod.containers.get(&instance.container))
                    .is_some_and(|c| {
                        c.attempt == instance.attempt
                            && match c.life {
                                Life::Exited(_) => false,
                                Life::None
                                | Life::Creating
                                | Life::Created
                                | Life::Starting
                                | Life::Running { .. }
                                | Life::Refused { .. } => true,
                            }
                    });
                if answer.send(lives).is_err() {
                    tracing::debug!("nobody waits for the answer");
                }
            }
        }
    }

    fn instances_of(&self, uid: &str, container: &str) -> Result<Instances, Unknown> {
        let pod = self
            .observed
            .pods
            .get(uid)
            .ok_or_else(|| Unknown(format!("pod {uid} is not on this node")))?;
        let spec = &pod.spec;
        let mut all = spec.containers.iter().chain(&spec.init_containers);
        let wanted = match (container, spec.containers.as_slice()) {
            ("", [only]) => Some(only),
            ("", several) => {
                let names: Vec<&str> = several.iter().map(|c| c.name.as_str()).collect();
                return Err(Unknown(format!(
                    "a container name must be specified for pod {}, choose one of: [{}]",
                    spec.name,
                    names.join(" ")
                )));
            }
            (name, _) => all.find(|c| c.name == name),
        };
        let found = wanted.and_then(|c| Some((c, pod.containers.get(&c.name)?)));
        let Some((wanted, state)) = found else {
            return Err(Unknown(format!(
                "container {container} is not valid for pod {}",
                spec.name
            )));
        };
        let status = status::of(pod, &self.apply.sys.settings, clock::unix_ms());
        let shown = status.containers.iter().chain(&status.init_containers);
        let waits = shown
            .filter(|s| s.name == wanted.name)
            .find_map(|s| match s.state.as_ref()?.state.as_ref()? {
                v1::container_state::State::Waiting(w) => Some(w.reason.clone()),
                v1::container_state::State::Terminated(t) => Some(t.reason.clone()),
                v1::container_state::State::Running(_) => None,
            })
            .unwrap_or_default();
        let running = matches!(state.life, Life::Running { .. });
        Ok(Instances {
            namespace: spec.namespace.clone(),
            pod: spec.name.clone(),
            current: Instance {
                uid: uid.into(),
                container: wanted.name.clone(),
                attempt: state.attempt,
            },
            began: running || matches!(state.life, Life::Exited(_)),
            running,
            waits,
        })
    }
}
