//! The merge of server-side apply: what a manager applied before and leaves out
//! now goes, what it sets is set, what others own stays. Not admission, and not
//! the owners of the result: see `managed`. Called by `control-server`.

use serde_json::{Map, Value, json};

use crate::fieldset::{FieldSet, Step, item_step, value_step};
use crate::managed;
use crate::schema::{Shape, is_map, shape};

/// Merges what `manager` applies into `current` (or into nothing), and says
/// which fields the manifest sets.
pub fn merge(current: Option<&Value>, applied: &Value, manager: &str) -> (Value, FieldSet) {
    let set = FieldSet::of(applied);
    let Some(current) = current else {
        return (applied.clone(), set);
    };
    let (last, others) = managed::owned(current, manager);
    let mut kept = set.clone();
    kept.add(&others);
    let mut merged = current.clone();
    remove(&mut merged, &last.minus(&kept), Some(&kept), "");
    overlay(&mut merged, applied, "");
    (merged, set)
}

/// Takes the owned fields out; containers that become empty by that go too, and
/// so do structs of which no field has an owner any more: what is left in them
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
        Shape::Set | Shape::Granular | Shape::Atomic => value_step(item),
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
