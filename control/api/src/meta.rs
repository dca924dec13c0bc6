//! Metadata: accessors over values of any kind, system-owned fields, and the
//! rules that all kinds share. Not the rules of one kind. Called by `admit`,
//! controllers and the server.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Map, Value, json};

use crate::invalid::{Causes, Field};
use crate::kind::{Kind, NameRule};
use crate::name as names;

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object
        .get("metadata")
        .and_then(|m| m.get(field))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// "" where there is none; so for all of these.
pub fn name(object: &Value) -> &str {
    text(object, "name")
}
pub fn generate_name(object: &Value) -> &str {
    text(object, "generateName")
}
pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}
pub fn uid(object: &Value) -> &str {
    text(object, "uid")
}
/// Text, as clients see it.
pub fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}
/// The store's revision, if the object names one that is a number.
pub fn revision(object: &Value) -> Option<u64> {
    resource_version(object).parse().ok()
}
/// 0 where there is none.
pub fn generation(object: &Value) -> i64 {
    let meta = object.get("metadata");
    meta.and_then(|m| m.get("generation"))
        .and_then(Value::as_i64)
        .unwrap_or_default()
}
pub fn creation_timestamp(object: &Value) -> Option<Timestamp> {
    text(object, "creationTimestamp").parse().ok()
}
pub fn deletion_timestamp(object: &Value) -> Option<Timestamp> {
    text(object, "deletionTimestamp").parse().ok()
}
/// Whether deletion was asked for.
pub fn is_terminating(object: &Value) -> bool {
    !text(object, "deletionTimestamp").is_empty()
}
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("labels")?.get(key)?.as_str()
}
pub fn labels(object: &Value) -> impl Iterator<Item = (&str, &str)> {
    pairs(object, "labels")
}
pub fn annotations(object: &Value) -> impl Iterator<Item = (&str, &str)> {
    pairs(object, "annotations")
}
fn pairs<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let map = object
        .get("metadata")
        .and_then(|m| m.get(field))
        .and_then(Value::as_object);
    map.into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)))
}
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    let list = object
        .get("metadata")
        .and_then(|m| m.get("finalizers"))
        .and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str)
}
pub fn owners(object: &Value) -> Vec<OwnerReference> {
    let list = object
        .get("metadata")
        .and_then(|m| m.get("ownerReferences"));
    list.and_then(|l| serde_json::from_value(l.clone()).ok())
        .unwrap_or_default()
}
/// The owner that manages the object, if there is one.
pub fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|o| o.controller == Some(true))
}

fn meta_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let fields = object.as_object_mut()?;
    fields
        .entry("metadata")
        .or_insert_with(|| json!({}))
        .as_object_mut()
}

/// Sets a field of the metadata; `None` removes it.
pub fn set(object: &mut Value, field: &str, value: Option<Value>) {
    let Some(meta) = meta_mut(object) else { return };
    match value {
        Some(value) => {
            meta.insert(field.to_owned(), value);
        }
        None => {
            meta.shift_remove(field);
        }
    }
}
pub fn set_name(object: &mut Value, name: &str) {
    set(object, "name", Some(json!(name)));
}
pub fn set_namespace(object: &mut Value, namespace: &str) {
    set(object, "namespace", Some(json!(namespace)));
}
/// Takes a field out of the metadata.
pub fn take(object: &mut Value, field: &str) -> Option<Value> {
    meta_mut(object)?.shift_remove(field)
}
/// Written into what is read from the store; not stored itself.
pub fn set_resource_version(object: &mut Value, revision: u64) {
    set(object, "resourceVersion", Some(json!(revision.to_string())));
}
pub fn clear_resource_version(object: &mut Value) {
    set(object, "resourceVersion", None);
}
pub fn set_generation(object: &mut Value, generation: Option<i64>) {
    set(object, "generation", generation.map(Value::from));
}
/// What the server adds to a new object.
pub fn stamp_created(object: &mut Value, uid: &str, now: Timestamp) {
    set(object, "uid", Some(json!(uid)));
    set(object, "creationTimestamp", Some(json!(time_text(now))));
}
/// Marks for graceful deletion. A grace period that is running is only ever shortened.
pub fn stamp_deleted(object: &mut Value, grace_seconds: i64, now: Timestamp) {
    let grace_seconds = grace_seconds.max(0);
    let before = object
        .get("metadata")
        .and_then(|m| m.get("deletionGracePeriodSeconds"));
    let running = before
        .and_then(Value::as_i64)
        .filter(|_| is_terminating(object));
    if running.is_some_and(|running| running <= grace_seconds) {
        return;
    }
    let end = now
        .checked_add(jiff::SignedDuration::from_secs(grace_seconds))
        .unwrap_or(now);
    set(object, "deletionTimestamp", Some(json!(time_text(end))));
    set(
        object,
        "deletionGracePeriodSeconds",
        Some(json!(grace_seconds)),
    );
    let generation = generation(object);
    if generation > 0 && running.is_none() {
        set_generation(object, Some(generation + 1));
    }
}
/// RFC 3339 in whole seconds, as Kubernetes writes times.
pub fn time_text(time: Timestamp) -> String {
    let seconds = Timestamp::from_second(time.as_second()).unwrap_or(time);
    seconds.to_string()
}

/// A name for `generateName`: the prefix, cut so that it fits, and five
/// characters drawn from `random` (a fresh random number each time).
pub fn generated_name(prefix: &str, mut random: u64) -> String {
    // The alphabet of Kubernetes' own generator: no vowels, so no words.
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let kept: String = prefix.chars().take(names::LABEL_MAX - 5).collect();
    let mut name = kept;
    for _ in 0..5 {
        let length = ALPHABET.len() as u64;
        let index = usize::try_from(random % length).unwrap_or_default();
        random /= length;
        name.push(char::from(ALPHABET[index]));
    }
    name
}

