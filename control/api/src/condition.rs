//! Conditions, as all kinds have them in their status: a list keyed by type.
//! Not what they mean. Called by controllers and by `proto`'s convert.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::meta;

/// One condition. `status`: "True", "False" or "Unknown".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    pub kind: String,
    pub status: String,
    /// CamelCase, one word.
    pub reason: String,
    pub message: String,
}

/// The condition of that type.
pub fn get<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = object.get("status")?.get("conditions")?.as_array()?;
    conditions
        .iter()
        .find(|c| c.get("type").and_then(Value::as_str) == Some(kind))
}

/// Whether the condition of that type is "True".
pub fn is_true(object: &Value, kind: &str) -> bool {
    let status = get(object, kind)
        .and_then(|c| c.get("status"))
        .and_then(Value::as_str);
    status == Some("True")
}

/// Puts a condition into `object.status.conditions`. `lastTransitionTime` moves
/// only when the status does. True if something changed.
pub fn set(object: &mut Value, condition: &Condition, now: Timestamp) -> bool {
    let Some(fields) = object.as_object_mut() else {
        return false;
    };
    let status = fields.entry("status").or_insert_with(|| json!({}));
    let Some(status) = status.as_object_mut() else {
        return false;
    };
    let list = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else {
        return false;
    };
    let found = list
        .iter_mut()
        .find(|c| c.get("type").and_then(Value::as_str) == Some(&condition.kind));
    let mut wanted = json!({
        "type": condition.kind,
        "status": condition.status,
        "lastTransitionTime": meta::time_text(now),
    });
    for (name, text) in [
        ("reason", &condition.reason),
        ("message", &condition.message),
    ] {
        if !text.is_empty() {
            wanted[name] = json!(text);
        }
    }
    let Some(found) = found else {
        list.push(wanted);
        return true;
    };
    if found.get("status") == wanted.get("status")
        && let Some(since) = found.get("lastTransitionTime")
    {
        wanted["lastTransitionTime"] = since.clone();
    }
    let own = ["type", "status", "reason", "message", "lastTransitionTime"];
    let same = own.iter().all(|name| found.get(*name) == wanted.get(*name));
    if same {
        return false;
    }
    if let (Some(found), Some(wanted)) = (found.as_object_mut(), wanted.as_object()) {
        found.retain(|name, _| !own.contains(&name.as_str()));
        found.extend(wanted.clone());
    }
    true
}
