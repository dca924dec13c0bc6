//! Namespaces: Active or Terminating.

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::Value;

use super::{Printer, narrow};
use crate::output::age;

pub(crate) const PRINTER: Printer = Printer {
    columns: &[narrow("NAME"), narrow("STATUS"), narrow("AGE")],
    cells,
};

fn cells(object: &Value, now: Timestamp) -> Result<Vec<String>, serde_json::Error> {
    let namespace = Namespace::deserialize(object)?;
    let terminating = namespace.metadata.deletion_timestamp.is_some();
    let phase = namespace
        .status
        .and_then(|status| status.phase)
        .unwrap_or_else(|| "Active".into());
    Ok(vec![
        namespace.metadata.name.unwrap_or_default(),
        if terminating {
            "Terminating".into()
        } else {
            phase
        },
        age::since(namespace.metadata.creation_timestamp.as_ref(), now),
    ])
}
