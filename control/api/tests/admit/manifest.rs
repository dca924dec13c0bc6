//! Manifests that are right, and ways to change and judge them.

use control_api::{Invalid, admit, find_for};
use serde_json::{Value, json};

pub(crate) fn judge(object: &Value, old: Option<&Value>) -> Result<Value, Invalid> {
    let kind = find_for(object)?;
    admit(object, kind, old).map(|(value, _)| value)
}

pub(crate) fn admitted(object: &Value) -> Value {
    judge(object, None).unwrap_or_else(|error| panic!("{error}"))
}

/// "field: message" of each cause.
pub(crate) fn refused(object: &Value, old: Option<&Value>) -> Vec<String> {
    match judge(object, old) {
        Ok(_) => Vec::new(),
        Err(invalid) => invalid.causes.iter().map(ToString::to_string).collect(),
    }
}

/// Sets `path` ("spec.containers[0].image") to a value; null removes it.
pub(crate) fn with(object: &Value, path: &str, value: Value) -> Value {
    let mut object = object.clone();
    let pointer = format!("/{}", path.replace(['.', '['], "/").replace(']', ""));
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = object
        .pointer_mut(parent)
        .unwrap_or_else(|| panic!("no parent of {path}"));
    if let Value::Array(items) = parent {
        items[name.parse::<usize>().unwrap()] = value;
    } else if value.is_null() {
        parent.as_object_mut().unwrap().shift_remove(name);
    } else {
        parent[name] = value;
    }
    object
}

pub(crate) fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
        "spec": {
            "containers": [{
                "name": "main", "image": "nginx:1.27",
                "ports": [{"name": "http", "containerPort": 80}],
                "env": [{"name": "A", "value": "1"}],
                "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "200m", "memory": "64Mi"}},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "readinessProbe": {"httpGet": {"port": "http"}},
                "securityContext": {},
                "lifecycle": {"preStop": {"exec": {"command": ["true"]}}},
            }],
            "volumes": [{"name": "data", "configMap": {"name": "settings"}}],
            "securityContext": {},
        },
    })
}

pub(crate) fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{
                    "name": "main", "image": "nginx",
                    "resources": {"limits": {"cpu": "1"}},
                }]},
            },
        },
    })
}

pub(crate) fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    })
}

pub(crate) fn node() -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {
        "taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoExecute"}]}})
}
