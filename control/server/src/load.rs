//! From the store's bytes to what the controllers see, and keys back to names.
//!
//! Called by `run.rs`, for the first load and for each event.

use control_api::kind::Kind;
use control_plan::{Key, Name, Object};

/// Kind, namespace and name that a key of the store stands for; `None` for
/// keys that are no objects.
pub fn parse_key(key: &str) -> Option<(&'static Kind, Name)> {
    let (resource, rest) = key.split_once('/')?;
    let mut all = control_api::kinds().iter().copied();
    let kind = all.find(|k| k.resource() == resource)?;
    let name = if kind.namespaced {
        let (namespace, name) = rest.split_once('/')?;
        Name::new(namespace, name)
    } else {
        Name::new("", rest)
    };
    Some((kind, name))
}

/// The key of the controllers' world.
pub fn world_key(kind: &Kind, name: Name) -> Key {
    Key::new(kind.group, kind.kind, name)
}

/// An object of the store, with its revision.
pub fn object(kind: &Kind, bytes: &[u8], revision: u64) -> Result<Object, serde_json::Error> {
    Object::read(kind.group, kind.kind, bytes, revision)
}
