//! How actions went, and what containers did: what comes back to the plans.
//!
//! Made by the daemon; taken into `Observed` by `take.rs`.

use std::sync::Arc;

use crate::action::{Action, HookKind, Instance};
use crate::link::Route;
use crate::probe::Kind;
use crate::seen::{Expected, Seen};
use crate::time::Moment;
use crate::world::{Exit, ImageFacts, ImageReason, Life};

/// Which part of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The record on disk.
    Record,
    /// Pinned namespaces.
    Namespaces,
    /// Attached programs.
    Programs,
    /// The pod's cgroup.
    Cgroup,
    /// The shim.
    Shim,
    /// Volumes and files.
    Volumes,
    /// All of the sandbox of a pod that ends, removed.
    NoSandbox,
    /// What was left of a sandbox that the pod has lost, removed.
    NoLeftovers,
    /// All folders, removed.
    NoFolders,
    /// All that was left of a pod that is not known, removed.
    NoStray,
}

/// Why a container was not made or not started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The spec does not fit the image (runAsNonRoot, no such user).
    Config(String),
    /// The command is not there, or cannot be executed.
    Command(String),
    /// Its memory limit is too low for it to begin.
    Memory(String),
    /// The kernel or the runtime refused.
    Runtime(String),
    /// The shim did not answer: it may be done, now or later.
    Unanswered(String),
    /// It was asked before: the shim is at it, or has done it.
    Begun(String),
}

/// Why `foil0` was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkRefusal {
    /// Another link has its interface index, which the programs hold: they have to be loaded
    /// again, which a start of the agent does.
    IndexInUse,
    /// The kernel refused, in words.
    Refused(String),
}

/// What came of asking a shim what it has.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// It lives, and has these.
    Alive(Vec<Found>),
    /// Nothing listens at its socket.
    Dead,
    /// Nor are the pod's namespaces pinned any more: all of its sandbox is lost.
    SandboxLost,
    /// It did not answer in time, or the connection broke: not known.
    Silent,
}

/// An instance that a shim has.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Name of the container.
    pub container: String,
    /// Number of the instance.
    pub attempt: u32,
    /// Where it is in its life.
    pub life: Life,
}

/// Something that a shim is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// To send this signal.
    Signal(i32),
    /// To run a hook's command.
    Hook(HookKind),
    /// To run a probe's command.
    Probe(Kind),
    /// To remove an instance.
    Delete,
}

/// Something that came to pass.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Work on a part of a pod ended.
    Part {
        /// The pod.
        uid: String,
        /// Which part.
        part: Part,
        /// Why not, in words.
        result: Result<(), String>,
    },
    /// A link was made: interface index of the host's end.
    Link {
        /// The pod.
        uid: String,
        /// Why not, in words.
        result: Result<u32, String>,
    },
    /// The node's store was asked for an image.
    ImageFound {
        /// For which.
        instance: Instance,
        /// As the action named it.
        image: String,
        /// What it is, if it is there. An error is not an answer: it may not parse.
        result: Result<Option<Arc<ImageFacts>>, ImageFailure>,
    },
    /// A pull ended.
    ImagePulled {
        /// For which.
        instance: Instance,
        /// As the action named it.
        image: String,
        /// How long it took, milliseconds.
        took_ms: i64,
        /// What it is.
        result: Result<Arc<ImageFacts>, ImageFailure>,
    },
    /// The shim has made a container, or not; what the machine refused it.
    Created {
        /// Which.
        instance: Instance,
        /// Warnings, in words.
        result: Result<Vec<String>, Refusal>,
    },
    /// A container was started, or not.
    Started {
        /// Which.
        instance: Instance,
        /// When, by the shim's word.
        result: Result<Moment, Refusal>,
    },
    /// A container ended.
    Exited {
        /// Which.
        instance: Instance,
        /// How.
        exit: Exit,
    },
    /// A hook ended.
    HookDone {
        /// Of which.
        instance: Instance,
        /// Which.
        kind: HookKind,
        /// Why it failed, in words.
        result: Result<(), String>,
    },
    /// A probe ended.
    Probed {
        /// Which.
        instance: Instance,
        /// Which of its probes.
        kind: Kind,
        /// Why it failed, in words.
        result: Result<(), String>,
    },
    /// What is left of an instance was removed, or not.
    Deleted {
        /// Which.
        instance: Instance,
        /// Why not, in words.
        result: Result<(), String>,
    },
    /// A shim has not answered a call in time: it may be done, now or later.
    Unanswered {
        /// About which.
        instance: Instance,
        /// What was asked.
        call: Call,
    },
    /// The connection on which a shim tells how its containers end broke.
    ShimLost {
        /// The pod.
        uid: String,
    },
    /// A shim was asked what it has.
    ShimAnswered {
        /// The pod.
        uid: String,
        /// From now on it tells how its containers end.
        listens: bool,
        /// What came of it.
        answer: Answer,
    },
    /// A route was put or deleted.
    Route {
        /// Which.
        route: Route,
        /// It was to be deleted.
        deleted: bool,
        /// Why it could not be, in words.
        result: Result<(), String>,
    },
    /// `foil0` was made whole.
    ServiceLink {
        /// Why it could not be.
        result: Result<(), LinkRefusal>,
    },
    /// The programs were attached to a device of the node.
    DeviceAttached {
        /// Its name.
        name: String,
        /// Why they could not be, in words.
        result: Result<(), String>,
    },
    /// A link that no pod has was deleted.
    LinkDeleted {
        /// Its name.
        name: String,
        /// Why it could not be, in words.
        result: Result<(), String>,
    },
    /// The kernel was asked what there is of links and routes.
    Seen {
        /// What was taken for granted then.
        expected: Box<Expected>,
        /// What there is.
        seen: Box<Seen>,
    },
    /// Programs that were pinned for an interface that is gone are no more.
    Detached {
        /// The interface.
        ifindex: u32,
        /// Why they are, in words.
        result: Result<(), String>,
    },
    /// A map was written as an action asked.
    Written {
        /// Which.
        action: Box<Action>,
    },
}

impl Outcome {
    /// The pod that it is about.
    pub fn uid(&self) -> Option<&str> {
        match self {
            Outcome::Part { uid, .. }
            | Outcome::Link { uid, .. }
            | Outcome::ShimLost { uid }
            | Outcome::ShimAnswered { uid, .. } => Some(uid),
            Outcome::ImageFound { instance, .. }
            | Outcome::ImagePulled { instance, .. }
            | Outcome::Created { instance, .. }
            | Outcome::Started { instance, .. }
            | Outcome::Deleted { instance, .. }
            | Outcome::Unanswered { instance, .. }
            | Outcome::Exited { instance, .. }
            | Outcome::HookDone { instance, .. }
            | Outcome::Probed { instance, .. } => Some(&instance.uid),
            Outcome::Route { .. }
            | Outcome::LinkDeleted { .. }
            | Outcome::ServiceLink { .. }
            | Outcome::DeviceAttached { .. }
            | Outcome::Seen { .. }
            | Outcome::Detached { .. }
            | Outcome::Written { .. } => None,
        }
    }
}

/// Why an image could not be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFailure {
    /// Why, as a container waits with it.
    pub reason: ImageReason,
    /// In words.
    pub message: String,
}
