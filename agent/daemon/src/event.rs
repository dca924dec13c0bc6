//! Everything that can happen to a node: the closed set that its loop takes.

use agent_plan::action::Instance;
use agent_plan::outcome::{LinkRefusal, Outcome};
use agent_plan::pressure::Measured;
use agent_plan::settings::Settings;
use agent_sys::link::Changes;
use agent_sys::state::StateError;
use proto::v1;
use tokio::sync::{mpsc, oneshot};

use crate::pushed_file::NotSaved;

/// One thing that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// Slow work ended, or a container did something.
    Outcome(Box<Outcome>),
    /// A stream is about to be opened: what the node has, all updates before this included.
    Greet(oneshot::Sender<v1::Hello>),
    /// The control plane is reachable: where reports go from here on.
    Connected(mpsc::Sender<v1::NodeUp>),
    /// It is not any more.
    Disconnected,
    /// What the node shall be has changed.
    Update(Box<v1::Update>),
    /// Somebody wants to see logs or to run a command.
    Open(Box<v1::Open>),
    /// Somebody who serves a request wants to know of a pod.
    Ask(Question),
    /// Links, addresses, routes or neighbours changed, by us or by others.
    Kernel(Changes),
    /// What is left of memory, disks and process numbers.
    Measured(Measured),
    /// What was pushed last was written to disk, or not.
    Saved(Result<(), NotSaved>),
}

/// What tasks that serve a request ask the loop, which alone knows.
#[derive(Debug)]
pub(crate) enum Question {
    /// The instances of a container.
    Instances {
        /// uid of the pod.
        uid: String,
        /// Name of the container; empty: the only one.
        container: String,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Instances, Unknown>>,
    },
    /// Does the instance run, or may it still?
    Lives {
        /// Which.
        instance: Instance,
        /// Where the answer goes.
        answer: oneshot::Sender<bool>,
    },
}

/// A container's instances, and where its logs are.
#[derive(Debug, Clone)]
pub(crate) struct Instances {
    /// The pod's namespace.
    pub(crate) namespace: String,
    /// The pod's name.
    pub(crate) pod: String,
    /// The current one, or the last.
    pub(crate) current: Instance,
    /// It has run, or runs: there may be a log.
    pub(crate) began: bool,
    /// It runs.
    pub(crate) running: bool,
    /// Why it waits or has ended, if it does or has.
    pub(crate) waits: String,
}

/// There is no such container, in words.
#[derive(Debug, Clone)]
pub(crate) struct Unknown(pub(crate) String);

impl From<Outcome> for Event {
    fn from(outcome: Outcome) -> Event {
        Event::Outcome(Box::new(outcome))
    }
}

/// Why the loop ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    /// The signals that ask for an end.
    #[error("signals: {0}")]
    Signals(#[from] std::io::Error),
    /// What is written below `run` would reach a disk.
    #[error(transparent)]
    Run(#[from] StateError),
    /// The programs hold an interface index that is not to be had any more.
    #[error(
        "foil0 was removed and another link has its interface index {0}: \
         the next start loads the programs with another one"
    )]
    IndexInUse(u32),
}

impl NodeError {
    /// What an outcome leaves no other end than a new start.
    pub(crate) fn of(outcome: &Outcome, settings: &Settings) -> Option<NodeError> {
        let taken = Err(LinkRefusal::IndexInUse);
        let used = matches!(outcome, Outcome::ServiceLink { result } if *result == taken);
        used.then_some(NodeError::IndexInUse(settings.service.ifindex))
    }
}

/// True if the network's plan may go on after it.
pub(crate) fn of_network(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Link { .. } | Outcome::DeviceAttached { .. } | Outcome::Detached { .. }
    )
}

/// What an action or outcome is called. No more of it belongs in a log: specs hold
/// secrets.
pub(crate) fn name_of(value: &impl std::fmt::Debug) -> String {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return String::new();
    }
    let mut text = format!("{value:?}");
    text.truncate(text.find(' ').unwrap_or(text.len()));
    text
}
