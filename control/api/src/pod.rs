//! Pod: rules of the object as a whole, its first status, and what of a pod may
//! change. Not its PodSpec's fields (`podspec`).

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use serde_json::{Value, json};

use crate::admit;
use crate::invalid::{Causes, Field, Warning};
use crate::kind::{Kind, NameRule, Rules, Words};
use crate::podspec;

pub(crate) static KIND: Kind = admit::kind_of::<Pod>(Words {
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    namespaced: true,
    has_status: true,
    pod_spec: "spec",
    name_rule: NameRule::Subdomain,
});

/// Annotation: the pod's share of the new connections of its services, relative to that
/// of their other pods, from 1 to [`WEIGHT_MOST`].
pub const WEIGHT: &str = "hydrofoil.dev/weight";
/// See [`WEIGHT`].
pub const WEIGHT_MOST: u32 = 100;

fn validate_weight(pod: &Pod, causes: &mut Causes) {
    let annotations = pod.metadata.annotations.as_ref();
    let Some(text) = annotations.and_then(|a| a.get(WEIGHT)) else {
        return;
    };
    let at = Field::root("metadata").child("annotations").key(WEIGHT);
    let weight: Option<u32> = text.parse().ok();
    if weight.is_none_or(|weight| weight == 0 || weight > WEIGHT_MOST) {
        let detail = format!("must be between 1 and {WEIGHT_MOST}, inclusive");
        causes.invalid(&at, text, detail);
    }
}

impl Rules for Pod {
    fn prepare(&mut self, old: Option<&Self>) {
        // A manifest that is applied again does not name the node that was chosen.
        let chosen = old
            .and_then(|old| old.spec.as_ref())
            .and_then(|spec| spec.node_name.clone());
        if let Some(spec) = self.spec.as_mut()
            && spec.node_name.as_deref().unwrap_or_default().is_empty()
        {
            spec.node_name = chosen;
        }
    }

    fn set_defaults(&mut self) {
        if let Some(spec) = &mut self.spec {
            podspec::set_defaults(spec);
            podspec::set_pod_defaults(spec);
        }
    }

    fn validate(&self, causes: &mut Causes) {
        validate_weight(self, causes);
        let at = Field::root("spec");
        match &self.spec {
            Some(spec) => podspec::validate(spec, &at, causes),
            None => causes.required(&at.child("containers"), ""),
        }
    }

    fn validate_update(&self, old: &Self, causes: &mut Causes) {
        let (Some(new), Some(old)) = (&self.spec, &old.spec) else {
            return;
        };
        let at = Field::root("spec");
        let count = |spec: &PodSpec| {
            (
                spec.containers.len(),
                spec.init_containers.as_ref().map_or(0, Vec::len),
            )
        };
        if count(new) != count(old) {
            let detail = "pod updates may not add or remove containers";
            causes.forbidden(&at.child("containers"), detail);
            return;
        }
        let deadlines = (old.active_deadline_seconds, new.active_deadline_seconds);
        let wrong = match deadlines {
            (Some(old), Some(new)) if new > old => {
                Some("must be less than or equal to previous value")
            }
            (Some(_), None) => Some("must not update from a positive integer to nil value"),
            (Some(_) | None, Some(_)) | (None, None) => None,
        };
        if let Some(detail) = wrong {
            let at = at.child("activeDeadlineSeconds");
            match new.active_deadline_seconds {
                Some(seconds) => causes.invalid(&at, seconds, detail),
                None => causes.invalid(&at, format_args!("null"), detail),
            }
        }
        // What may change is made equal; then nothing else may differ.
        let mut copy = new.clone();
        equalise(&mut copy, old);
        let changed = differing(&copy, old);
        if !changed.is_empty() {
            causes.forbidden(
                &at,
                format!(
                    "pod updates may not change fields other than `spec.containers[*].image`,\
                 `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                 `spec.tolerations` (only additions to existing tolerations),\
                 `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
                 previously negative); changed: {}",
                    changed.join(", ")
                ),
            );
        }
    }

    fn warnings(&self, warnings: &mut Vec<Warning>) {
        if let Some(spec) = &self.spec {
            podspec::warnings(spec, &Field::root("spec"), warnings);
        }
    }

    fn initial_status(&self) -> Option<Value> {
        let qos = self
            .spec
            .as_ref()
            .map(podspec::qos_class)
            .unwrap_or("BestEffort");
        Some(json!({"phase": "Pending", "qosClass": qos}))
    }

    /// None when no node has the pod, or when it has come to its end by itself.
    fn grace_seconds(pod: &Value, asked: Option<i64>) -> i64 {
        let text = |at: &str| pod.pointer(at).and_then(Value::as_str).unwrap_or_default();
        let finished = matches!(text("/status/phase"), "Succeeded" | "Failed");
        if text("/spec/nodeName").is_empty() || finished {
            return 0;
        }
        let own = pod.pointer("/spec/terminationGracePeriodSeconds");
        let own = own.and_then(Value::as_i64);
        asked.or(own).unwrap_or_default().max(0)
    }
}

fn equalise(new: &mut PodSpec, old: &PodSpec) {
    let pairs = new.containers.iter_mut().zip(&old.containers);
    let init = new.init_containers.iter_mut().flatten();
    let pairs = pairs.chain(init.zip(old.init_containers.iter().flatten()));
    for (new, old) in pairs {
        new.image = old.image.clone();
    }
    new.active_deadline_seconds = old.active_deadline_seconds;
    let known = old.tolerations.as_deref().unwrap_or_default();
    let kept = new.tolerations.as_deref().unwrap_or_default();
    if known.iter().all(|toleration| kept.contains(toleration)) {
        new.tolerations = old.tolerations.clone();
    }
}

/// Names of the fields of the spec in which two specs differ.
fn differing(new: &PodSpec, old: &PodSpec) -> Vec<String> {
    let (Ok(new), Ok(old)) = (serde_json::to_value(new), serde_json::to_value(old)) else {
        return vec!["spec".to_owned()];
    };
    let mut names: Vec<&String> = [&new, &old]
        .into_iter()
        .filter_map(Value::as_object)
        .flat_map(|fields| fields.keys())
        .collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter(|name| !crate::equality::semantic(new.get(name.as_str()), old.get(name.as_str())))
        .map(|name| format!("spec.{name}"))
        .collect()
}
