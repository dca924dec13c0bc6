//! Server-side apply: what a manager applied before and leaves out now goes, what
//! it sets is set, what others own stays. Not admission: the result goes through
//! `admit`. Called by `control-server`.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::fieldset::{FieldSet, Step, item_step};
use crate::invalid::Cause;
use crate::kind::Kind;
use crate::meta;
use crate::schema::{Shape, is_map, shape};

/// Fields that another manager applied with another value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Apply failed with {} conflict(s): {}", .0.len(), list(.0))]
pub struct Conflicts(pub Vec<Cause>);

fn list(causes: &[Cause]) -> String {
    causes
        .iter()
        .map(Cause::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// Merges what `manager` applies into `current` (or into nothing), and keeps the
/// manager's entry in `metadata.managedFields`. With `force`, fields are taken
/// over from other managers. The time of an entry that says the same stays.
pub fn apply(
    kind: &Kind,
    current: Option<&Value>,
    applied: &Value,
    manager: &str,
    force: bool,
    now: Timestamp,
) -> Result<Value, Conflicts> {
    let empty = json!({});
    let current = current.unwrap_or(&empty);
    let mut entries = managers(current);
    let set = FieldSet::of(applied);

    let mut conflicts = Vec::new();
    for entry in entries.iter_mut().filter(|entry| entry.name() != manager) {
        let mut taken = Vec::new();
        differing(
            &entry.set,
            &set,
            Some(current),
            Some(applied),
            &mut Vec::new(),
            &mut taken,
        );
        if force {
            for path in &taken {
                remove_path(&mut entry.set, path);
            }
        }
        for path in taken {
            let message = format!("conflict with {:?}", entry.name());
            conflicts.push(Cause {
                field: text_of(&path),
                message,
            });
        }
    }
    if !force && !conflicts.is_empty() {
        return Err(Conflicts(conflicts));
    }

    let own = entries.iter().position(|entry| entry.name() == manager);
    let last = own.map(|i| entries[i].set.clone()).unwrap_or_default();
    let mut kept = set.clone();
    for entry in entries.iter().filter(|entry| entry.name() != manager) {
        kept.add(&entry.set);
    }
    let removed = last.minus(&kept);
    let mut merged = merge(current, applied, &removed, &kept);

    let same = own.is_some_and(|i| entries[i].set == set);
    if !same {
        let entry = json!({
            "manager": manager,
            "operation": "Apply",
            "apiVersion": kind.api_version(),
            "time": meta::time_text(now),
            "fieldsType": "FieldsV1",
        });
        let entry = Manager { entry, set };
        match own {
            Some(i) => entries[i] = entry,
            None => entries.push(entry),
        }
    }
    entries.retain(|entry| !entry.set.is_empty());
    let entries: Vec<Value> = entries.into_iter().map(Manager::into_value).collect();
    meta::set(&mut merged, "managedFields", Some(Value::Array(entries)));
    Ok(merged)
}

/// The merge itself: `removed` goes from `current`, and `applied` is laid over it.
/// `kept` is what anybody applies still.
fn merge(current: &Value, applied: &Value, removed: &FieldSet, kept: &FieldSet) -> Value {
    let mut merged = current.clone();
    remove(&mut merged, removed, Some(kept), "");
    overlay(&mut merged, applied, "");
    merged
}

/// One entry of managedFields.
struct Manager {
    entry: Value,
    set: FieldSet,
}

impl Manager {
    fn name(&self) -> &str {
        self.entry
            .get("manager")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
    fn into_value(self) -> Value {
        let mut entry = self.entry;
        entry["fieldsV1"] = self.set.to_fields_v1();
        entry
    }
}

fn managers(object: &Value) -> Vec<Manager> {
    let list = object
        .get("metadata")
        .and_then(|m| m.get("managedFields"))
        .and_then(Value::as_array);
    let entries = list.into_iter().flatten().filter(|entry| entry.is_object());
    entries
        .map(|entry| {
            let fields = entry.get("fieldsV1").unwrap_or(&Value::Null);
            Manager {
                entry: entry.clone(),
                set: FieldSet::from_fields_v1(fields),
            }
        })
        .collect()
}

/// Takes the owned fields out; containers that become empty by that go too, and
/// so do structs of which nobody applies anything any more: what is left in them
/// are defaults (a probe's `scheme`, without its `port`).
fn remove(value: &mut Value, removed: &FieldSet, kept: Option<&FieldSet>, within: &str) {
    let Some(fields) = value.as_object_mut() else {
        return;
    };
    for (step, child) in &removed.children {
        let Step::Field(name) = step else { continue };
        let Some(field) = fields.get_mut(name) else {
            continue;
        };
        let shape = shape(within, name, field);
        let kept = kept.and_then(|kept| kept.children.get(step));
        let gone = match shape {
            Shape::Atomic => child.owned,
            Shape::Granular => {
                remove(field, child, kept, name);
                let only_defaults = kept.is_none_or(FieldSet::is_empty) && !others_in(field, name);
                child.owned || only_defaults || field.as_object().is_none_or(Map::is_empty)
            }
            Shape::Keyed(_) | Shape::Set => {
                remove_items(field, child, kept, name, shape);
                child.owned || field.as_array().is_none_or(Vec::is_empty)
            }
        };
        if gone {
            fields.shift_remove(name);
        }
    }
}

/// Whether somebody put something below the field `name`: entries of a map, items
/// of a list. Neither is ever a default.
fn others_in(field: &Value, name: &str) -> bool {
    match field {
        Value::Object(fields) if is_map(name) => !fields.is_empty(),
        Value::Object(fields) => fields.iter().any(|(name, field)| others_in(field, name)),
        Value::Array(items) => !items.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn remove_items(
    list: &mut Value,
    removed: &FieldSet,
    kept: Option<&FieldSet>,
    name: &str,
    shape: Shape,
) {
    let Some(items) = list.as_array_mut() else {
        return;
    };
    items.retain_mut(|item| {
        let step = step_of(shape, item);
        let Some(child) = removed.children.get(&step) else {
            return true;
        };
        if child.owned {
            return false;
        }
        let kept = kept.and_then(|kept| kept.children.get(&step));
        remove(item, child, kept, name);
        true
    });
}

fn step_of(shape: Shape, item: &Value) -> Step {
    match shape {
        Shape::Keyed(keys) => item_step(keys, item),
        Shape::Set | Shape::Granular | Shape::Atomic => Step::Value(item.to_string()),
    }
}

fn overlay(target: &mut Value, applied: &Value, within: &str) {
    let Some(fields) = applied.as_object() else {
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(into) = target.as_object_mut() else {
        return;
    };
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        let shape = shape(within, name, value);
        match (shape, into.get_mut(name)) {
            (Shape::Granular, Some(there)) => overlay(there, value, name),
            (Shape::Keyed(_) | Shape::Set, Some(Value::Array(there))) => {
                overlay_items(there, value, name, shape);
            }
            (Shape::Granular | Shape::Atomic | Shape::Keyed(_) | Shape::Set, _) => {
                into.insert(name.clone(), value.clone());
            }
        }
    }
}

/// Items of `applied` in their order, then those that only others have.
fn overlay_items(there: &mut Vec<Value>, applied: &Value, name: &str, shape: Shape) {
    let mut rest = std::mem::take(there);
    for item in applied.as_array().into_iter().flatten() {
        let step = step_of(shape, item);
        match rest.iter().position(|other| step_of(shape, other) == step) {
            Some(at) => {
                let mut merged = rest.remove(at);
                if matches!(shape, Shape::Keyed(_)) {
                    overlay(&mut merged, item, name);
                }
                there.push(merged);
            }
            None => there.push(item.clone()),
        }
    }
    there.append(&mut rest);
}

/// Paths that are in both sets and whose values differ.
fn differing(
    theirs: &FieldSet,
    ours: &FieldSet,
    current: Option<&Value>,
    applied: Option<&Value>,
    path: &mut Vec<Step>,
    found: &mut Vec<Vec<Step>>,
) {
    let leaf = theirs.children.is_empty() && ours.children.is_empty();
    if theirs.owned && ours.owned && leaf && current != applied {
        found.push(path.clone());
    }
    for (step, child) in &theirs.children {
        let Some(ours) = ours.children.get(step) else {
            continue;
        };
        let (current, applied) = (find(current, step, path), find(applied, step, path));
        path.push(step.clone());
        differing(child, ours, current, applied, path, found);
        path.pop();
    }
}

/// What `step` leads to from `value`, to which `path` led.
fn find<'a>(value: Option<&'a Value>, step: &Step, path: &[Step]) -> Option<&'a Value> {
    let value = value?;
    match step {
        Step::Field(name) => value.get(name),
        Step::Key(_) | Step::Value(_) => {
            let mut names = path.iter().rev().filter_map(|step| match step {
                Step::Field(name) => Some(name.as_str()),
                Step::Key(_) | Step::Value(_) => None,
            });
            let list = names.next().unwrap_or_default();
            let shape = shape(names.next().unwrap_or_default(), list, value);
            value
                .as_array()?
                .iter()
                .find(|item| step_of(shape, item) == *step)
        }
    }
}

fn remove_path(set: &mut FieldSet, path: &[Step]) {
    match path {
        [] => set.owned = false,
        [step, rest @ ..] => {
            if let Some(child) = set.children.get_mut(step) {
                remove_path(child, rest);
                if child.is_empty() {
                    set.children.remove(step);
                }
            }
        }
    }
}

/// `.spec.containers[name="web"].image`
fn text_of(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Field(name) => text.push_str(&format!(".{name}")),
            Step::Key(key) => {
                let fields: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
                let pairs: Vec<String> = fields.iter().map(|(k, v)| format!("{k}={v}")).collect();
                text.push_str(&format!("[{}]", pairs.join(",")));
            }
            Step::Value(value) => text.push_str(&format!("[={value}]")),
        }
    }
    text.trim_start_matches('.').to_owned()
}
