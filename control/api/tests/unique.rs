//! Duplicate keys are refused with their path; everything else is read as it is.
#![cfg(test)]

use control_api::unique::from_json;
use proptest::prelude::*;
use serde_json::{Value, json};

#[test]
fn refuses_duplicate_keys() {
    let rows = [
        (r#"{"a":1,"b":[{"c":1,"c":2}]}"#, "b[0].c: duplicate field"),
        (r#"{"a":1,"a":1}"#, "a: duplicate field"),
        (r#"{"spec":{"x":{},"x":{}}}"#, "spec.x: duplicate field"),
        (r#"{"a":"#, "EOF"),
        ("", "EOF"),
        ("\u{1}", "expected value"),
    ];
    for (text, expected) in rows {
        let error = from_json(text.as_bytes()).unwrap_err();
        assert!(error.message.contains(expected), "{text}: {error}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC*".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("\\PC*", inner, 0..6).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #[test]
    fn reads_what_was_written(value in any_json()) {
        prop_assert_eq!(from_json(value.to_string().as_bytes()).unwrap(), value);
    }

    /// Whatever is sent as a pod is judged, never a panic.
    #[test]
    fn judges_anything(value in any_json(), path in 0_usize..5) {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "d"},
            "spec": {"containers": [{"name": "a", "image": "b"}]}});
        let at = ["/spec", "/spec/containers", "/spec/containers/0", "/metadata", "/metadata/name"][path];
        *pod.pointer_mut(at).unwrap() = value;
        if let Ok(kind) = control_api::find_for(&pod)
            && let Ok((stored, _)) = control_api::admit(&pod, kind, None) {
                prop_assert!(control_api::admit(&stored, kind, Some(&stored)).is_ok());
            }
    }
}
