//! ConfigMap: rules. Not how it reaches a pod: see `proto`'s convert.

use k8s_openapi::api::core::v1::ConfigMap;

use crate::admit;
use crate::invalid::{Causes, Field};
use crate::kind::{Kind, NameRule, Rules, Words};
use crate::name;

pub(crate) static KIND: Kind = admit::kind_of::<ConfigMap>(Words {
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    namespaced: true,
    has_status: false,
    pod_spec: "",
    name_rule: NameRule::Subdomain,
});

/// Largest ConfigMap or Secret, in bytes of data.
pub(crate) const SIZE_MAX: usize = 1024 * 1024;

impl Rules for ConfigMap {
    fn validate(&self, causes: &mut Causes) {
        let mut size = 0;
        for (key, value) in self.data.iter().flatten() {
            let at = Field::root("data").key(key);
            if let Err(detail) = name::config_key(key) {
                causes.invalid(&at, key, detail);
            }
            if self
                .binary_data
                .as_ref()
                .is_some_and(|binary| binary.contains_key(key))
            {
                causes.invalid(&at, key, "duplicate of key present in binaryData");
            }
            size += value.len();
        }
        for (key, value) in self.binary_data.iter().flatten() {
            if let Err(detail) = name::config_key(key) {
                causes.invalid(&Field::root("binaryData").key(key), key, detail);
            }
            size += value.0.len();
        }
        if size > SIZE_MAX {
            causes.push(
                &Field::root("data"),
                format!("Too long: may not be more than {SIZE_MAX} bytes"),
            );
        }
    }

    fn validate_update(&self, old: &Self, causes: &mut Causes) {
        if old.immutable != Some(true) {
            return;
        }
        let set = "field is immutable when `immutable` is set";
        if self.immutable != Some(true) {
            causes.forbidden(&Field::root("immutable"), set);
        }
        if self.data != old.data {
            causes.forbidden(&Field::root("data"), set);
        }
        if self.binary_data != old.binary_data {
            causes.forbidden(&Field::root("binaryData"), set);
        }
    }
}
