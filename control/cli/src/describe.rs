//! What `foil describe` says: a text for each kind, one file each.
//!
//! Pure: `command/describe.rs` brings the objects that a text needs. Which kind has which
//! text is in `view.rs`.

mod container;
pub(crate) mod deployment;
pub(crate) mod events;
pub(crate) mod generic;
pub(crate) mod keys;
pub(crate) mod node;
pub(crate) mod pod;
mod probe;
pub(crate) mod replicaset;
pub(crate) mod service;
pub(crate) mod text;
mod volume;

use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::Selection;
use text::Text;

/// A text was written, or an object is not of its kind's shape.
pub(crate) type Described = Result<(), serde_json::Error>;

/// What `describe` says of one kind.
pub(crate) struct Describer {
    /// Other objects that the text needs.
    pub(crate) related: Option<Related>,
    pub(crate) text: fn(&mut Text, &Value, &[Value], Timestamp) -> Described,
}

/// Objects that belong to another one.
pub(crate) struct Related {
    /// Their kind, as on the command line.
    pub(crate) word: &'static str,
    pub(crate) selection: fn(&Value) -> Selection,
}

/// Gives an object its type.
fn typed<T: DeserializeOwned>(object: &Value) -> Result<T, serde_json::Error> {
    serde_json::from_value(object.clone())
}

/// [`typed`] of several.
fn typed_all<T: DeserializeOwned>(objects: &[Value]) -> Result<Vec<T>, serde_json::Error> {
    objects.iter().map(typed).collect()
}
