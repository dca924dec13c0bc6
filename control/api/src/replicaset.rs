//! ReplicaSet: defaults and rules, and those of pod templates, which Deployments
//! share. Not the controller.

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde_json::{Value, json};

use crate::admit;
use crate::invalid::{Causes, Field, Warning};
use crate::kind::{Kind, NameRule, Rules, Words};
use crate::selector::{self, Selector};
use crate::{meta, podspec};

pub(crate) static KIND: Kind = admit::kind_of::<ReplicaSet>(Words {
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    namespaced: true,
    has_status: true,
    pod_spec: "spec.template.spec",
    name_rule: NameRule::Subdomain,
});

impl Rules for ReplicaSet {
    const SCALABLE: bool = true;

    fn set_defaults(&mut self) {
        let Some(spec) = &mut self.spec else { return };
        spec.replicas.get_or_insert(1);
        if let Some(template) = &mut spec.template {
            set_template_defaults(template);
        }
    }

    fn validate(&self, causes: &mut Causes) {
        let at = Field::root("spec");
        let Some(spec) = &self.spec else {
            causes.required(&at, "");
            return;
        };
        not_negative(spec.replicas, &at.child("replicas"), causes);
        not_negative(spec.min_ready_seconds, &at.child("minReadySeconds"), causes);
        validate_selector(&spec.selector, &at.child("selector"), causes);
        match &spec.template {
            Some(template) => validate_template(template, &spec.selector, &at, causes),
            None => causes.required(&at.child("template"), ""),
        }
    }

    fn validate_update(&self, old: &Self, causes: &mut Causes) {
        let selector = |rs: &Self| rs.spec.as_ref().map(|spec| spec.selector.clone());
        if selector(self) != selector(old) {
            immutable_selector(selector(self), causes);
        }
    }

    fn warnings(&self, warnings: &mut Vec<Warning>) {
        let template = self.spec.as_ref().and_then(|spec| spec.template.as_ref());
        template_warnings(template, warnings);
    }

    fn initial_status(&self) -> Option<Value> {
        Some(json!({"replicas": 0}))
    }
}

pub(crate) fn set_template_defaults(template: &mut PodTemplateSpec) {
    if let Some(spec) = &mut template.spec {
        podspec::set_defaults(spec);
    }
}

pub(crate) fn not_negative(value: Option<i32>, at: &Field, causes: &mut Causes) {
    if let Some(value) = value.filter(|value| *value < 0) {
        causes.invalid(at, value, "must be greater than or equal to 0");
    }
}

pub(crate) fn validate_selector(selector: &LabelSelector, at: &Field, causes: &mut Causes) {
    let labels = selector
        .match_labels
        .as_ref()
        .is_none_or(|labels| labels.is_empty());
    let expressions = selector
        .match_expressions
        .as_ref()
        .is_none_or(|all| all.is_empty());
    if labels && expressions {
        causes.required(at, "empty selector is invalid for a workload");
        return;
    }
    selector::validate(selector, at, causes);
}

/// A template for pods that live on: `at` is the `spec` that holds it.
pub(crate) fn validate_template(
    template: &PodTemplateSpec,
    selector: &LabelSelector,
    at: &Field,
    causes: &mut Causes,
) {
    let at = at.child("template");
    let none = ObjectMeta::default();
    let metadata = template.metadata.as_ref().unwrap_or(&none);
    let labels = metadata.labels.clone().unwrap_or_default();
    let selector = Selector::from_label_selector(selector);
    if !selector.is_empty() && !selector.matches(&labels) {
        let at = at.child("metadata.labels");
        causes.invalid(&at, labels, "`selector` does not match template `labels`");
    }
    meta::validate_labels(
        metadata.labels.as_ref(),
        &at.child("metadata.labels"),
        causes,
    );
    meta::validate_annotations(metadata, &at.child("metadata.annotations"), causes);
    let Some(spec) = &template.spec else {
        causes.required(&at.child("spec"), "");
        return;
    };
    let at = at.child("spec");
    podspec::validate(spec, &at, causes);
    let policy = spec.restart_policy.as_deref().unwrap_or_default();
    if matches!(policy, "OnFailure" | "Never") {
        causes.unsupported(&at.child("restartPolicy"), policy, &["Always"]);
    }
    if spec.active_deadline_seconds.is_some() {
        let detail = "activeDeadlineSeconds in ReplicaSet is not Supported";
        causes.forbidden(&at.child("activeDeadlineSeconds"), detail);
    }
}

pub(crate) fn template_warnings(template: Option<&PodTemplateSpec>, warnings: &mut Vec<Warning>) {
    if let Some(spec) = template.and_then(|template| template.spec.as_ref()) {
        podspec::warnings(spec, &Field::root("spec").child("template.spec"), warnings);
    }
}

pub(crate) fn immutable_selector(selector: Option<LabelSelector>, causes: &mut Causes) {
    let shown = selector.map(|s| Selector::from_label_selector(&s).to_string());
    let at = Field::root("spec").child("selector");
    causes.invalid(&at, shown.unwrap_or_default(), "field is immutable");
}
