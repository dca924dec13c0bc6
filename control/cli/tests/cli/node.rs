//! A node that a test plays: it speaks the agent's protocol, reports what the test sets, and
//! answers logs and exec by words that tell what it was asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use proto::v1::{self, attach_down, attach_up, node_up};
use tests_control::{Agent, Options, Server, Told, up};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

/// What the node does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script {
    /// Restarts of each container, by pod.
    pub(crate) restarts: BTreeMap<String, u32>,
    /// Images whose containers do not become ready.
    pub(crate) broken_images: BTreeSet<String>,
    /// Pods that are to stop go on.
    pub(crate) holds_pods: bool,
}

/// A node under the test's hand.
pub(crate) struct Node {
    script: watch::Sender<Script>,
    logs: Arc<Mutex<Vec<v1::OpenLogs>>>,
    name: String,
    up: mpsc::Sender<v1::NodeUp>,
}

impl Node {
    pub(crate) async fn start(server: &Server, name: &str) -> Self {
        let options = Options {
            runs: false,
            ..Options::default()
        };
        let agent = server.agent_with(name, options).await;
        let (script, read) = watch::channel(Script::default());
        let logs = Arc::default();
        tokio::spawn(report(agent.told.clone(), read, agent.up.clone()));
        tokio::spawn(answer_all(&agent, &logs));
        Self {
            script,
            logs,
            name: name.to_owned(),
            up: agent.up,
        }
    }

    /// Changes what the node does from now on.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Script)) {
        self.script.send_modify(change);
    }

    /// Tells an event of itself for each reason.
    pub(crate) async fn tell(&self, reasons: &[String]) {
        for reason in reasons {
            let event = v1::NodeEvent {
                kind: "Node".to_owned(),
                name: self.name.clone(),
                r#type: "Normal".to_owned(),
                reason: reason.clone(),
                message: "m".to_owned(),
                ..v1::NodeEvent::default()
            };
            self.up.send(up(node_up::Up::Event(event))).await.unwrap();
        }
    }

    /// The last request for logs.
    pub(crate) fn asked_for_logs(&self) -> v1::OpenLogs {
        self.logs.lock().unwrap().pop().unwrap()
    }
}

/// Reports each pod when what is to be said of it changes.
async fn report(
    mut told: watch::Receiver<Told>,
    mut script: watch::Receiver<Script>,
    sender: mpsc::Sender<v1::NodeUp>,
) {
    let mut said: BTreeMap<String, v1::NodeUp> = BTreeMap::new();
    loop {
        let pods: Vec<v1::PodSpec> = told.borrow_and_update().pods.values().cloned().collect();
        let now = script.borrow_and_update().clone();
        for pod in pods {
            let message = of_pod(&pod, &now);
            if said.insert(pod.uid, message.clone()).as_ref() != Some(&message)
                && sender.send(message).await.is_err()
            {
                return;
            }
        }
        let ended = tokio::select! {
            changed = told.changed() => changed.is_err(),
            changed = script.changed() => changed.is_err(),
        };
        if ended {
            return;
        }
    }
}

fn of_pod(pod: &v1::PodSpec, script: &Script) -> v1::NodeUp {
    if pod.stop_grace_seconds.is_some() && !script.holds_pods {
        return tests_control::report(pod);
    }
    let restarts = script.restarts.get(&pod.name).copied().unwrap_or_default();
    let container = |container: &v1::ContainerSpec| {
        let ready = !script.broken_images.contains(&container.image);
        v1::ContainerStatus {
            name: container.name.clone(),
            image: container.image.clone(),
            container_id: format!("foil://{}", pod.uid),
            ready,
            started: true,
            restart_count: restarts,
            state: Some(v1::ContainerState {
                state: Some(v1::container_state::State::Running(
                    v1::container_state::Running::default(),
                )),
            }),
            ..v1::ContainerStatus::default()
        }
    };
    let containers: Vec<_> = pod.containers.iter().map(container).collect();
    let ready = containers.iter().all(|container| container.ready);
    let condition = |(kind, holds): (&str, bool)| v1::Condition {
        r#type: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        ..v1::Condition::default()
    };
    let conditions = [
        ("Initialized", true),
        ("ContainersReady", ready),
        ("Ready", ready),
    ];
    up(node_up::Up::PodStatus(v1::PodStatus {
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        observed_generation: pod.generation,
        phase: "Running".to_owned(),
        pod_ips: pod.ips.clone(),
        conditions: conditions.map(condition).to_vec(),
        containers,
        ..v1::PodStatus::default()
    }))
}

