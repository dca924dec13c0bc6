//! Who owns which fields after which write: rows of a state, a write, and the
//! entries of managedFields that come out.
#![cfg(test)]

use control_api::apply::merge;
use control_api::compare::compare;
use control_api::fieldset::FieldSet;
use control_api::managed::{self, Conflicts, Manager, Operation};
use control_api::{admit, find_for};
use serde_json::{Value, json};

fn time(second: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_767_323_045 + second).unwrap()
}

fn web(spec: Value) -> Value {
    let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "a", "image": "a:1"}]},
        },
    }});
    control_api::patch::merge(&mut object["spec"], &spec);
    object
}

/// An object under several writers, as the server handles them.
struct Store {
    value: Option<Value>,
    writes: i64,
}

impl Store {
    fn empty() -> Self {
        Self {
            value: None,
            writes: 0,
        }
    }

    fn write(
        &mut self,
        value: &Value,
        manager: &str,
        subresource: &str,
        operation: &Operation,
    ) -> Result<(), Conflicts> {
        let kind = find_for(value).unwrap();
        let mut value = value.clone();
        let given = control_api::meta::take(&mut value, "managedFields");
        let (mut next, _) = admit(&value, kind, self.value.as_ref()).unwrap();
        control_api::meta::set(&mut next, "managedFields", given);
        if let Some(status) = value.get("status").filter(|_| kind.has_status) {
            next["status"] = status.clone();
        }
        let by = Manager {
            name: manager,
            subresource,
        };
        self.writes += 1;
        let now = time(self.writes);
        managed::track(kind, self.value.as_ref(), &mut next, by, operation, now)?;
        self.value = Some(next);
        Ok(())
    }

    fn update(&mut self, value: &Value, manager: &str) {
        self.write(value, manager, "", &Operation::Update).unwrap();
    }

    fn patch(&mut self, patch: Value, manager: &str, subresource: &str) {
        let mut value = self.value.clone().unwrap();
        control_api::patch::merge(&mut value, &patch);
        self.write(&value, manager, subresource, &Operation::Update)
            .unwrap();
    }

    fn apply(&mut self, value: &Value, manager: &str, force: bool) -> Result<(), String> {
        let (merged, set) = merge(self.value.as_ref(), value, manager);
        let operation = Operation::Apply { set, force };
        self.write(&merged, manager, "", &operation)
            .map_err(|conflicts| conflicts.to_string())
    }

    fn at(&self, path: &str) -> Value {
        let value = self.value.as_ref().unwrap();
        value.pointer(path).cloned().unwrap_or(Value::Null)
    }

    /// Each entry as "manager operation subresource: fields".
    fn owners(&self) -> Vec<String> {
        let entries = self.at("/metadata/managedFields");
        let entries = entries.as_array().cloned().unwrap_or_default();
        let text = |entry: &Value| {
            let set = FieldSet::from_fields_v1(&entry["fieldsV1"]);
            let word = |name: &str| entry[name].as_str().unwrap_or("").to_owned();
            let names = [word("manager"), word("operation"), word("subresource")];
            let names = names.join(" ");
            format!("{}: {}", names.trim_end(), set.paths().join(" "))
        };
        entries.iter().map(text).collect()
    }

    fn owned_by(&self, start: &str) -> Option<String> {
        let all = self.owners();
        all.into_iter().find(|entry| entry.starts_with(start))
    }
}

