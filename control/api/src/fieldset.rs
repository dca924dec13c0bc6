//! Sets of fields, as `metadata.managedFields` writes them (FieldsV1). Not the
//! values of the fields, and not their owners: see `managed`. Called by `apply`,
//! `compare` and `managed`.

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

/// Fields of the metadata that have owners. The others belong to the server.
pub(crate) const OWNED_METADATA: &[&str] = &[
    "annotations",
    "finalizers",
    "generateName",
    "labels",
    "ownerReferences",
];

impl FieldSet {
    /// A set of one field.
    pub(crate) fn leaf() -> Self {
        Self {
            owned: true,
            children: BTreeMap::new(),
        }
    }

    /// Every field that an object sets, but its status and the fields that
    /// identify it or belong to the server.
    pub fn of(object: &Value) -> Self {
        let mut set = Self::default();
        for (name, value) in present(object) {
            match name.as_str() {
                "apiVersion" | "kind" | "status" => {}
                "metadata" => {
                    let mut metadata = Self::default();
                    for (name, value) in present(value) {
                        if OWNED_METADATA.contains(&name.as_str()) {
                            metadata.insert(name, Self::of_field("metadata", name, value));
                        }
                    }
                    set.insert(name, metadata);
                }
                _other => set.insert(name, Self::of_field("", name, value)),
            }
        }
        set
    }

    /// The fields below the field `name`, which stands in the field `within`.
    pub(crate) fn of_field(within: &str, name: &str, value: &Value) -> Self {
        let mut set = Self::default();
        match shape(within, name, value) {
            Shape::Atomic => set.owned = true,
            Shape::Granular => set = Self::of_struct(name, value),
            Shape::Keyed(keys) => {
                for item in value.as_array().into_iter().flatten() {
                    set.children
                        .insert(item_step(keys, item), Self::of_item(name, item));
                }
            }
            Shape::Set => {
                for item in value.as_array().into_iter().flatten() {
                    set.children.insert(value_step(item), Self::leaf());
                }
            }
        }
        // An empty map or list is a value, too.
        set.owned |= set.children.is_empty();
        set
    }

    /// An item of the keyed list `list`, with its fields.
    pub(crate) fn of_item(list: &str, item: &Value) -> Self {
        let mut set = Self::of_struct(list, item);
        set.owned = true;
        set
    }

    fn of_struct(within: &str, object: &Value) -> Self {
        let mut set = Self::default();
        for (name, value) in present(object) {
            set.insert(name, Self::of_field(within, name, value));
        }
        set
    }

    /// Adds the field `name` with what is below it, unless that is nothing.
    pub(crate) fn insert(&mut self, name: &str, child: Self) {
        self.insert_step(Step::Field(name.to_owned()), child);
    }

    /// Takes the field `name` out, with what is below it.
    pub(crate) fn take(&mut self, name: &str) -> Option<Self> {
        self.children.remove(&Step::Field(name.to_owned()))
    }

    pub(crate) fn insert_step(&mut self, step: Step, child: Self) {
        if !child.is_empty() {
            self.children.insert(step, child);
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

    /// What is in both sets.
    pub fn and(&self, other: &Self) -> Self {
        let mut set = Self {
            owned: self.owned && other.owned,
            children: BTreeMap::new(),
        };
        for (step, child) in &self.children {
            if let Some(theirs) = other.children.get(step) {
                set.insert_step(step.clone(), child.and(theirs));
            }
        }
        set
    }

    /// Paths of the fields in the set: `spec.containers[name="web"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect_paths("", &mut paths);
        paths
    }

    fn collect_paths(&self, at: &str, paths: &mut Vec<String>) {
        if self.owned && !at.is_empty() {
            paths.push(at.to_owned());
        }
        for (step, child) in &self.children {
            let at = match step {
                Step::Field(name) if at.is_empty() => name.clone(),
                Step::Field(name) => format!("{at}.{name}"),
                Step::Key(key) => {
                    let fields: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
                    let pairs: Vec<String> =
                        fields.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    format!("{at}[{}]", pairs.join(","))
                }
                Step::Value(value) => format!("{at}[={value}]"),
            };
            child.collect_paths(&at, paths);
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
        let mut set = Self::read(fields);
        set.owned = false;
        set
    }

    /// Whether a field is in this set and in one that is written as FieldsV1.
    pub(crate) fn meets(&self, fields: &Value) -> bool {
        self.children.iter().any(|(step, child)| {
            let theirs = fields.get(step.text());
            theirs.is_some_and(|t| (child.owned && is_member(t)) || child.meets(t))
        })
    }

    /// Whether all fields of this set are in one that is written as FieldsV1.
    pub(crate) fn is_within(&self, fields: &Value) -> bool {
        self.children.iter().all(|(step, child)| {
            let theirs = fields.get(step.text());
            theirs.is_some_and(|t| (!child.owned || is_member(t)) && child.is_within(t))
        })
    }

    fn read(fields: &Value) -> Self {
        let mut set = Self::default();
        for (text, child) in fields.as_object().into_iter().flatten() {
            if text == "." {
                set.owned = true;
            } else if let Some(step) = Step::parse(text) {
                set.children.insert(step, Self::read(child));
            }
        }
        set.owned |= set.children.is_empty();
        set
    }
}

/// Whether a node of FieldsV1 is itself in the set.
fn is_member(node: &Value) -> bool {
    node.as_object()
        .is_none_or(|fields| fields.is_empty() || fields.contains_key("."))
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

/// The step to an item of a set.
pub(crate) fn value_step(item: &Value) -> Step {
    Step::Value(item.to_string())
}

/// Fields that are there: null is as good as absent.
fn present(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null())
}
