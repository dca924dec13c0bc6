//! Fields that this version's types do not have, in objects that a newer version
//! stored: a write keeps them. A client's manifest is another matter: there, an
//! unknown field is refused (`decode`). Called by `control-server`.

use serde_json::Value;

use crate::fieldset::item_step;
use crate::invalid::Invalid;
use crate::kind::Kind;
use crate::schema::{Shape, shape};

/// A stored object, and what this version sees of it.
#[derive(Debug)]
pub struct Seen<'a> {
    stored: &'a Value,
    /// Without what is not known; `None`: all of it is.
    known: Option<Value>,
}

impl<'a> Seen<'a> {
    /// Decodes and encodes the object with this version's types.
    pub fn of(kind: &Kind, stored: &'a Value) -> Result<Self, Invalid> {
        let known = (kind.known)(kind, stored)?;
        let known = known.filter(|known| lacks(stored, known));
        Ok(Self { stored, known })
    }

    /// The object without its unknown fields.
    pub fn known(&self) -> &Value {
        self.known.as_ref().unwrap_or(self.stored)
    }

    /// Takes the unknown fields out of `next`, the successor of the object, where
    /// it has them unchanged: it can be decoded strictly then.
    pub fn set_aside(&self, next: &mut Value) {
        if let Some(known) = &self.known {
            replace(next, self.stored, known, "", "");
        }
    }

    /// Puts the unknown fields into `next`, wherever what held them is still there.
    pub fn restore(&self, next: &mut Value) {
        if let Some(known) = &self.known {
            add(next, self.stored, known, "", "");
        }
    }
}

/// Whether something of `stored` is not in `known`.
fn lacks(stored: &Value, known: &Value) -> bool {
    match (stored, known) {
        (Value::Object(stored), Value::Object(known)) => stored.iter().any(|(name, value)| {
            !value.is_null() && known.get(name).is_none_or(|known| lacks(value, known))
        }),
        (Value::Array(stored), Value::Array(known)) => {
            let mut pairs = stored.iter().zip(known);
            pairs.any(|(stored, known)| lacks(stored, known))
        }
        _scalars => false,
    }
}

/// Takes out of `next` what is in `stored` alike, and not in `known`.
fn replace(next: &mut Value, stored: &Value, known: &Value, within: &str, name: &str) {
    if next == stored {
        *next = known.clone();
        return;
    }
    match (next, stored, known) {
        (Value::Object(next), Value::Object(stored), Value::Object(known)) => {
            for (field, stored) in stored {
                match (known.get(field), next.get_mut(field)) {
                    (None, Some(there)) if there == stored => {
                        next.shift_remove(field);
                    }
                    (Some(known), Some(there)) => replace(there, stored, known, name, field),
                    (None | Some(_), None | Some(_)) => {}
                }
            }
        }
        (Value::Array(next), Value::Array(stored), Value::Array(known)) => {
            for (i, item) in next.iter_mut().enumerate() {
                if let Some(at) = position(stored, item, i, within, name)
                    && let Some(known) = known.get(at)
                {
                    replace(item, &stored[at], known, name, name);
                }
            }
        }
        _others => {}
    }
}

/// Adds to `next` what is in `stored` and not in `known`.
fn add(next: &mut Value, stored: &Value, known: &Value, within: &str, name: &str) {
    if next == known {
        *next = stored.clone();
        return;
    }
    match (next, stored, known) {
        (Value::Object(next), Value::Object(stored), Value::Object(known)) => {
            for (field, stored) in stored.iter().filter(|(_, value)| !value.is_null()) {
                match (known.get(field), next.get_mut(field)) {
                    (None, None) => {
                        next.insert(field.clone(), stored.clone());
                    }
                    (Some(known), Some(there)) => add(there, stored, known, name, field),
                    (None | Some(_), None | Some(_)) => {}
                }
            }
        }
        (Value::Array(next), Value::Array(stored), Value::Array(known)) => {
            for (i, item) in next.iter_mut().enumerate() {
                if let Some(at) = position(known, item, i, within, name)
                    && let Some(stored) = stored.get(at)
                {
                    add(item, stored, &known[at], name, name);
                }
            }
        }
        _others => {}
    }
}

/// Where an item that stands at `i` in one state of a list stands in another.
fn position(list: &[Value], item: &Value, i: usize, within: &str, name: &str) -> Option<usize> {
    // Only the shape of the list counts, not what is in it.
    match shape(within, name, &Value::Array(Vec::new())) {
        Shape::Keyed(keys) => {
            let step = item_step(keys, item);
            list.iter().position(|other| item_step(keys, other) == step)
        }
        Shape::Atomic | Shape::Granular | Shape::Set => {
            let same_place = list.get(i).filter(|other| *other == item).map(|_| i);
            same_place.or_else(|| list.iter().position(|other| other == item))
        }
    }
}
