//! Strategic merge patch, Kubernetes' own: a merge patch (`patch`) that merges lists whose
//! items have keys, instead of replacing them. Called by `control-server` for Patch.
//!
//! Items are told apart as server-side apply does it (`schema`): a port by its number and
//! protocol, where kubectl takes the number alone.

use serde_json::{Map, Value};

use crate::fieldset::{item_step, value_step};
use crate::schema::{Shape, shape};

/// What to do with the map or list item that it stands in.
const PATCH: &str = "$patch";
/// The only fields that stay.
const RETAIN: &str = "$retainKeys";
/// Before the name of a list: values that are taken out of it.
const TAKEN_OUT: &str = "$deleteFromPrimitiveList/";

/// A patch that does not fit what it is for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// An item of a keyed list without its key.
    #[error("{path}: an item of the patch has no {key:?}, by which items are told apart")]
    NoKey {
        /// The list.
        path: String,
        /// The field.
        key: &'static str,
    },
    /// A directive that is not known, or has another value than it may have.
    #[error(
        "{path}: {directive}: not supported; use $patch with merge, replace or delete, \
             $retainKeys or $deleteFromPrimitiveList"
    )]
    Directive {
        /// Where it stands.
        path: String,
        /// As written.
        directive: String,
    },
}

/// `patch` over `target`, in place: null removes, objects merge, and so do lists whose items
/// have a key; other lists and values are replaced.
///
/// # Errors
/// [`PatchError`]; the target is changed in part.
pub fn merge(target: &mut Value, patch: &Map<String, Value>) -> Result<(), PatchError> {
    merge_fields(target, patch, "", "")
}

/// `within` is the name of the field that holds these.
fn merge_fields(
    target: &mut Value,
    patch: &Map<String, Value>,
    within: &str,
    path: &str,
) -> Result<(), PatchError> {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(fields) = target.as_object_mut() else {
        return Ok(());
    };
    match directive(patch, path)? {
        Directive::Merge => {}
        Directive::Replace => fields.clear(),
        Directive::Delete => {
            fields.clear();
            return Ok(());
        }
    }
    if let Some(kept) = patch.get(RETAIN) {
        let kept = strings(kept).ok_or_else(|| unknown(path, RETAIN))?;
        fields.retain(|name, _| kept.contains(&name.as_str()));
    }
    for (name, value) in patch {
        if name == PATCH || name == RETAIN {
            continue;
        }
        let at = format!("{path}{}{name}", if path.is_empty() { "" } else { "." });
        if let Some(list) = name.strip_prefix(TAKEN_OUT) {
            let values = value.as_array().ok_or_else(|| unknown(path, name))?;
            if let Some(items) = fields.get_mut(list).and_then(Value::as_array_mut) {
                items.retain(|item| !values.contains(item));
            }
            continue;
        }
        if name.starts_with('$') {
            return Err(unknown(path, name));
        }
        match (value, shape(within, name, value)) {
            (Value::Null, _) => drop(fields.shift_remove(name)),
            (Value::Object(patch), _) => {
                let field = fields.entry(name.clone()).or_insert(Value::Null);
                merge_fields(field, patch, name, &at)?;
            }
            (Value::Array(patch), shape @ (Shape::Keyed(_) | Shape::Set)) => {
                let field = fields.entry(name.clone()).or_insert(Value::Null);
                if !field.is_array() {
                    *field = Value::Array(Vec::new());
                }
                let Some(items) = field.as_array_mut() else {
                    continue;
                };
                match shape {
                    Shape::Keyed(keys) => merge_items(items, patch, keys, name, &at)?,
                    Shape::Set | Shape::Granular | Shape::Atomic => add_values(items, patch),
                }
            }
            (
                Value::Array(_) | Value::Bool(_) | Value::Number(_) | Value::String(_),
                Shape::Granular | Shape::Atomic | Shape::Keyed(_) | Shape::Set,
            ) => drop(fields.insert(name.clone(), value.clone())),
        }
    }
    Ok(())
}

/// Items that are there keep their place; new ones come after them.
fn merge_items(
    items: &mut Vec<Value>,
    patch: &[Value],
    keys: &'static [(&'static str, Option<&'static str>)],
    name: &str,
    path: &str,
) -> Result<(), PatchError> {
    let is_replace = |item: &Value| {
        let fields = item.as_object();
        fields.is_some_and(|f| f.len() == 1 && f.get(PATCH).is_some_and(|d| d == "replace"))
    };
    if patch.iter().any(is_replace) {
        items.clear();
    }
    for item in patch.iter().filter(|item| !is_replace(item)) {
        let missing = |key: &str| item.get(key).is_none_or(Value::is_null);
        let missing = keys
            .iter()
            .find(|(key, default)| default.is_none() && missing(key));
        let (Some(fields), None) = (item.as_object(), missing) else {
            let key = missing.or(keys.first()).map_or("", |(key, _)| *key);
            let path = path.to_owned();
            return Err(PatchError::NoKey { path, key });
        };
        let step = item_step(keys, item);
        let at = items.iter().position(|item| item_step(keys, item) == step);
        match (directive(fields, path)?, at) {
            (Directive::Delete, at) => drop(at.map(|at| items.remove(at))),
            (Directive::Merge | Directive::Replace, Some(at)) => {
                merge_fields(&mut items[at], fields, name, path)?;
            }
            (Directive::Merge | Directive::Replace, None) => {
                let mut new = Value::Null;
                merge_fields(&mut new, fields, name, path)?;
                items.push(new);
            }
        }
    }
    Ok(())
}

