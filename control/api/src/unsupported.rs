//! What Kubernetes has and Hydrofoil does not have yet, by field path: one table,
//! which admission reads and against which the README's table is checked. A
//! field that is missing from here and from the rules is one that works.

use serde_json::Value;

use crate::invalid::{Causes, Field, Warning};
use crate::kind::Kind;

/// What happens when the field is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The object is refused.
    Refuse,
    /// The object is taken, and the user told that the field has no effect.
    Warn,
}

/// One field, or one kind of value in a field, that is not supported.
#[derive(Debug, Clone, Copy)]
pub struct Unsupported {
    /// Kind, or "PodSpec" for every kind that has one.
    pub kind: &'static str,
    /// From the object's (or PodSpec's) root; `[*]` for each element of a list.
    pub path: &'static str,
    /// Values that are fine: what the default means anyway.
    pub except: &'static [&'static str],
    pub effect: Effect,
}

const fn refuse(
    kind: &'static str,
    path: &'static str,
    except: &'static [&'static str],
) -> Unsupported {
    Unsupported {
        kind,
        path,
        except,
        effect: Effect::Refuse,
    }
}
const fn warn(
    kind: &'static str,
    path: &'static str,
    except: &'static [&'static str],
) -> Unsupported {
    Unsupported {
        kind,
        path,
        except,
        effect: Effect::Warn,
    }
}

/// The table.
pub const UNSUPPORTED: &[Unsupported] = &[
    refuse("PodSpec", "affinity", &[]),
    refuse("PodSpec", "topologySpreadConstraints", &[]),
    refuse("PodSpec", "priorityClassName", &[]),
    refuse("PodSpec", "priority", &["0"]),
    refuse("PodSpec", "preemptionPolicy", &["PreemptLowerPriority"]),
    refuse("PodSpec", "schedulerName", &["default-scheduler"]),
    refuse("PodSpec", "schedulingGates", &[]),
    refuse("PodSpec", "runtimeClassName", &[]),
    refuse("PodSpec", "overhead", &[]),
    refuse("PodSpec", "resourceClaims", &[]),
    refuse("PodSpec", "resources", &[]),
    refuse("PodSpec", "ephemeralContainers", &[]),
    refuse("PodSpec", "readinessGates", &[]),
    refuse("PodSpec", "shareProcessNamespace", &["false"]),
    refuse("PodSpec", "hostUsers", &["true"]),
    refuse("PodSpec", "os.name", &["linux"]),
    refuse("PodSpec", "serviceAccountName", &["", "default"]),
    refuse("PodSpec", "serviceAccount", &["", "default"]),
    warn("PodSpec", "automountServiceAccountToken", &["false"]),
    refuse("PodSpec", "securityContext.seLinuxOptions", &[]),
    refuse("PodSpec", "securityContext.seLinuxChangePolicy", &[]),
    refuse("PodSpec", "securityContext.windowsOptions", &[]),
    refuse(
        "PodSpec",
        "securityContext.appArmorProfile.type",
        &["Unconfined"],
    ),
    refuse(
        "PodSpec",
        "securityContext.supplementalGroupsPolicy",
        &["Merge", "Strict"],
    ),
    warn(
        "PodSpec",
        "securityContext.fsGroupChangePolicy",
        &["Always"],
    ),
    refuse(
        "PodSpec",
        "securityContext.seccompProfile.type",
        &["RuntimeDefault", "Unconfined"],
    ),
    warn(
        "PodSpec",
        "containers[*].ports[*].protocol",
        &["TCP", "UDP"],
    ),
    warn("PodSpec", "containers[*].stdinOnce", &["false"]),
    refuse("PodSpec", "containers[*].volumeDevices", &[]),
    refuse(
        "PodSpec",
        "containers[*].volumeMounts[*].recursiveReadOnly",
        &["Disabled"],
    ),
    refuse("PodSpec", "containers[*].resources.claims", &[]),
    warn(
        "PodSpec",
        "containers[*].resources.requests.ephemeral-storage",
        &[],
    ),
    warn(
        "PodSpec",
        "containers[*].resources.limits.ephemeral-storage",
        &[],
    ),
    warn("PodSpec", "containers[*].resizePolicy", &[]),
    refuse("PodSpec", "containers[*].lifecycle.stopSignal", &[]),
    refuse(
        "PodSpec",
        "containers[*].securityContext.seLinuxOptions",
        &[],
    ),
    refuse(
        "PodSpec",
        "containers[*].securityContext.windowsOptions",
        &[],
    ),
    refuse(
        "PodSpec",
        "containers[*].securityContext.appArmorProfile.type",
        &["Unconfined"],
    ),
    refuse(
        "PodSpec",
        "containers[*].securityContext.procMount",
        &["Default"],
    ),
    refuse(
        "PodSpec",
        "containers[*].securityContext.seccompProfile.type",
        &["RuntimeDefault", "Unconfined"],
    ),
    refuse("PodSpec", "volumes[*].persistentVolumeClaim", &[]),
    refuse("PodSpec", "volumes[*].ephemeral", &[]),
    refuse("PodSpec", "volumes[*].csi", &[]),
    refuse("PodSpec", "volumes[*].image", &[]),
    refuse("PodSpec", "volumes[*].nfs", &[]),
    refuse("PodSpec", "volumes[*].iscsi", &[]),
    refuse("PodSpec", "volumes[*].fc", &[]),
    refuse("PodSpec", "volumes[*].cephfs", &[]),
    refuse("PodSpec", "volumes[*].rbd", &[]),
    refuse("PodSpec", "volumes[*].glusterfs", &[]),
    refuse("PodSpec", "volumes[*].gitRepo", &[]),
    refuse("PodSpec", "volumes[*].flexVolume", &[]),
    refuse("PodSpec", "volumes[*].flocker", &[]),
    refuse("PodSpec", "volumes[*].cinder", &[]),
    refuse("PodSpec", "volumes[*].quobyte", &[]),
    refuse("PodSpec", "volumes[*].scaleIO", &[]),
    refuse("PodSpec", "volumes[*].storageos", &[]),
    refuse("PodSpec", "volumes[*].portworxVolume", &[]),
    refuse("PodSpec", "volumes[*].photonPersistentDisk", &[]),
    refuse("PodSpec", "volumes[*].vsphereVolume", &[]),
    refuse("PodSpec", "volumes[*].azureDisk", &[]),
    refuse("PodSpec", "volumes[*].azureFile", &[]),
    refuse("PodSpec", "volumes[*].awsElasticBlockStore", &[]),
    refuse("PodSpec", "volumes[*].gcePersistentDisk", &[]),
    refuse(
        "PodSpec",
        "volumes[*].projected.sources[*].serviceAccountToken",
        &[],
    ),
    refuse(
        "PodSpec",
        "volumes[*].projected.sources[*].clusterTrustBundle",
        &[],
    ),
    refuse(
        "Service",
        "spec.ipFamilyPolicy",
        &["SingleStack", "PreferDualStack"],
    ),
    refuse("Service", "spec.ipFamilies[*]", &["IPv4"]),
    refuse("Service", "spec.ports[*].protocol", &["TCP", "UDP"]),
    refuse("Node", "spec.configSource", &[]),
];

