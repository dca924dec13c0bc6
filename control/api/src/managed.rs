//! `metadata.managedFields`: which manager owns which fields, and how each kind
//! of write changes that, as Kubernetes documents it for server-side apply.
//!
//! An entry is named by manager, operation and subresource. An Update takes the
//! fields that it changes from all others; an Apply that would do so is refused
//! unless it is forced. Not the merging: see `apply`. Called by `control-server`
//! after admission, when defaults are in the object.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::{Map, Value, json};

use crate::compare::{Changes, compare};
use crate::decode;
use crate::fieldset::FieldSet;
use crate::invalid::{Cause, Causes, Field};
use crate::kind::Kind;
use crate::meta;

/// Owner of the fields of an object that was written without ownership, until
/// somebody applies it.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// Owner of what the oldest of many Update entries owned.
const ANCIENT_CHANGES: &str = "ancient-changes";
/// Update entries of one object; more are merged, the oldest first.
const MAX_UPDATE_ENTRIES: usize = 10;
/// Bytes of a manager's name.
pub const MAX_MANAGER_BYTES: usize = 128;
const MAX_SUBRESOURCE_BYTES: usize = 256;

/// Who writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manager<'a> {
    pub name: &'a str,
    /// "", or "scale". Changes below `status` are those of the subresource
    /// "status", regardless of this field.
    pub subresource: &'a str,
}

/// How it writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Create, Update, Patch, Scale, and all that controllers and nodes write.
    Update,
    Apply {
        /// Fields in the applied manifest.
        set: FieldSet,
        /// Take fields over from other managers.
        force: bool,
    },
}

/// Fields that an Apply would change and that other managers own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", text(.0))]
pub struct Conflicts(pub Vec<Cause>);

fn text(causes: &[Cause]) -> String {
    let several = if causes.len() == 1 { "" } else { "s" };
    let all: Vec<String> = causes
        .iter()
        .map(|cause| format!("{}: .{}", cause.message, cause.field))
        .collect();
    format!(
        "Apply failed with {} conflict{several}: {}",
        causes.len(),
        all.join("; ")
    )
}

/// Writes `metadata.managedFields` of `new`, the admitted successor of `old` (or
/// a new object). An Update may bring entries of its own in `new`: they take the
/// place of those in `old`; `[{}]` removes all.
///
/// The time of an entry changes only with the entry, or when the write changes
/// fields of it.
pub fn track(
    kind: &Kind,
    old: Option<&Value>,
    new: &mut Value,
    manager: Manager<'_>,
    operation: &Operation,
    now: Timestamp,
) -> Result<(), Conflicts> {
    let given = meta::take(new, "managedFields").filter(|given| !is_empty(given));
    if matches!(operation, Operation::Update) && given.as_ref().is_some_and(is_reset) {
        return Ok(());
    }
    let before = old.and_then(raw);
    let mut changes = compare(old.unwrap_or(&Value::Null), new);
    if old.is_none() {
        // The first status is the kind's own.
        changes.set.take("status");
    }
    let now = meta::time_text(now);
    let mut entries = match (operation, given) {
        (Operation::Update, Some(given)) if Some(&given) == before => read(given),
        (Operation::Update, Some(given)) => canonical(read(given)),
        (Operation::Update | Operation::Apply { .. }, _) => {
            before.cloned().map(read).unwrap_or_default()
        }
    };
    match operation {
        // Nothing is known of the fields of an object that was written without
        // owners: only an Apply changes that.
        Operation::Update
            if entries.is_empty() && old.is_some_and(|old| !FieldSet::of(old).is_empty()) => {}
        Operation::Update => update(kind, &mut entries, changes, manager, &now),
        Operation::Apply { set, force } => {
            if entries.is_empty()
                && let Some(old) = old
            {
                let set = FieldSet::of(old);
                entries.push(Entry::update(kind, BEFORE_FIRST_APPLY, "", &now, &set));
            }
            apply(kind, &mut entries, &changes, manager, set, *force, &now)?;
        }
    }
    let entries = Some(written(entries)).filter(|list| !is_empty(list));
    meta::set(new, "managedFields", entries);
    Ok(())
}

/// What `manager` applied last, and what all other entries own.
pub(crate) fn owned(object: &Value, manager: &str) -> (FieldSet, FieldSet) {
    let (mut own, mut others) = (FieldSet::default(), FieldSet::default());
    for entry in raw(object).cloned().map(read).unwrap_or_default() {
        let same = entry.is_apply() && entry.manager == manager && entry.subresource.is_empty();
        if same {
            own.add(&entry.set());
        } else {
            others.add(&entry.set());
        }
    }
    (own, others)
}

