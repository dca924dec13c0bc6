//! Sets of fields, as managedFields hold them (FieldsV1): which fields somebody
//! has applied. Not what they hold. Called by `apply`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::schema::{Shape, shape};

/// One step into an object, written as FieldsV1 does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// `f:name`
    Field(String),
    /// `k:{"name":"web"}`: an item of a keyed list. Canonical JSON.
    Key(String),
    /// `v:"x"`: an item of a set. JSON.
    Value(String),
}

impl Step {
    fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        match kind {
            "f" => Some(Self::Field(rest.to_owned())),
            "k" => Some(Self::Key(canonical(&serde_json::from_str(rest).ok()?))),
            "v" => Some(Self::Value(rest.to_owned())),
            _unknown => None,
        }
    }
    fn text(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(key) => format!("k:{key}"),
            Self::Value(value) => format!("v:{value}"),
        }
    }
}

/// Keys in order, so that equal items have equal text.
fn canonical(value: &Value) -> String {
    match value.as_object() {
        Some(fields) => {
            let sorted: BTreeMap<&String, &Value> = fields.iter().collect();
            json!(sorted).to_string()
        }
        None => value.to_string(),
    }
}

/// A tree of fields. A node that is `owned` is itself in the set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    pub owned: bool,
    pub children: BTreeMap<Step, FieldSet>,
}

impl FieldSet {
    /// Every field that a manifest sets, but those that identify the object.
    pub fn of(object: &Value) -> Self {
        let mut set = Self::collect(object, "");
        for name in ["apiVersion", "kind", "status"] {
            set.children.remove(&Step::Field(name.to_owned()));
        }
        if let Some(meta) = set.children.get_mut(&Step::Field("metadata".to_owned())) {
            let own = ["labels", "annotations", "finalizers", "ownerReferences"];
            meta.children
                .retain(|step, _| matches!(step, Step::Field(f) if own.contains(&f.as_str())));
            meta.owned = false;
        }
        set
    }

    /// `within`: the field that holds the object.
    fn collect(object: &Value, within: &str) -> Self {
        let mut set = Self::default();
        for (name, value) in object.as_object().into_iter().flatten() {
            if value.is_null() {
                continue;
            }
            let child = Self::collect_field(within, name, value);
            set.children.insert(Step::Field(name.clone()), child);
        }
        set
    }

    fn collect_field(within: &str, name: &str, value: &Value) -> Self {
        match shape(within, name, value) {
            Shape::Atomic => Self {
                owned: true,
                children: BTreeMap::new(),
            },
            Shape::Granular => {
                let mut set = Self::collect(value, name);
                set.owned = set.children.is_empty();
                set
            }
            Shape::Keyed(keys) => {
                let mut set = Self::default();
                for item in value.as_array().into_iter().flatten() {
                    let mut child = Self::collect(item, name);
                    child.owned = true;
                    set.children.insert(item_step(keys, item), child);
                }
                set.owned = set.children.is_empty();
                set
            }
            Shape::Set => {
                let items = value.as_array().into_iter().flatten();
                let leaf = || Self {
                    owned: true,
                    children: BTreeMap::new(),
                };
                let children = items
                    .map(|item| (Step::Value(item.to_string()), leaf()))
                    .collect();
                Self {
                    owned: false,
                    children,
                }
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        !self.owned && self.children.values().all(Self::is_empty)
    }

    /// What is in this set and not in `other`.
    pub fn minus(&self, other: &Self) -> Self {
        let none = Self::default();
        let children = self
            .children
            .iter()
            .map(|(step, child)| {
                (
                    step.clone(),
                    child.minus(other.children.get(step).unwrap_or(&none)),
                )
            })
            .filter(|(_, child)| !child.is_empty())
            .collect();
        Self {
            owned: self.owned && !other.owned,
            children,
        }
    }

    /// Adds what is in `other`.
    pub fn add(&mut self, other: &Self) {
        self.owned |= other.owned;
        for (step, child) in &other.children {
            self.children.entry(step.clone()).or_default().add(child);
        }
    }

    /// As managedFields write it.
    pub fn to_fields_v1(&self) -> Value {
        let mut fields = Map::new();
        if self.owned && !self.children.is_empty() {
            fields.insert(".".to_owned(), json!({}));
        }
        for (step, child) in &self.children {
            fields.insert(step.text(), child.to_fields_v1());
        }
        Value::Object(fields)
    }

    /// From managedFields; steps that are not understood are left out.
    pub fn from_fields_v1(fields: &Value) -> Self {
        let mut set = Self::default();
        for (text, child) in fields.as_object().into_iter().flatten() {
            if text == "." {
                set.owned = true;
            } else if let Some(step) = Step::parse(text) {
                set.children.insert(step, Self::from_fields_v1(child));
            }
        }
        set.owned |= set.children.is_empty();
        set
    }
}

/// The step to an item of a keyed list.
pub(crate) fn item_step(keys: &[(&str, Option<&str>)], item: &Value) -> Step {
    let key: BTreeMap<&str, Value> = keys
        .iter()
        .map(|(name, default)| {
            let value = item.get(*name).filter(|value| !value.is_null()).cloned();
            (*name, value.unwrap_or_else(|| json!(default)))
        })
        .collect();
    Step::Key(json!(key).to_string())
}