#[test]
fn a_scale_outlives_an_apply_without_replicas() {
    let mut store = Store::empty();
    store
        .apply(&web(json!({"replicas": 3})), "foil", false)
        .unwrap();
    store.patch(json!({"spec": {"replicas": 5}}), "foil-scale", "scale");
    assert_eq!(
        store.owned_by("foil-scale").unwrap(),
        "foil-scale Update scale: spec.replicas"
    );
    let applied = store.owned_by("foil Apply").unwrap();
    assert!(!applied.contains("replicas"), "{applied}");
    store.apply(&web(json!({})), "foil", false).unwrap();
    assert_eq!(store.at("/spec/replicas"), 5);
    // Named again with another value, it is a conflict; with the same, both own it.
    let refused = store.apply(&web(json!({"replicas": 3})), "foil", false);
    assert_eq!(
        refused.unwrap_err(),
        "Apply failed with 1 conflict: conflict with \"foil-scale\" with subresource \"scale\" \
         using apps/v1: .spec.replicas"
    );
    store
        .apply(&web(json!({"replicas": 5})), "foil", false)
        .unwrap();
    assert!(
        store
            .owned_by("foil Apply")
            .unwrap()
            .contains("spec.replicas")
    );
    assert!(store.owned_by("foil-scale").is_some());
    store
        .apply(&web(json!({"replicas": 3})), "foil", true)
        .unwrap();
    assert_eq!(store.at("/spec/replicas"), 3);
    assert_eq!(store.owned_by("foil-scale"), None);
    // Nobody else owns it now: left out, it goes back to its default.
    store.apply(&web(json!({})), "foil", false).unwrap();
    assert_eq!(store.at("/spec/replicas"), 1);
}

#[test]
fn who_creates_owns_what_it_wrote_and_the_defaults() {
    let mut store = Store::empty();
    store.update(&web(json!({"replicas": 2})), "foil-create");
    let created = store.owned_by("foil-create Update:").unwrap();
    for field in [
        "spec.replicas",
        "spec.progressDeadlineSeconds",
        "spec.selector",
        "spec.template.metadata.labels.app",
        "spec.template.spec.containers[name=\"a\"]",
        "spec.template.spec.containers[name=\"a\"].image",
    ] {
        assert!(
            created.split(' ').any(|f| f == field),
            "{field} in {created}"
        );
    }
    for field in ["metadata.name", "apiVersion", "status"] {
        assert!(!created.contains(field), "{field} in {created}");
    }
    assert_eq!(store.owners().len(), 1);
    // Applied with the same values: no conflict, two owners.
    store
        .apply(&web(json!({"replicas": 2})), "foil", false)
        .unwrap();
    assert_eq!(store.owned_by("foil-create Update:").unwrap(), created);
    // With others: a conflict with the creator, field by field.
    let mut other = web(json!({"replicas": 4}));
    other["spec"]["template"]["spec"]["containers"][0]["image"] = json!("a:2");
    let refused = store.apply(&other, "foil", false).unwrap_err();
    assert_eq!(
        refused,
        "Apply failed with 2 conflicts: conflict with \"foil-create\" using apps/v1: \
         .spec.replicas; conflict with \"foil-create\" using apps/v1: \
         .spec.template.spec.containers[name=\"a\"].image"
    );
    // What it drops and the creator still owns stays.
    store.apply(&web(json!({})), "foil", false).unwrap();
    assert_eq!(store.at("/spec/replicas"), 2);
}

#[test]
fn an_update_takes_what_it_changes_and_only_that() {
    let mut store = Store::empty();
    let mut manifest = web(json!({"replicas": 2}));
    manifest["metadata"]["labels"] = json!({"a": "1", "b": "1"});
    store.apply(&manifest, "foil", false).unwrap();
    store.patch(
        json!({"metadata": {"labels": {"b": "2", "c": "3"}}}),
        "foil-label",
        "",
    );
    assert_eq!(
        store.owned_by("foil-label").unwrap(),
        "foil-label Update: metadata.labels.b metadata.labels.c"
    );
    // The same write again owns nothing more, and keeps the time.
    let before = store.at("/metadata/managedFields");
    store.patch(json!({"metadata": {"labels": {"b": "2"}}}), "other", "");
    assert_eq!(store.at("/metadata/managedFields"), before);
    // What is removed has no owner any more.
    store.patch(
        json!({"metadata": {"labels": {"a": null, "c": null}}}),
        "foil-label",
        "",
    );
    assert_eq!(
        store.owned_by("foil-label").unwrap(),
        "foil-label Update: metadata.labels.b"
    );
    let applied = store.owned_by("foil Apply").unwrap();
    assert!(!applied.contains(" metadata.labels"), "{applied}");
    // The applier dropped a label that another changed: it stays.
    manifest["metadata"]["labels"] = json!({"a": "1"});
    store.apply(&manifest, "foil", false).unwrap();
    assert_eq!(store.at("/metadata/labels"), json!({"a": "1", "b": "2"}));
    // An item that another manager added to a keyed list stays as well.
    let mut value = store.value.clone().unwrap();
    let containers = &mut value["spec"]["template"]["spec"]["containers"];
    containers
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "mesh", "image": "m"}));
    store.update(&value, "injector");
    store.apply(&manifest, "foil", false).unwrap();
    let names = store.at("/spec/template/spec/containers");
    let names: Vec<&Value> = names
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["name"])
        .collect();
    assert_eq!(names, ["a", "mesh"]);
}

