//! Event: rules. Not how events are counted and expire: the server does that.

use k8s_openapi::api::core::v1::Event;

use crate::admit;
use crate::invalid::{Causes, Field};
use crate::kind::{Kind, NameRule, Rules, Words};
use crate::namespace;

pub(crate) static KIND: Kind = admit::kind_of::<Event>(Words {
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    namespaced: true,
    has_status: false,
    pod_spec: "",
    name_rule: NameRule::Subdomain,
});

impl Rules for Event {
    fn validate(&self, causes: &mut Causes) {
        let own = self.metadata.namespace.as_deref().unwrap_or_default();
        let about = self
            .involved_object
            .namespace
            .as_deref()
            .unwrap_or_default();
        // What has no namespace is reported in "default".
        let fits = about == own || (about.is_empty() && own == namespace::DEFAULT);
        if !fits {
            let at = Field::root("involvedObject").child("namespace");
            causes.invalid(&at, about, "does not match event.namespace");
        }
        let kind = self.type_.as_deref().unwrap_or_default();
        if !matches!(kind, "" | "Normal" | "Warning") {
            causes.unsupported(&Field::root("type"), kind, &["Normal", "Warning"]);
        }
    }
}
