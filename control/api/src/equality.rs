//! When two objects are the same for Kubernetes: absent, null and empty lists,
//! maps and structs do not differ. Not a diff. Called by `admit`, and by
//! `control-server`, which keeps the resourceVersion on a write that is none.

use serde_json::Value;

/// Whether a write of `new` over `old` would change nothing: compared is all but
/// `metadata.resourceVersion` and the times in `metadata.managedFields`.
pub fn unchanged(new: &Value, old: &Value) -> bool {
    each_field(Some(new), Some(old), &|name, new, old| match name {
        "metadata" => each_field(new, old, &|name, new, old| match name {
            "resourceVersion" => true,
            "managedFields" => same_entries(new, old),
            _other => semantic(new, old),
        }),
        _other => semantic(new, old),
    })
}

/// Entries of managedFields, but for their times.
fn same_entries(a: Option<&Value>, b: Option<&Value>) -> bool {
    let (Some(Value::Array(a)), Some(Value::Array(b))) = (a, b) else {
        return semantic(a, b);
    };
    // In a field set an empty object is a field that is owned.
    let same = |name: &str, a: Option<&Value>, b: Option<&Value>| match name {
        "time" => true,
        "fieldsV1" => a == b,
        _other => semantic(a, b),
    };
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(a, b)| each_field(Some(a), Some(b), &same))
}

type Same<'a> = &'a dyn Fn(&str, Option<&Value>, Option<&Value>) -> bool;

/// Whether `same` holds for each field of two objects.
fn each_field(a: Option<&Value>, b: Option<&Value>, same: Same<'_>) -> bool {
    let (Some(Value::Object(a)), Some(Value::Object(b))) = (a, b) else {
        return semantic(a, b);
    };
    let mut new = b.iter().filter(|(name, _)| !a.contains_key(*name));
    a.iter()
        .all(|(name, value)| same(name, Some(value), b.get(name)))
        && new.all(|(name, value)| same(name, None, Some(value)))
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn owners_are_compared_but_for_their_times() {
        let object = |fields: Value, time: &str| {
            json!({"metadata": {"resourceVersion": time, "managedFields": [
                {"manager": "a", "operation": "Apply", "time": time, "fieldsV1": fields}]},
                "spec": {"replicas": 1}})
        };
        let one = json!({"f:spec": {"f:replicas": {}}});
        let two = json!({"f:spec": {"f:replicas": {}, "f:paused": {}}});
        let old = object(one.clone(), "1");
        assert!(unchanged(&object(one, "2"), &old));
        assert!(!unchanged(&object(two.clone(), "1"), &old));
        assert!(!unchanged(&old, &object(two, "1")));
    }
}