/// Judges entries that a client wrote.
pub fn validate(entries: &Value) -> Vec<Cause> {
    let at = Field::root("metadata").child("managedFields");
    if let Err(causes) = decode::strict::<Vec<ManagedFieldsEntry>>(entries) {
        let at = |cause: Cause| Cause {
            field: format!("{at}{}", cause.field),
            ..cause
        };
        return causes.into_iter().map(at).collect();
    }
    if is_reset(entries) {
        return Vec::new();
    }
    let mut causes = Causes::default();
    for (i, entry) in entries.as_array().into_iter().flatten().enumerate() {
        let at = at.index(i);
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
        if !["Apply", "Update"].contains(&text("operation")) {
            let detail = "must be `Apply` or `Update`";
            causes.invalid(&at.child("operation"), text("operation"), detail);
        }
        if !["", "FieldsV1"].contains(&text("fieldsType")) {
            let detail = "must be `FieldsV1`";
            causes.invalid(&at.child("fieldsType"), text("fieldsType"), detail);
        }
        if let Err(detail) = check_manager(text("manager")) {
            causes.invalid(&at.child("manager"), text("manager"), detail);
        }
        if text("subresource").len() > MAX_SUBRESOURCE_BYTES {
            let detail = format!("may not be more than {MAX_SUBRESOURCE_BYTES} bytes");
            causes.push(&at.child("subresource"), format!("Too long: {detail}"));
        }
        if entry.get("fieldsV1").is_some_and(|set| !set.is_object()) {
            causes.invalid(&at.child("fieldsV1"), "", "must be an object");
        }
    }
    causes.into_vec()
}

/// Judges the name of a field manager.
pub fn check_manager(name: &str) -> Result<(), String> {
    if name.len() > MAX_MANAGER_BYTES {
        return Err(format!("may not be more than {MAX_MANAGER_BYTES} bytes"));
    }
    if name.chars().any(char::is_control) {
        return Err("should only contain printable characters".to_owned());
    }
    Ok(())
}

fn raw(object: &Value) -> Option<&Value> {
    object.get("metadata")?.get("managedFields")
}

fn is_empty(list: &Value) -> bool {
    list.as_array().is_none_or(Vec::is_empty)
}

/// `[{}]`: forget who owns what.
fn is_reset(list: &Value) -> bool {
    let only = list.as_array().filter(|entries| entries.len() == 1);
    only.and_then(|entries| entries.first()?.as_object())
        .is_some_and(Map::is_empty)
}

/// One entry. Its fields stay in their written form, and are decoded only if a
/// write touches them: most writes are status reports that touch none.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    manager: String,
    /// "Apply" or "Update".
    operation: String,
    api_version: String,
    subresource: String,
    time: String,
    fields: Value,
}

impl Entry {
    fn update(kind: &Kind, manager: &str, subresource: &str, now: &str, set: &FieldSet) -> Self {
        Self {
            manager: manager.to_owned(),
            operation: "Update".to_owned(),
            api_version: kind.api_version(),
            subresource: subresource.to_owned(),
            time: now.to_owned(),
            fields: set.to_fields_v1(),
        }
    }

    fn is_apply(&self) -> bool {
        self.operation == "Apply"
    }

    fn is_empty(&self) -> bool {
        self.fields.as_object().is_none_or(Map::is_empty)
    }

    fn set(&self) -> FieldSet {
        FieldSet::from_fields_v1(&self.fields)
    }

    fn add(&mut self, more: &FieldSet) {
        if !more.is_within(&self.fields) {
            let mut set = self.set();
            set.add(more);
            self.fields = set.to_fields_v1();
        }
    }

    fn remove(&mut self, lost: &FieldSet) {
        if lost.meets(&self.fields) {
            self.fields = self.set().minus(lost).to_fields_v1();
        }
    }

