//! When two objects are the same for Kubernetes: absent, null and empty lists,
//! maps and structs do not differ. Not a diff. Called by `admit`, and by
//! `control-server`, which keeps the resourceVersion on a write that is none.

use serde_json::Value;

/// Whether a write of `new` over `old` would change nothing: compared is all but
/// `metadata.resourceVersion` and the times in `metadata.managedFields`.
pub fn unchanged(new: &Value, old: &Value) -> bool {
    semantic(Some(&comparable(new)), Some(&comparable(old)))
}

fn comparable(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.shift_remove("resourceVersion");
        let managers = meta.get_mut("managedFields").and_then(Value::as_array_mut);
        for entry in managers.into_iter().flatten() {
            if let Some(entry) = entry.as_object_mut() {
                entry.shift_remove("time");
            }
        }
    }
    object
}

/// Equal, where what is absent equals what is empty.
pub fn semantic(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(one), None) | (None, Some(one)) => is_empty(one),
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            a.iter()
                .all(|(key, value)| semantic(Some(value), b.get(key)))
                && b.iter()
                    .all(|(key, value)| a.contains_key(key) || is_empty(value))
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| semantic(Some(a), Some(b)))
        }
        (Some(a), Some(b)) => a == b || (is_empty(a) && is_empty(b)),
    }
}

/// Null, or a container with nothing in it. Strings, numbers and booleans are
/// values, also "", 0 and false.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
