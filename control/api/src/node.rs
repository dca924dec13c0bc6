//! Node: rules. Not its life cycle (a controller), nor what it reports.

use k8s_openapi::api::core::v1::{Node, NodeSpec};
use serde_json::Value;

use crate::admit;
use crate::invalid::{Causes, Field};
use crate::kind::{Kind, NameRule, Rules, Words};
use crate::taint;

pub(crate) static KIND: Kind = admit::kind_of::<Node>(Words {
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    has_status: true,
    pod_spec: "",
    name_rule: NameRule::Subdomain,
});

impl Rules for Node {
    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        if let (None, Some(cidr)) = (&spec.pod_cidrs, &spec.pod_cidr) {
            spec.pod_cidrs = Some(vec![cidr.clone()]);
        }
        if let (None, Some(first)) = (
            &spec.pod_cidr,
            spec.pod_cidrs.as_ref().and_then(|all| all.first()),
        ) {
            spec.pod_cidr = Some(first.clone());
        }
    }

    fn validate(&self, causes: &mut Causes) {
        let Some(spec) = &self.spec else { return };
        let at = Field::root("spec").child("podCIDRs");
        for (i, cidr) in spec.pod_cidrs.iter().flatten().enumerate() {
            if cidr.parse::<ipnet::IpNet>().is_err() {
                let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                causes.invalid(&at.index(i), cidr, detail);
            }
        }
        let taints = spec.taints.as_deref().unwrap_or_default();
        taint::validate_taints(taints, &Field::root("spec").child("taints"), causes);
        let first = spec.pod_cidrs.as_ref().and_then(|all| all.first());
        if spec.pod_cidr.as_ref() != first {
            let detail = "node.PodCIDR may only match node.PodCIDRs[0]";
            causes.invalid(
                &Field::root("spec").child("podCIDR"),
                spec.pod_cidr.as_deref().unwrap_or_default(),
                detail,
            );
        }
    }

    fn validate_update(&self, old: &Self, causes: &mut Causes) {
        let none = NodeSpec::default();
        let (new, old) = (
            self.spec.as_ref().unwrap_or(&none),
            old.spec.as_ref().unwrap_or(&none),
        );
        if old.pod_cidrs.is_some() && new.pod_cidrs != old.pod_cidrs {
            let at = Field::root("spec").child("podCIDRs");
            causes.forbidden(
                &at,
                "node updates may not change podCIDR except from \"\" to valid",
            );
        }
    }

    fn initial_status(&self) -> Option<Value> {
        Some(Value::Object(serde_json::Map::new()))
    }
}