    /// As conflicts name it: `"foil-scale" with subresource "scale" using apps/v1`.
    fn shown(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.is_apply() {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

fn read(list: Value) -> Vec<Entry> {
    let Value::Array(entries) = list else {
        return Vec::new();
    };
    let entry = |mut entry: Value| {
        let fields = entry.get_mut("fieldsV1").map(Value::take)?;
        let mut text = |name: &str| match entry.get_mut(name).map(Value::take) {
            Some(Value::String(text)) => text,
            Some(_) | None => String::new(),
        };
        Some(Entry {
            manager: text("manager"),
            operation: text("operation"),
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            fields,
        })
    };
    let entries = entries.into_iter().filter_map(entry);
    entries.filter(|entry| !entry.is_empty()).collect()
}

/// Entries that a client wrote, with their fields as we write them.
fn canonical(mut entries: Vec<Entry>) -> Vec<Entry> {
    for entry in &mut entries {
        entry.fields = entry.set().to_fields_v1();
    }
    entries.retain(|entry| !entry.is_empty());
    entries
}

/// In Kubernetes' order: operation, time, manager.
fn written(mut entries: Vec<Entry>) -> Value {
    entries.retain(|entry| !entry.is_empty());
    fn order(entry: &Entry) -> [&str; 4] {
        let Entry {
            operation,
            time,
            manager,
            subresource,
            ..
        } = entry;
        [operation, time, manager, subresource]
    }
    entries.sort_by(|a, b| order(a).cmp(&order(b)));
    let entries = entries.into_iter().map(|entry| {
        let mut value = json!({
            "manager": entry.manager,
            "operation": entry.operation,
            "apiVersion": entry.api_version,
            "time": entry.time,
            "fieldsType": "FieldsV1",
        });
        value["fieldsV1"] = entry.fields;
        if !entry.subresource.is_empty() {
            value["subresource"] = Value::String(entry.subresource);
        }
        value
    });
    Value::Array(entries.collect())
}

/// Takes what is in `lost` out of all entries but `own`.
fn take_from_others(entries: &mut [Entry], own: impl Fn(&Entry) -> bool, lost: &FieldSet) {
    if lost.is_empty() {
        return;
    }
    for entry in entries.iter_mut().filter(|entry| !own(entry)) {
        entry.remove(lost);
    }
}

fn update(
    kind: &Kind,
    entries: &mut Vec<Entry>,
    changes: Changes,
    manager: Manager<'_>,
    now: &str,
) {
    for (subresource, changes) in by_subresource(changes, manager.subresource) {
        if changes.is_empty() {
            continue;
        }
        let own = |entry: &Entry| {
            !entry.is_apply() && entry.manager == manager.name && entry.subresource == subresource
        };
        take_from_others(entries, own, &changes.set);
        take_from_others(entries, |_| false, &changes.removed);
        match entries.iter_mut().find(|entry| own(entry)) {
            Some(entry) => {
                entry.add(&changes.set);
                entry.api_version = kind.api_version();
                entry.time = now.to_owned();
            }
            None => {
                entries.push(Entry::update(
                    kind,
                    manager.name,
                    subresource,
                    now,
                    &changes.set,
                ));
            }
        }
    }
    entries.retain(|entry| !entry.is_empty());
    merge_ancient(kind, entries);
}

/// Changes of the status apart from the others.
fn by_subresource(mut changes: Changes, named: &str) -> [(&str, Changes); 2] {
    let mut status = Changes::default();
    for (all, own) in [
        (&mut changes.set, &mut status.set),
        (&mut changes.removed, &mut status.removed),
    ] {
        if let Some(child) = all.take("status") {
            own.insert("status", child);
        }
    }
    [(named, changes), ("status", status)]
}

/// Bounds the number of Update entries.
fn merge_ancient(kind: &Kind, entries: &mut Vec<Entry>) {
    loop {
        let mut updates: Vec<usize> = (0..entries.len())
            .filter(|i| !entries[*i].is_apply())
            .collect();
        if updates.len() <= MAX_UPDATE_ENTRIES {
            return;
        }
        updates.sort_by(|a, b| entries[*a].time.cmp(&entries[*b].time));
        let [first, second, ..] = updates[..] else {
            return;
        };
        let (older, newer) = (entries[first].clone(), &mut entries[second]);
        let mut set = older.set();
        set.add(&newer.set());
        *newer = Entry::update(kind, ANCIENT_CHANGES, "", &newer.time, &set);
        entries.remove(first);
    }
}

fn apply(
    kind: &Kind,
    entries: &mut Vec<Entry>,
    changes: &Changes,
    manager: Manager<'_>,
    set: &FieldSet,
    force: bool,
    now: &str,
) -> Result<(), Conflicts> {
    let own = |entry: &Entry| {
        entry.is_apply()
            && entry.manager == manager.name
            && entry.subresource == manager.subresource
    };
    if !force {
        let mut conflicts = Vec::new();
        let others = entries.iter().filter(|entry| !own(entry));
        for entry in others.filter(|entry| changes.set.meets(&entry.fields)) {
            let message = format!("conflict with {}", entry.shown());
            for field in entry.set().and(&changes.set).paths() {
                let message = message.clone();
                conflicts.push(Cause { field, message });
            }
        }
        if !conflicts.is_empty() {
            return Err(Conflicts(conflicts));
        }
    }
    take_from_others(entries, own, &changes.set);
    take_from_others(entries, own, &changes.removed);
    match entries.iter_mut().find(|entry| own(entry)) {
        Some(entry) if changes.is_empty() && entry.set() == *set => {}
        Some(entry) => {
            entry.fields = set.to_fields_v1();
            entry.api_version = kind.api_version();
            entry.time = now.to_owned();
        }
        None => entries.push(Entry {
            operation: "Apply".to_owned(),
            ..Entry::update(kind, manager.name, manager.subresource, now, set)
        }),
    }
    Ok(())
}
