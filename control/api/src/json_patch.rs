//! JSON Patch (RFC 6902), with Kubernetes' limits: a list of operations, done one after the
//! other, all or none. Called by `control-server` for Patch.

use json_patch::{CopyOperation, Patch, PatchOperation};
use serde_json::Value;

/// Operations of one patch at most (`maxJSONPatchOperations` of Kubernetes' apiserver).
const OPERATIONS: usize = 10_000;
/// Bytes that the copies of one patch may make together: a few operations could double an
/// object again and again (`jsonpatch.AccumulatedCopySizeLimit` of Kubernetes' apiserver).
const COPIED: usize = 3 << 20;

/// A patch that cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum JsonPatchError {
    /// It is no JSON Patch.
    #[error("not a JSON patch (RFC 6902): {0}")]
    Form(#[source] serde_json::Error),
    /// It is too long.
    #[error("the patch has {count} operations, {OPERATIONS} are allowed")]
    Long {
        /// Its operations.
        count: usize,
    },
    /// Its copies are too long.
    #[error("the copies of the patch make more than {COPIED} bytes")]
    Copied,
    /// An operation failed.
    #[error("operation {index} at {path:?}: {source}")]
    Operation {
        /// From 0.
        index: usize,
        /// Where, a JSON pointer (RFC 6901).
        path: String,
        /// Why.
        source: json_patch::PatchErrorKind,
    },
}

/// Applies the operations in place.
///
/// # Errors
/// [`JsonPatchError`]; the target is changed in part.
pub fn apply(target: &mut Value, operations: &Value) -> Result<(), JsonPatchError> {
    let count = operations.as_array().map_or(0, Vec::len);
    if count > OPERATIONS {
        return Err(JsonPatchError::Long { count });
    }
    let Patch(operations) =
        serde_json::from_value(operations.clone()).map_err(JsonPatchError::Form)?;
    let mut copied = 0;
    for (index, operation) in operations.iter().enumerate() {
        if let PatchOperation::Copy(CopyOperation { from, .. }) = operation {
            copied += target.pointer(from.as_str()).map_or(0, length);
            if copied > COPIED {
                return Err(JsonPatchError::Copied);
            }
        }
        let done = json_patch::patch(target, std::slice::from_ref(operation));
        done.map_err(|error| JsonPatchError::Operation {
            index,
            path: operation.path().to_string(),
            source: error.kind,
        })?;
    }
    Ok(())
}

/// Bytes of it as JSON.
fn length(value: &Value) -> usize {
    value.to_string().len()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operations_in_their_order() {
        let deployment = json!({"spec": {"replicas": 1, "containers": [{"image": "web:1"}]},
            "metadata": {"labels": {"a/b": "x"}}});
        let changed = |patch: Value| {
            let mut got = deployment.clone();
            apply(&mut got, &patch).map(|()| got)
        };
        let got = changed(json!([
            {"op": "test", "path": "/spec/containers/0/image", "value": "web:1"},
            {"op": "replace", "path": "/spec/containers/0/image", "value": "web:2"},
            {"op": "add", "path": "/spec/containers/-", "value": {"image": "side:1"}},
            {"op": "copy", "from": "/spec/containers/1", "path": "/spec/containers/0"},
            {"op": "move", "from": "/spec/replicas", "path": "/spec/wanted"},
            {"op": "remove", "path": "/metadata/labels/a~1b"},
        ]));
        let images = [{ "side:1" }, { "web:2" }, { "side:1" }].map(|image| json!({"image": image}));
        let expected = json!({"spec": {"wanted": 1, "containers": images},
            "metadata": {"labels": {}}});
        assert_eq!(got.unwrap(), expected);
        for (patch, error) in [
            (
                json!([{"op": "test", "path": "/spec/replicas", "value": 2}]),
                "operation 0 at \"/spec/replicas\": value did not match",
            ),
            (
                json!([
                    {"op": "remove", "path": "/spec/replicas"},
                    {"op": "remove", "path": "/spec/replicas"},
                ]),
                "operation 1 at \"/spec/replicas\": ",
            ),
            (
                json!([{"op": "increase", "path": "/spec"}]),
                "not a JSON patch",
            ),
            (json!([{"op": "add", "path": "spec"}]), "not a JSON patch"),
            (json!({"spec": {"replicas": 2}}), "not a JSON patch"),
        ] {
            let got = changed(patch).unwrap_err().to_string();
            assert!(got.contains(error), "{got}");
        }
    }

    #[test]
    fn a_short_patch_does_not_make_a_large_object() {
        let mut target = json!({"data": {"a": "x".repeat(1000)}});
        let double =
            |n: usize| json!({"op": "copy", "from": "/data", "path": format!("/data/{n}")});
        let patch: Vec<Value> = (0..64).map(double).collect();
        let error = apply(&mut target, &Value::Array(patch)).unwrap_err();
        assert!(matches!(error, JsonPatchError::Copied), "{error}");
        assert!(length(&target) < 2 * COPIED);
        let test = json!({"op": "test", "path": "", "value": null});
        let many = Value::Array(vec![test; OPERATIONS + 1]);
        let error = apply(&mut target, &many).unwrap_err();
        assert!(matches!(error, JsonPatchError::Long { .. }), "{error}");
    }
}
