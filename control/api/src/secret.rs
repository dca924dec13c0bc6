//! Secret: `stringData` merged into `data`, types with the keys they demand,
//! immutability. Not encryption at rest.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

use crate::admit;
use crate::configmap::SIZE_MAX;
use crate::invalid::{Causes, Field};
use crate::kind::{Kind, NameRule, Rules, Words};
use crate::name;

pub(crate) static KIND: Kind = admit::kind_of::<Secret>(Words {
    plural: "secrets",
    singular: "secret",
    short_names: &[],
    namespaced: true,
    has_status: false,
    pod_spec: "",
    name_rule: NameRule::Subdomain,
});

/// Type, and the keys of which all must be there.
const DEMANDED: &[(&str, &[&str])] = &[
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
];

impl Rules for Secret {
    fn set_defaults(&mut self) {
        if let Some(plain) = self.string_data.take() {
            let data = self.data.get_or_insert_default();
            data.extend(
                plain
                    .into_iter()
                    .map(|(k, v)| (k, ByteString(v.into_bytes()))),
            );
        }
        self.type_.get_or_insert_with(|| "Opaque".to_owned());
    }

    fn validate(&self, causes: &mut Causes) {
        let at = Field::root("data");
        let mut size = 0;
        for (key, value) in self.data.iter().flatten() {
            if let Err(detail) = name::config_key(key) {
                causes.invalid(&at.key(key), key, detail);
            }
            size += value.0.len();
        }
        if size > SIZE_MAX {
            causes.push(
                &at,
                format!("Too long: may not be more than {SIZE_MAX} bytes"),
            );
        }
        let kind = self.type_.as_deref().unwrap_or_default();
        let value = |key: &str| self.data.as_ref().and_then(|data| data.get(key));
        let demanded = DEMANDED.iter().find(|(name, _)| *name == kind);
        for key in demanded.map(|(_, keys)| *keys).unwrap_or_default() {
            let Some(value) = value(key) else {
                causes.required(&at.key(key), "");
                continue;
            };
            let json = key.starts_with(".docker");
            if json && !serde_json::from_slice::<Value>(&value.0).is_ok_and(|v| v.is_object()) {
                causes.invalid(
                    &at.key(key),
                    "<secret contents redacted>",
                    "must be a JSON object",
                );
            }
        }
        if kind == "kubernetes.io/basic-auth"
            && value("username").is_none()
            && value("password").is_none()
        {
            causes.required(&at.key("username"), "");
            causes.required(&at.key("password"), "");
        }
        if kind == "kubernetes.io/service-account-token" {
            causes.invalid(&Field::root("type"), kind, "not supported by Hydrofoil yet");
        }
    }

    fn validate_update(&self, old: &Self, causes: &mut Causes) {
        let kind = self.type_.as_deref().unwrap_or_default();
        if self.type_ != old.type_ {
            causes.invalid(&Field::root("type"), kind, "field is immutable");
        }
        if old.immutable == Some(true) {
            let set = "field is immutable when `immutable` is set";
            if self.immutable != Some(true) {
                causes.forbidden(&Field::root("immutable"), set);
            }
            if self.data != old.data {
                causes.forbidden(&Field::root("data"), set);
            }
        }
    }
}
