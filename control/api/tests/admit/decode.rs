//! Unknown fields, wrong types, and the names of kinds.

use control_api::{find_for, kinds};
use serde_json::json;

use crate::manifest::{pod, refused, with};

#[test]
fn decodes_strictly() {
    let rows = [
        (
            "spec.containers[0].imagee",
            json!("x"),
            "spec.containers[0].imagee: unknown field (did you mean \"image\"?), expected one of args, command, env",
        ),
        (
            "replicas",
            json!(3),
            "replicas: unknown field, expected one of apiVersion, kind, metadata, spec, status",
        ),
        (
            "metadata.label",
            json!({}),
            "metadata.label: unknown field (did you mean \"labels\"?)",
        ),
        (
            "spec.containers[0].ports[0].containerPort",
            json!("80"),
            "spec.containers[0].ports[0].containerPort: expected an integer, got string \"80\"",
        ),
        (
            "spec.containers[0].ports[0].containerPort",
            json!(99_999_999_999_i64),
            "spec.containers[0].ports[0].containerPort: invalid value: integer `99999999999`, expected i32",
        ),
        (
            "spec.containers[0].env[0].value",
            json!(1),
            "spec.containers[0].env[0].value: expected a string, got number 1",
        ),
        (
            "spec.hostNetwork",
            json!("yes"),
            "spec.hostNetwork: expected a boolean, got string \"yes\"",
        ),
        (
            "spec.containers",
            json!({}),
            "spec.containers: expected a list, got an object",
        ),
        (
            "spec.volumes[0]",
            json!([]),
            "spec.volumes[0]: expected an object, got a list",
        ),
        (
            "metadata.labels",
            json!({"a": 1}),
            "metadata.labels[a]: expected a string, got number 1",
        ),
        (
            "spec.containers[0].resources.limits",
            json!({"cpu": {}}),
            "spec.containers[0].resources.limits[cpu]: ",
        ),
        (
            "metadata.creationTimestamp",
            json!("yesterday"),
            "metadata.creationTimestamp: ",
        ),
    ];
    for (path, value, expected) in rows {
        let got = refused(&with(&pod(), path, value), None);
        assert!(
            got.iter().any(|cause| cause.starts_with(expected)),
            "{path}: {got:?}"
        );
    }
    let several = with(&with(&pod(), "a", json!(1)), "spec.b", json!(2));
    assert_eq!(
        refused(&several, None).len(),
        2,
        "all unknown fields are named at once"
    );
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "not base64!"}});
    assert!(refused(&secret, None)[0].starts_with("data[a]: "));
}

#[test]
fn names_kinds_that_there_are_not() {
    let rows = [
        (
            json!({"apiVersion": "batch/v1", "kind": "Job"}),
            "kind: batch/v1 Job is not supported by Hydrofoil yet",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Deployment"}),
            "apiVersion: Unsupported value: \"v1\": supported values: \"apps/v1\"",
        ),
        (json!({"kind": "Pod"}), "apiVersion: Required value"),
        (json!({"apiVersion": "v1"}), "kind: Required value"),
        (json!([]), "must be an object"),
    ];
    for (object, expected) in rows {
        let error = find_for(&object).unwrap_err();
        assert_eq!(error.causes[0].to_string(), expected, "{object}");
    }
}

#[test]
fn finds_kinds_by_the_words_of_people() {
    let rows = [
        ("po", Some("Pod")),
        ("pods", Some("Pod")),
        ("Pod", Some("Pod")),
        ("deploy", Some("Deployment")),
        ("deployments.apps", Some("Deployment")),
        ("deployments.v1.apps", Some("Deployment")),
        ("deployments.batch", None),
        ("svc", Some("Service")),
        ("endpointslice", Some("EndpointSlice")),
        ("ns", Some("Namespace")),
        ("rs", Some("ReplicaSet")),
        ("cm", Some("ConfigMap")),
        ("jobs", None),
    ];
    for (word, expected) in rows {
        assert_eq!(
            control_api::by_word(word).map(|kind| kind.kind),
            expected,
            "{word}"
        );
    }
}

#[test]
fn kinds_have_words_and_keys_of_their_own() {
    let mut words: Vec<&str> = Vec::new();
    let mut prefixes = Vec::new();
    for kind in kinds() {
        words.extend([kind.plural, kind.singular]);
        words.extend(kind.short_names);
        prefixes.push(kind.prefix(None));
        assert!(kind.key("ns", "x").starts_with(&kind.prefix(Some("ns"))));
    }
    let count = words.len();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), count);
    prefixes.sort();
    prefixes.dedup();
    assert_eq!(prefixes.len(), kinds().len());
}