type Said = mpsc::Sender<v1::AttachUp>;

fn answer_all(
    agent: &Agent,
    logs: &Arc<Mutex<Vec<v1::OpenLogs>>>,
) -> impl Future<Output = ()> + Send + use<> {
    let mut opens = std::mem::replace(&mut *agent.opens.lock().unwrap(), mpsc::channel(1).1);
    let (client, told, logs) = (agent.client.clone(), agent.told.clone(), logs.clone());
    async move {
        while let Some(open) = opens.recv().await {
            let (mut client, told, logs) = (client.clone(), told.clone(), logs.clone());
            tokio::spawn(async move {
                let (sender, receiver) = mpsc::channel(8);
                say(&sender, attach_up::Up::Id(open.id)).await;
                let down = client.attach(ReceiverStream::new(receiver)).await.unwrap();
                let mut down = down.into_inner();
                let pod = |uid: &str| told.borrow().pods[uid].name.clone();
                match open.what.unwrap() {
                    v1::open::What::Logs(asked) => {
                        let name = format!("{}/{}", pod(&asked.pod_uid), asked.container);
                        logs.lock().unwrap().push(asked);
                        // Two lines, the second in two pieces.
                        for piece in [format!("{name} one\n{name} t"), "wo\n".to_owned()] {
                            say(&sender, attach_up::Up::Stdout(piece.into_bytes())).await;
                        }
                    }
                    v1::open::What::Exec(asked) => {
                        let pod = pod(&asked.pod_uid);
                        exec(&pod, &asked, &sender, &mut down).await;
                    }
                }
                // The stream ends when the server's side does, too.
                drop(sender);
                while let Ok(Some(_)) = down.message().await {}
            });
        }
    }
}

async fn say(sender: &Said, up: attach_up::Up) {
    drop(sender.send(v1::AttachUp { up: Some(up) }).await);
}

/// Says on standard error what it was asked to run, copies standard input to standard output,
/// and ends with the last word of the command as exit code.
async fn exec(
    pod: &str,
    asked: &v1::OpenExec,
    sender: &Said,
    down: &mut tonic::Streaming<v1::AttachDown>,
) {
    let screen = if asked.tty {
        format!(" on {}x{}", asked.columns, asked.rows)
    } else {
        String::new()
    };
    let command = asked.command.join(" ");
    let head = format!("{pod}/{}: {command}{screen}\n", asked.container);
    say(sender, attach_up::Up::Stderr(head.into_bytes())).await;
    if asked.stdin {
        copy(sender, down).await;
    }
    let code = asked.command.last().and_then(|word| word.parse().ok());
    say(sender, attach_up::Up::ExitCode(code.unwrap_or(0))).await;
}

/// Until the end of standard input.
async fn copy(sender: &Said, down: &mut tonic::Streaming<v1::AttachDown>) {
    loop {
        let message = down.message().await.ok().flatten();
        match message.and_then(|message| message.down) {
            // Control-D, as a terminal has it.
            Some(attach_down::Down::Stdin(bytes)) if bytes == [4] => return,
            Some(attach_down::Down::Stdin(bytes)) => {
                say(sender, attach_up::Up::Stdout(bytes)).await;
            }
            Some(attach_down::Down::ColumnsRows(_)) => {}
            Some(attach_down::Down::StdinClosed(_)) | None => return,
        }
    }
}
