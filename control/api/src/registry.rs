//! The registry: which kinds there are, and how they are found. Adding a kind
//! is a file of its own and a line in `KINDS`. Not the types: see `kind`.

use serde_json::Value;

use crate::invalid::Invalid;
use crate::kind::Kind;
use crate::meta;

/// A line for each kind.
static KINDS: &[&Kind] = &[
    &crate::pod::KIND,
    &crate::replicaset::KIND,
    &crate::deployment::KIND,
    &crate::service::KIND,
    &crate::endpointslice::KIND,
    &crate::configmap::KIND,
    &crate::secret::KIND,
    &crate::namespace::KIND,
    &crate::node::KIND,
    &crate::event::KIND,
];

/// All kinds, in the order in which help lists them.
pub fn kinds() -> &'static [&'static Kind] {
    KINDS
}

/// By group, version and kind.
pub fn find(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    kinds()
        .iter()
        .copied()
        .find(|k| k.group == group && k.version == version && k.kind == kind)
}

/// By an object's own `apiVersion` and `kind`. The error says what is missing
/// or which kinds there are.
pub fn find_for(object: &Value) -> Result<&'static Kind, Invalid> {
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let name = meta::name(object);
    if !object.is_object() {
        return Err(Invalid::one("object", "", "", "must be an object"));
    }
    if kind.is_empty() {
        return Err(Invalid::one("object", name, "kind", "Required value"));
    }
    if api_version.is_empty() {
        return Err(Invalid::one(kind, name, "apiVersion", "Required value"));
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if let Some(found) = find(group, version, kind) {
        return Ok(found);
    }
    if let Some(other) = kinds().iter().find(|k| k.kind == kind) {
        let message = format!(
            "Unsupported value: {api_version:?}: supported values: {:?}",
            other.api_version()
        );
        return Err(Invalid::one(kind, name, "apiVersion", message));
    }
    let message = format!("{api_version} {kind} is not supported by Hydrofoil yet");
    Err(Invalid::one(kind, name, "kind", message))
}

/// By a word of a person: "po", "pod", "pods", "Pod", "deployments.apps".
/// Letter case does not matter.
pub fn by_word(word: &str) -> Option<&'static Kind> {
    let word = word.to_ascii_lowercase();
    let (name, group) = match word.split_once('.') {
        Some((name, group)) => (name, Some(group)),
        None => (word.as_str(), None),
    };
    kinds().iter().copied().find(|k| {
        let named = k.plural == name
            || k.singular == name
            || k.short_names.contains(&name)
            || k.kind.to_ascii_lowercase() == name;
        let grouped =
            group.is_none_or(|g| g == k.group || g == format!("{}.{}", k.version, k.group));
        named && grouped
    })
}
