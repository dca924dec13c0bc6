//! `fieldRef`: which fields of its pod a container may read, in its environment
//! and in volumes. Not `resourceFieldRef`: see `resources`. Called by
//! `container` and `volume`.

use k8s_openapi::api::core::v1::ObjectFieldSelector;

use crate::invalid::{Causes, Field};
use crate::name;

/// Judges a `fieldRef`; `known` are the paths that are allowed where it stands.
pub(crate) fn validate(
    field: &ObjectFieldSelector,
    known: &[&str],
    at: &Field,
    causes: &mut Causes,
) {
    let at = at.child("fieldPath");
    let path = field.field_path.as_str();
    if path.is_empty() {
        causes.required(&at, "");
        return;
    }
    let subscript = path
        .split_once('[')
        .and_then(|(map, key)| Some((map, key.strip_suffix(']')?)));
    if let Some((map, key)) = subscript {
        if !matches!(map, "metadata.labels" | "metadata.annotations") {
            causes.invalid(&at, path, "does not support subscript");
        } else if let Err(detail) = name::qualified(key.trim_matches('\'')) {
            causes.invalid(&at, path, detail);
        }
        return;
    }
    if !known.contains(&path) {
        causes.unsupported(&at, path, known);
    }
}