/// System-owned fields: kept from `old`, or cleared.
pub(crate) fn prepare(meta: &mut ObjectMeta, old: Option<&ObjectMeta>, kind: &Kind) {
    meta.self_link = None;
    meta.resource_version = None;
    // Written after admission, when it is known what the write changes: `managed`.
    meta.managed_fields = None;
    if !kind.namespaced {
        meta.namespace = meta.namespace.take().filter(|n| !n.is_empty());
    }
    let none = ObjectMeta::default();
    let from = old.unwrap_or(&none);
    if old.is_none() {
        meta.uid = None;
        meta.creation_timestamp = None;
    } else {
        // A write may name the uid and the like, to be sure which object it means:
        // what differs is refused in validate_update.
        meta.uid = meta.uid.take().or_else(|| from.uid.clone());
        meta.creation_timestamp = from.creation_timestamp.clone();
        meta.generate_name = from.generate_name.clone();
    }
    meta.generation = from.generation;
    meta.deletion_timestamp = from.deletion_timestamp.clone();
    meta.deletion_grace_period_seconds = from.deletion_grace_period_seconds;
}

pub(crate) fn validate(meta: &ObjectMeta, kind: &Kind, causes: &mut Causes) {
    let at = Field::root("metadata");
    let name = meta.name.as_deref().unwrap_or_default();
    let prefix = meta.generate_name.as_deref().unwrap_or_default();
    let judge = match kind.name_rule {
        NameRule::Subdomain => names::subdomain,
        NameRule::Label => names::label,
        NameRule::Label1035 => names::label_1035,
    };
    if name.is_empty() && prefix.is_empty() {
        causes.required(&at.child("name"), "name or generateName is required");
    }
    if !name.is_empty()
        && let Err(detail) = judge(name)
    {
        causes.invalid(&at.child("name"), name, detail);
    }
    if !prefix.is_empty()
        && judge(&format!("{prefix}x")).is_err()
        && let Err(detail) = judge(&generated_name(prefix, 0))
    {
        causes.invalid(&at.child("generateName"), prefix, detail);
    }
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    if kind.namespaced {
        if namespace.is_empty() {
            causes.required(&at.child("namespace"), "");
        } else if let Err(detail) = names::label(namespace) {
            causes.invalid(&at.child("namespace"), namespace, detail);
        }
    } else if !namespace.is_empty() {
        causes.forbidden(&at.child("namespace"), "not allowed on this type");
    }
    validate_labels(meta.labels.as_ref(), &at.child("labels"), causes);
    validate_annotations(meta, &at.child("annotations"), causes);
    for (i, finalizer) in meta.finalizers.iter().flatten().enumerate() {
        if let Err(detail) = names::qualified(finalizer) {
            causes.invalid(&at.child("finalizers").index(i), finalizer, detail);
        }
    }
    validate_owners(meta, &at.child("ownerReferences"), causes);
}

fn validate_owners(meta: &ObjectMeta, at: &Field, causes: &mut Causes) {
    let owners: Vec<&OwnerReference> = meta.owner_references.iter().flatten().collect();
    for (i, owner) in owners.iter().enumerate() {
        let at = at.index(i);
        let fields = [
            ("apiVersion", &owner.api_version),
            ("kind", &owner.kind),
            ("name", &owner.name),
            ("uid", &owner.uid),
        ];
        for (field, value) in fields {
            if value.is_empty() {
                causes.required(&at.child(field), "must not be empty");
            }
        }
    }
    if owners.iter().filter(|o| o.controller == Some(true)).count() > 1 {
        causes.push(at, "Only one reference can have Controller set to true");
    }
}

/// Labels of an object, a template or a selector's matchLabels.
pub(crate) fn validate_labels(
    labels: Option<&std::collections::BTreeMap<String, String>>,
    at: &Field,
    causes: &mut Causes,
) {
    for (key, value) in labels.into_iter().flatten() {
        if let Err(detail) = names::qualified(key) {
            causes.invalid(at, key, detail);
        }
        if let Err(detail) = names::label_value(value) {
            causes.invalid(&at.key(key), value, detail);
        }
    }
}

pub(crate) fn validate_annotations(meta: &ObjectMeta, at: &Field, causes: &mut Causes) {
    let mut size = 0;
    for (key, value) in meta.annotations.iter().flatten() {
        if let Err(detail) = names::qualified(&key.to_lowercase()) {
            causes.invalid(at, key, detail);
        }
        size += key.len() + value.len();
    }
    if size > 256 * 1024 {
        causes.push(at, "Too long: may not be more than 262144 bytes");
    }
}

pub(crate) fn validate_update(new: &ObjectMeta, old: &ObjectMeta, causes: &mut Causes) {
    let at = Field::root("metadata");
    let immutable = [
        ("name", &new.name, &old.name),
        ("namespace", &new.namespace, &old.namespace),
        ("uid", &new.uid, &old.uid),
    ];
    for (field, new, old) in immutable {
        if new != old {
            let value = new.as_deref().unwrap_or_default();
            causes.invalid(&at.child(field), value, "field is immutable");
        }
    }
    if old.deletion_timestamp.is_some() {
        let known: Vec<&String> = old.finalizers.iter().flatten().collect();
        let added: Vec<&String> = new
            .finalizers
            .iter()
            .flatten()
            .filter(|f| !known.contains(f))
            .collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            causes.forbidden(&at.child("finalizers"), detail);
        }
    }
}
