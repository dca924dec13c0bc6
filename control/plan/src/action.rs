//! What a plan asks for: writes to the store, and notices for people.
//!
//! Values only; control-server's `write.rs` is the one that carries them out.

use jiff::Timestamp;

use crate::claim::ClaimWrite;
use crate::object::{Key, Name};
use crate::registry::Object;

/// Outcome of one plan.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Independent of each other; each is atomic in itself.
    pub writes: Vec<Write>,
    /// Become Events.
    pub notices: Vec<Notice>,
    /// Plan again then, also if nothing changes.
    pub again_at: Option<Timestamp>,
    /// Pods that fit nowhere: to be handed to `World::note`.
    pub unschedulable: Vec<Unschedulable>,
    /// Pods that are bound here, with their uids: to be handed to `World::note`.
    pub assumed: Vec<(Name, String)>,
    /// A node that has pods and was found not to exist: to be handed to `World::note`.
    pub absent: Option<String>,
}

/// A pod that was tried and fits nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unschedulable {
    /// The pod.
    pub pod: Name,
    /// Its uid.
    pub uid: String,
    /// Some node would take it if it had more left.
    pub room: bool,
}

impl Plan {
    /// Remembers the earliest time at which time alone makes a difference.
    pub fn again(&mut self, at: Timestamp) {
        self.again_at = Some(self.again_at.map_or(at, |old| old.min(at)));
    }

    /// Tells of the write that was added last.
    pub fn tell(&mut self, notice: Notice) {
        let write = self.writes.len().checked_sub(1);
        self.notices.push(Notice { write, ..notice });
    }

    /// Adds an object to be created, or to replace the one at its revision.
    pub fn put(&mut self, object: Object) {
        self.writes.push(Write::Put {
            object,
            claims: Vec::new(),
        });
    }
}

/// One atomic change of the store.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Creates the object (no resourceVersion), or replaces the one at its
    /// resourceVersion; together with the claims, or not at all.
    Put {
        /// As it is to be.
        object: Object,
        /// Addresses and numbers that it takes with this write.
        claims: Vec<ClaimWrite>,
    },
    /// Takes or releases claims only.
    Claims(Vec<ClaimWrite>),
    /// Deletes as a client's Delete does: gracefully, finalizers honoured.
    Delete {
        /// What.
        key: Key,
        /// Only if it is still this one.
        uid: String,
        /// Only if it has not changed since; `None`: also if it has.
        revision: Option<u64>,
        /// Seconds; `None`: the object's own.
        grace_seconds: Option<i64>,
        /// It stays until its own dependents are gone.
        foreground: bool,
    },
    /// Takes the object out of the store: its deletion is complete.
    Remove {
        /// What.
        key: Key,
        /// Only if it has not changed since.
        revision: u64,
    },
    /// Takes one finalizer, or the reference to one owner, off an object of any kind.
    Unhook {
        /// What.
        key: Key,
        /// Only if it has not changed since.
        revision: u64,
        /// Name of the finalizer to take off.
        finalizer: Option<String>,
        /// uids of the owners to take off.
        owners: Vec<String>,
    },
}

/// How a notice is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Event type "Normal".
    Normal,
    /// Event type "Warning": a plan could not do what it should.
    Warning,
}

impl Severity {
    /// As it stands in an Event.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        }
    }
}

/// Something to tell people about an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// The object.
    pub about: Key,
    /// Its uid.
    pub uid: String,
    /// Normal or Warning.
    pub severity: Severity,
    /// "Scheduled", "FailedScheduling", ...
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
    /// Which controller says it: "default-scheduler", ...
    pub component: &'static str,
    /// The write that makes it true, by its place in [`Plan::writes`]: without it
    /// there is nothing to tell. `None`: it does not depend on the write.
    pub write: Option<usize>,
}
