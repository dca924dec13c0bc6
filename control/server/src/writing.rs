//! Who writes an object, and how: what every write says besides the object.
//!
//! Called by rpcs, node reports and the controllers' writes; carried out by
//! `objects.rs`.

use control_api::fieldset::FieldSet;
use control_api::managed::{Manager, Operation};
use serde_json::Value;

/// Field manager of what the controllers write.
pub const CONTROLLERS: &str = "foil-control";
/// Field manager of what nodes report.
pub const AGENT: &str = "foil-agent";

/// One write.
#[derive(Clone, Copy, Debug)]
pub struct Writing<'a> {
    /// Owner of the fields that it changes.
    pub manager: Manager<'a>,
    /// A change goes through admission. Every new object does.
    pub admitted: bool,
    /// Stores nothing.
    pub dry_run: bool,
}

impl<'a> Writing<'a> {
    /// A client's write.
    pub fn client(manager: &'a str, dry_run: bool) -> Self {
        Self {
            manager: Manager {
                name: manager,
                subresource: "",
            },
            admitted: true,
            dry_run,
        }
    }

    /// A write of the control plane itself, or of what a node reported.
    pub fn system(manager: &'a str) -> Self {
        Self {
            admitted: false,
            ..Self::client(manager, false)
        }
    }

    /// The same write through a subresource.
    pub fn through(self, subresource: &'a str) -> Self {
        let manager = Manager {
            subresource,
            ..self.manager
        };
        Self { manager, ..self }
    }
}

/// What becomes of an object.
#[derive(Clone, Debug)]
pub enum Change {
    /// Store this.
    To(Value),
    /// Store this, the result of a server-side apply.
    Apply {
        /// With what was there before.
        merged: Value,
        /// Fields in the manifest.
        set: FieldSet,
        /// Take fields over from other managers.
        force: bool,
    },
    /// Leave it as it is.
    Nothing,
}

impl Change {
    /// The object and the way its fields come to be owned; `None`: no write.
    pub(crate) fn parts(self) -> Option<(Value, Operation)> {
        match self {
            Change::To(value) => Some((value, Operation::Update)),
            Change::Apply { merged, set, force } => Some((merged, Operation::Apply { set, force })),
            Change::Nothing => None,
        }
    }
}