#[test]
fn the_status_is_a_part_of_its_own() {
    let mut store = Store::empty();
    store.apply(&web(json!({})), "foil", false).unwrap();
    let revision = json!({"metadata": {"annotations": {"deployment.kubernetes.io/revision": "1"}},
        "status": {"replicas": 1, "conditions": [{"type": "Available", "status": "True"}]}});
    store.patch(revision, "foil-control", "");
    assert_eq!(
        store.owners()[1..],
        [
            "foil-control Update: metadata.annotations.deployment.kubernetes.io/revision",
            "foil-control Update status: status.conditions[type=\"Available\"] \
             status.conditions[type=\"Available\"].status \
             status.conditions[type=\"Available\"].type status.replicas",
        ]
    );
    // Applying again takes nothing away from the controller.
    store
        .apply(&web(json!({"paused": true})), "foil", false)
        .unwrap();
    assert_eq!(
        store.at("/metadata/annotations/deployment.kubernetes.io~1revision"),
        "1"
    );
    assert_eq!(store.owners().len(), 3);
}

#[test]
fn an_object_without_owners_gets_one_at_its_first_apply() {
    let mut store = Store::empty();
    store.update(&web(json!({"replicas": 2})), "foil-create");
    // As an object that was stored before writes had owners.
    store.patch(
        json!({"metadata": {"managedFields": [{}]}}),
        "foil-patch",
        "",
    );
    assert_eq!(store.owners(), [""; 0]);
    store.patch(json!({"spec": {"paused": true}}), "foil-patch", "");
    assert_eq!(store.owners(), [""; 0], "not known, so not begun");
    let refused = store.apply(&web(json!({"replicas": 3})), "foil", false);
    assert_eq!(
        refused.unwrap_err(),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using apps/v1: \
         .spec.replicas"
    );
    store
        .apply(&web(json!({"replicas": 2})), "foil", false)
        .unwrap();
    assert!(
        store
            .owned_by("before-first-apply Update:")
            .unwrap()
            .contains("spec.paused")
    );
    // An object that sets nothing has an owner from the first field on.
    let mut empty = Store::empty();
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "m", "namespace": "default"}});
    empty.update(&map, "foil-create");
    empty.patch(json!({"data": {"a": "b"}}), "foil-patch", "");
    assert_eq!(empty.owners(), ["foil-patch Update: data.a"]);
}

#[test]
fn the_entries_of_many_writers_are_bounded() {
    let mut store = Store::empty();
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "m", "namespace": "default"}, "data": {"0": "x"}});
    store.apply(&map, "foil", false).unwrap();
    for i in 1..=30 {
        let key = format!("k{i}");
        store.patch(json!({"data": {key: "x"}}), &format!("writer-{i}"), "");
    }
    let owners = store.owners();
    assert_eq!(owners.len(), 11, "{owners:#?}");
    assert_eq!(owners[0], "foil Apply: data.0");
    let ancient = store.owned_by("ancient-changes Update:").unwrap();
    assert_eq!(ancient.matches("data.k").count(), 21, "{ancient}");
    assert_eq!(
        store.owned_by("writer-30").unwrap(),
        "writer-30 Update: data.k30"
    );
}

