//! Taints of nodes and tolerations of pods: rules. Not who may run where: the
//! scheduler decides. Called by `node` and `podspec`, the scheduler and `foil drain`.

use k8s_openapi::api::core::v1::{PodSpec, Taint, Toleration};

use crate::invalid::{Causes, Field};
use crate::name;

/// The node is cordoned.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "PreferNoSchedule"];

/// The taint of a cordoned node.
pub fn unschedulable() -> Taint {
    Taint {
        key: UNSCHEDULABLE.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    }
}

/// True when one of the pod's tolerations is for this taint.
pub fn tolerates(spec: &PodSpec, taint: &Taint) -> bool {
    toleration(spec, taint).is_some()
}

/// How long the pod tolerates the taint: `Some(None)` for ever.
pub fn toleration(spec: &PodSpec, taint: &Taint) -> Option<Option<i64>> {
    let mut found: Option<Option<i64>> = None;
    for t in spec.tolerations.iter().flatten() {
        let key = t.key.as_deref().unwrap_or("");
        let effect = t.effect.as_deref().unwrap_or("");
        let exists = t.operator.as_deref() == Some("Exists");
        let same_value = t.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or("");
        let applies = (effect.is_empty() || effect == taint.effect)
            && (key == taint.key || (key.is_empty() && exists))
            && (exists || same_value);
        if applies {
            found = Some(match (found, t.toleration_seconds) {
                (Some(Some(a)), Some(b)) => Some(a.min(b)),
                (Some(Some(a)), None) => Some(a),
                (_, seconds) => seconds,
            });
        }
    }
    found
}

pub(crate) fn validate_tolerations(all: &[Toleration], at: &Field, causes: &mut Causes) {
    for (i, t) in all.iter().enumerate() {
        let at = at.index(i);
        let key = t.key.as_deref().unwrap_or_default();
        let operator = t.operator.as_deref().unwrap_or_default();
        let effect = t.effect.as_deref().unwrap_or_default();
        let value = t.value.as_deref().unwrap_or_default();
        if !key.is_empty() {
            if let Err(detail) = name::qualified(key) {
                causes.invalid(&at.child("key"), key, detail);
            }
        } else if operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            causes.invalid(&at.child("operator"), operator, detail);
        }
        match operator {
            "" | "Equal" => {
                if let Err(detail) = name::label_value(value) {
                    causes.invalid(&at.child("value"), value, detail);
                }
            }
            "Exists" if !value.is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                causes.invalid(&at.child("operator"), value, detail);
            }
            "Exists" => {}
            other => causes.unsupported(&at.child("operator"), other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() && !EFFECTS.contains(&effect) {
            causes.unsupported(&at.child("effect"), effect, EFFECTS);
        }
        if t.toleration_seconds.is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            causes.invalid(&at.child("effect"), effect, detail);
        }
    }
}

pub(crate) fn validate_taints(all: &[Taint], at: &Field, causes: &mut Causes) {
    let mut seen = Vec::new();
    for (i, taint) in all.iter().enumerate() {
        let at = at.index(i);
        if let Err(detail) = name::qualified(&taint.key) {
            causes.invalid(&at.child("key"), &taint.key, detail);
        }
        let value = taint.value.as_deref().unwrap_or_default();
        if let Err(detail) = name::label_value(value) {
            causes.invalid(&at.child("value"), value, detail);
        }
        if !EFFECTS.contains(&taint.effect.as_str()) {
            causes.unsupported(&at.child("effect"), &taint.effect, EFFECTS);
        }
        if seen.contains(&(&taint.key, &taint.effect)) {
            causes.duplicate(&at, format!("{}:{}", taint.key, taint.effect));
        }
        seen.push((&taint.key, &taint.effect));
    }
}
