//! One thing that a controller or a node has to tell about an object, before it is
//! an Event.
//!
//! Which are told is `correlate.rs`, how they are stored is `record.rs`.

use control_plan::hash::fnv64;

/// One thing to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Said {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) field_path: String,
    pub(crate) severity: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) component: String,
    pub(crate) host: String,
    /// Stands for many that differ in their message only.
    pub(crate) combined: bool,
}

fn hash(parts: &[&str]) -> u64 {
    let bytes: Vec<&[u8]> = parts.iter().map(|p| p.as_bytes()).collect();
    fnv64(&bytes)
}

impl Said {
    /// The Event's name: the same for the same thing said again.
    pub(crate) fn event_name(&self) -> String {
        let message = if self.combined { "" } else { &self.message };
        let name = hash(&[
            &self.uid,
            &self.field_path,
            &self.severity,
            &self.reason,
            message,
            &self.component,
            &self.host,
        ]);
        format!("{}.{name:016x}", self.name)
    }

    /// The same for all of one source about one object.
    pub(crate) fn about(&self) -> u64 {
        hash(&[
            &self.component,
            &self.host,
            &self.kind,
            &self.namespace,
            &self.name,
            &self.uid,
        ])
    }

    /// The same for those that differ in their message only.
    pub(crate) fn group(&self) -> u64 {
        let about = self.about().to_string();
        hash(&[&about, &self.field_path, &self.severity, &self.reason])
    }

    /// Of the message.
    pub(crate) fn message_hash(&self) -> u64 {
        hash(&[&self.message])
    }
}