#[test]
fn entries_that_clients_write_are_judged() {
    let rows = [
        (json!([{}]), None),
        (json!([]), None),
        (json!({}), Some("metadata.managedFields")),
        (
            json!([{"manager": "a", "operation": "Set", "fieldsV1": {}}]),
            Some("metadata.managedFields[0].operation"),
        ),
        (
            json!([{"manager": "a\n", "operation": "Apply"}]),
            Some("metadata.managedFields[0].manager"),
        ),
        (
            json!([{"manager": "a", "operation": "Apply", "fieldsType": "FieldsV2"}]),
            Some("metadata.managedFields[0].fieldsType"),
        ),
        (
            json!([{"manager": 1, "operation": "Apply"}]),
            Some("metadata.managedFields[0].manager"),
        ),
        (json!([1]), Some("metadata.managedFields[0]")),
        (
            json!([{"manager": "a", "operation": "Apply", "fieldsV1": []}]),
            Some("metadata.managedFields[0].fieldsV1"),
        ),
    ];
    for (entries, expected) in rows {
        let causes = managed::validate(&entries);
        let fields: Vec<&str> = causes.iter().map(|cause| cause.field.as_str()).collect();
        assert_eq!(fields, expected.as_slice(), "{entries}");
    }
    assert!(managed::check_manager(&"x".repeat(129)).is_err());
    // Garbage that was stored is no owner, and nothing fails on it.
    let mut store = Store::empty();
    store.update(&web(json!({})), "foil-create");
    let value = store.value.as_mut().unwrap();
    value["metadata"]["managedFields"] = json!([{"manager": "a"},
        {"operation": "Update", "fieldsV1": {"x:y": {}, "k:{": {}, "i:1": {}}}]);
    store.apply(&web(json!({})), "foil", false).unwrap();
}

#[test]
fn changes_are_found_by_key() {
    let with =
        |containers: Value| json!({"spec": {"template": {"spec": {"containers": containers}}}});
    let rows = [
        (
            with(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}])),
            with(json!([{"name": "b", "image": "2"}, {"name": "a", "image": "1"}])),
            vec!["spec.template.spec.containers[name=\"b\"].image"],
            vec![],
        ),
        (
            with(json!([{"name": "a", "args": ["1"]}])),
            with(json!([{"name": "a", "args": ["2"]}, {"name": "c"}])),
            vec![
                "spec.template.spec.containers[name=\"a\"].args",
                "spec.template.spec.containers[name=\"c\"]",
                "spec.template.spec.containers[name=\"c\"].name",
            ],
            vec![],
        ),
        (
            json!({"metadata": {"labels": {"a": "1", "b": "1"}, "uid": "x"}, "spec": {"a": null}}),
            json!({"metadata": {"labels": {"a": "1"}, "uid": "y"}, "spec": {"a": null}}),
            vec![],
            vec!["metadata.labels.b"],
        ),
        (
            json!({"metadata": {"finalizers": ["a/b", "c/d"]}}),
            json!({"metadata": {"finalizers": ["c/d", "e/f"]}}),
            vec!["metadata.finalizers[=\"e/f\"]"],
            vec!["metadata.finalizers[=\"a/b\"]"],
        ),
        // From a map to a scalar and back.
        (
            json!({"spec": {"x": {"a": 1}}}),
            json!({"spec": {"x": 1}}),
            vec!["spec.x"],
            vec!["spec.x.a"],
        ),
    ];
    for (old, new, set, removed) in rows {
        let changes = compare(&old, &new);
        assert_eq!(changes.set.paths(), set, "{old} to {new}");
        assert_eq!(changes.removed.paths(), removed, "{old} to {new}");
        assert!(compare(&new, &new).is_empty());
    }
}