/// Reports each field of `object` that is in the table.
pub(crate) fn check(kind: &Kind, object: &Value, causes: &mut Causes, warnings: &mut Vec<Warning>) {
    let pod_spec = (!kind.pod_spec.is_empty())
        .then(|| at(object, kind.pod_spec))
        .flatten();
    for entry in UNSUPPORTED {
        let (root, prefix) = match entry.kind {
            "PodSpec" => (pod_spec, kind.pod_spec),
            own if own == kind.kind => (Some(object), ""),
            _other => continue,
        };
        let Some(root) = root else { continue };
        let start = if prefix.is_empty() {
            Field::root("")
        } else {
            Field::root(prefix)
        };
        for path in paths(entry) {
            let steps: Vec<&str> = path.split('.').collect();
            walk(root, &steps, &start, &mut |field, value| {
                report(entry, field, value, causes, warnings);
            });
        }
    }
}

/// What is said of containers holds for init containers too.
fn paths(entry: &Unsupported) -> Vec<String> {
    let own = entry.path.to_owned();
    match entry.path.strip_prefix("containers") {
        Some(rest) => vec![own, format!("initContainers{rest}")],
        None => vec![own],
    }
}

fn report(
    entry: &Unsupported,
    field: &Field,
    value: &Value,
    causes: &mut Causes,
    warnings: &mut Vec<Warning>,
) {
    let shown = match value {
        Value::Null => return,
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(items) if items.is_empty() => return,
        Value::Object(fields) if fields.is_empty() && entry.except.is_empty() => String::new(),
        Value::Array(_) | Value::Object(_) => String::new(),
    };
    let scalar = !matches!(value, Value::Array(_) | Value::Object(_));
    if scalar && entry.except.contains(&shown.as_str()) {
        return;
    }
    // With exceptions, it is the value that is not supported, not the field.
    let value = if scalar && !entry.except.is_empty() {
        format!("{shown:?} is ")
    } else {
        String::new()
    };
    match entry.effect {
        Effect::Refuse => {
            causes.push(field, format!("{value}not supported by Hydrofoil yet"));
        }
        Effect::Warn => warnings.push(Warning {
            field: field.to_string(),
            message: format!("{value}not supported by Hydrofoil yet, has no effect"),
        }),
    }
}

fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(object, |at, step| at.get(step))
}

fn walk(value: &Value, steps: &[&str], at: &Field, found: &mut dyn FnMut(&Field, &Value)) {
    let Some((step, rest)) = steps.split_first() else {
        found(at, value);
        return;
    };
    match step.strip_suffix("[*]") {
        None => {
            if let Some(value) = value.get(*step) {
                walk(value, rest, &at.child(step), found);
            }
        }
        Some(list) => {
            let items = value.get(list).and_then(Value::as_array);
            for (i, item) in items.into_iter().flatten().enumerate() {
                walk(item, rest, &at.child(list).index(i), found);
            }
        }
    }
}
