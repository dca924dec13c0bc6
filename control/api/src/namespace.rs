//! Namespace: its finalizer and phase. Not the emptying of a namespace that is
//! deleted: a controller does that, and then removes the finalizer.

use k8s_openapi::api::core::v1::{Namespace, NamespaceSpec};
use serde_json::{Value, json};

use crate::admit;
use crate::invalid::{Causes, Field};
use crate::kind::{Kind, NameRule, Rules, Words};
use crate::name;

pub(crate) static KIND: Kind = admit::kind_of::<Namespace>(Words {
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    namespaced: false,
    has_status: true,
    pod_spec: "",
    name_rule: NameRule::Label,
});

/// Where an object goes that names no namespace.
pub const DEFAULT: &str = "default";
/// Namespaces that are always there.
pub const BUILTIN: &[&str] = &[DEFAULT, "kube-system"];
/// In `spec.finalizers` until the namespace is empty.
pub const FINALIZER: &str = "kubernetes";
/// Each namespace carries its name in this label.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

impl Rules for Namespace {
    fn prepare(&mut self, old: Option<&Self>) {
        // Only the controller that empties a namespace removes its finalizer.
        let kept = old
            .and_then(|old| old.spec.clone())
            .and_then(|spec| spec.finalizers);
        let finalizers = match old {
            Some(_) => kept,
            None => Some(vec![FINALIZER.to_owned()]),
        };
        self.spec = Some(NamespaceSpec { finalizers });
    }

    fn set_defaults(&mut self) {
        if let Some(name) = self.metadata.name.clone() {
            let labels = self.metadata.labels.get_or_insert_default();
            labels.insert(NAME_LABEL.to_owned(), name);
        }
    }

    fn validate(&self, causes: &mut Causes) {
        let finalizers = self
            .spec
            .iter()
            .flat_map(|spec| spec.finalizers.iter().flatten());
        for (i, finalizer) in finalizers.enumerate() {
            if let Err(detail) = name::qualified(finalizer) {
                causes.invalid(
                    &Field::root("spec").child("finalizers").index(i),
                    finalizer,
                    detail,
                );
            }
        }
    }

    fn initial_status(&self) -> Option<Value> {
        Some(json!({"phase": "Active"}))
    }

    fn terminate(namespace: &mut Value) -> bool {
        if let Some(fields) = namespace.as_object_mut() {
            let status = fields.entry("status").or_insert_with(|| json!({}));
            status["phase"] = json!("Terminating");
        }
        true
    }
}