fn add_values(items: &mut Vec<Value>, patch: &[Value]) {
    for value in patch {
        if !items
            .iter()
            .any(|item| value_step(item) == value_step(value))
        {
            items.push(value.clone());
        }
    }
}

enum Directive {
    Merge,
    Replace,
    Delete,
}

fn directive(patch: &Map<String, Value>, path: &str) -> Result<Directive, PatchError> {
    match patch.get(PATCH) {
        None => Ok(Directive::Merge),
        Some(value) => match value.as_str() {
            Some("merge") => Ok(Directive::Merge),
            Some("replace") => Ok(Directive::Replace),
            Some("delete") => Ok(Directive::Delete),
            Some(_) | None => Err(unknown(path, &format!("{PATCH}: {value}"))),
        },
    }
}

fn unknown(path: &str, directive: &str) -> PatchError {
    PatchError::Directive {
        path: path.to_owned(),
        directive: directive.to_owned(),
    }
}

fn strings(list: &Value) -> Option<Vec<&str>> {
    list.as_array()?.iter().map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(target: &Value, patch: &Value) -> Result<Value, PatchError> {
        let mut got = target.clone();
        merge(&mut got, patch.as_object().unwrap()).map(|()| got)
    }

    #[test]
    fn lists_with_keys_merge_and_others_are_replaced() {
        let target = json!({
        "metadata": {"finalizers": ["a"], "labels": {"x": "1", "y": "2"}},
        "spec": {
            "containers": [
                {"name": "a", "image": "a:1", "args": ["1", "2"],
                 "ports": [{"containerPort": 80, "protocol": "TCP", "name": "http"}]},
                {"name": "b", "image": "b:1"}],
            "tolerations": [{"key": "k"}],
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
        }});
        let container = |patch: Value| json!({"spec": {"containers": [patch]}});
        for (patch, pointer, expected) in [
            (
                container(json!({"name": "a", "image": "a:2"})),
                "/spec/containers/0",
                json!({"name": "a", "image": "a:2", "args": ["1", "2"],
                    "ports": [{"containerPort": 80, "protocol": "TCP", "name": "http"}]}),
            ),
            (
                container(json!({"name": "c", "image": "c:1", "args": null})),
                "/spec/containers/2",
                json!({"name": "c", "image": "c:1"}),
            ),
            (
                container(json!({"name": "a", "$patch": "delete"})),
                "/spec/containers",
                json!([{"name": "b", "image": "b:1"}]),
            ),
            (
                container(json!({"name": "b", "$patch": "replace", "image": "x"})),
                "/spec/containers/1",
                json!({"name": "b", "image": "x"}),
            ),
            (
                json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}),
                "/spec/containers",
                json!([{"name": "z"}]),
            ),
            // The protocol of a port is TCP where none is named.
            (
                container(json!({"name": "a", "ports": [{"containerPort": 80, "name": "web"}]})),
                "/spec/containers/0/ports",
                json!([{"containerPort": 80, "protocol": "TCP", "name": "web"}]),
            ),
            (
                container(json!({"name": "a", "args": ["3"]})),
                "/spec/containers/0/args",
                json!(["3"]),
            ),
            (
                json!({"spec": {"tolerations": [{"key": "l"}]}}),
                "/spec/tolerations",
                json!([{"key": "l"}]),
            ),
            (
                json!({"metadata": {"finalizers": ["b", "a"], "labels": {"x": null, "z": "3"}}}),
                "/metadata",
                json!({"finalizers": ["a", "b"], "labels": {"y": "2", "z": "3"}}),
            ),
            (
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}),
                "/metadata/finalizers",
                json!([]),
            ),
            (
                json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
                "/spec/strategy",
                json!({"type": "Recreate"}),
            ),
            (
                json!({"metadata": {"labels": {"$patch": "replace", "q": "1"}}}),
                "/metadata/labels",
                json!({"q": "1"}),
            ),
        ] {
            let got = patched(&target, &patch).unwrap();
            assert_eq!(got.pointer(pointer), Some(&expected), "{patch}");
        }
    }

    #[test]
    fn what_cannot_be_merged_is_named() {
        for (patch, part) in [
            (
                json!({"spec": {"containers": [{"image": "x"}]}}),
                "spec.containers: an item of the patch has no \"name\"",
            ),
            (json!({"spec": {"containers": ["x"]}}), "no \"name\""),
            (
                json!({"spec": {"$setElementOrder/containers": []}}),
                "spec: $setElementOrder/containers",
            ),
            (json!({"spec": {"$patch": "add"}}), "$patch: \"add\""),
        ] {
            let refused = patched(&json!({}), &patch).unwrap_err().to_string();
            assert!(refused.contains(part), "{patch}: {refused}");
        }
    }
}
