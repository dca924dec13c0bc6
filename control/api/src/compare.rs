//! What a write changes: the fields that it sets to another value, and those
//! that it removes. Not whether it may, and not who owns them: see `managed`.

use serde_json::{Map, Value};

use crate::equality::semantic;
use crate::fieldset::{FieldSet, OWNED_METADATA, Step, item_step, value_step};
use crate::schema::{Shape, shape};

/// Difference of two states of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Fields that are new or have another value.
    pub set: FieldSet,
    /// Fields that are no longer there.
    pub removed: FieldSet,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty()
    }

    /// Adds the changes of the node that `step` leads to.
    fn insert(&mut self, step: &Step, child: Self) {
        if child.is_empty() {
            return;
        }
        self.set.insert_step(step.clone(), child.set);
        self.removed.insert_step(step.clone(), child.removed);
    }

    fn set(set: FieldSet) -> Self {
        Self {
            set,
            ..Self::default()
        }
    }

    fn removed(removed: FieldSet) -> Self {
        Self {
            removed,
            ..Self::default()
        }
    }
}

/// What differs between two states of an object, `old` being null for a new one.
/// Of the metadata, only fields that can have an owner.
pub fn compare(old: &Value, new: &Value) -> Changes {
    let mut changes = Changes::default();
    each(old.as_object(), new.as_object(), |name, old, new| {
        let child = match name {
            "apiVersion" | "kind" => return,
            "metadata" => metadata(old, new),
            _other => field("", name, old, new),
        };
        changes.insert(&Step::Field(name.to_owned()), child);
    });
    changes
}

fn metadata(old: Option<&Value>, new: Option<&Value>) -> Changes {
    let mut changes = Changes::default();
    let (old, new) = (
        old.and_then(Value::as_object),
        new.and_then(Value::as_object),
    );
    each(old, new, |name, old, new| {
        if OWNED_METADATA.contains(&name) {
            let child = field("metadata", name, old, new);
            changes.insert(&Step::Field(name.to_owned()), child);
        }
    });
    changes
}

/// Calls `visit` for each field of either object; null is absent.
fn each(
    old: Option<&Map<String, Value>>,
    new: Option<&Map<String, Value>>,
    mut visit: impl FnMut(&str, Option<&Value>, Option<&Value>),
) {
    for (name, value) in old.into_iter().flatten() {
        let value = Some(value).filter(|value| !value.is_null());
        let other = new.and_then(|new| new.get(name));
        visit(name, value, other.filter(|value| !value.is_null()));
    }
    for (name, value) in new.into_iter().flatten() {
        if old.is_none_or(|old| !old.contains_key(name)) {
            visit(name, None, Some(value).filter(|value| !value.is_null()));
        }
    }
}

fn field(within: &str, name: &str, old: Option<&Value>, new: Option<&Value>) -> Changes {
    let (old, new) = match (old, new) {
        (None, None) => return Changes::default(),
        (None, Some(new)) => return Changes::set(FieldSet::of_field(within, name, new)),
        (Some(old), None) => return Changes::removed(FieldSet::of_field(within, name, old)),
        (Some(old), Some(new)) => (old, new),
    };
    let kept = shape(within, name, new);
    if kept != shape(within, name, old) {
        return Changes {
            set: FieldSet::of_field(within, name, new),
            removed: FieldSet::of_field(within, name, old),
        };
    }
    match kept {
        Shape::Atomic if semantic(Some(old), Some(new)) => Changes::default(),
        Shape::Atomic => Changes::set(FieldSet::leaf()),
        Shape::Granular => structs(name, old, new),
        Shape::Keyed(_) | Shape::Set => lists(name, kept, old, new),
    }
}

fn structs(within: &str, old: &Value, new: &Value) -> Changes {
    let mut changes = Changes::default();
    each(old.as_object(), new.as_object(), |name, old, new| {
        let child = field(within, name, old, new);
        changes.insert(&Step::Field(name.to_owned()), child);
    });
    changes
}

/// Items that have the same key are the same item, wherever they stand.
fn lists(name: &str, kind: Shape, old: &Value, new: &Value) -> Changes {
    let step = |item: &Value| match kind {
        Shape::Keyed(keys) => item_step(keys, item),
        Shape::Set | Shape::Granular | Shape::Atomic => value_step(item),
    };
    let all = |item: &Value| match kind {
        Shape::Keyed(_) => FieldSet::of_item(name, item),
        Shape::Set | Shape::Granular | Shape::Atomic => FieldSet::leaf(),
    };
    let mut changes = Changes::default();
    let old = old.as_array().into_iter().flatten();
    let mut left: Vec<(Step, &Value)> = old.map(|item| (step(item), item)).collect();
    for item in new.as_array().into_iter().flatten() {
        let at = step(item);
        let child = match left.iter().position(|(other, _)| *other == at) {
            Some(found) => structs(name, left.remove(found).1, item),
            None => Changes::set(all(item)),
        };
        changes.insert(&at, child);
    }
    for (at, item) in left {
        changes.insert(&at, Changes::removed(all(item)));
    }
    changes
}
