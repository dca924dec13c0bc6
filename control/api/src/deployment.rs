//! Deployment: defaults and rules. Not the controller.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use crate::admit;
use crate::invalid::{Causes, Field, Warning};
use crate::kind::{Kind, NameRule, Rules, Words};
use crate::replicaset::{
    immutable_selector, not_negative, set_template_defaults, template_warnings, validate_selector,
    validate_template,
};

pub(crate) static KIND: Kind = admit::kind_of::<Deployment>(Words {
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    namespaced: true,
    has_status: true,
    pod_spec: "spec.template.spec",
    name_rule: NameRule::Subdomain,
});

impl Rules for Deployment {
    const SCALABLE: bool = true;

    fn prepare(&mut self, old: Option<&Self>) {
        // Who changes to Recreate did not write the numbers that were filled in.
        let was = old
            .and_then(|old| old.spec.as_ref())
            .and_then(|spec| spec.strategy.as_ref());
        let strategy = self.spec.as_mut().and_then(|spec| spec.strategy.as_mut());
        let (Some(was), Some(strategy)) = (was, strategy) else {
            return;
        };
        let changed = strategy.type_.as_deref() == Some("Recreate") && strategy.type_ != was.type_;
        if changed && strategy.rolling_update == was.rolling_update {
            strategy.rolling_update = None;
        }
    }

    fn set_defaults(&mut self) {
        let Some(spec) = &mut self.spec else { return };
        spec.replicas.get_or_insert(1);
        spec.revision_history_limit.get_or_insert(10);
        spec.progress_deadline_seconds.get_or_insert(600);
        let strategy = spec.strategy.get_or_insert_default();
        let kind = strategy
            .type_
            .get_or_insert_with(|| "RollingUpdate".to_owned());
        if kind == "RollingUpdate" {
            let rolling = strategy.rolling_update.get_or_insert_default();
            let quarter = || IntOrString::String("25%".to_owned());
            rolling.max_surge.get_or_insert_with(quarter);
            rolling.max_unavailable.get_or_insert_with(quarter);
        }
        set_template_defaults(&mut spec.template);
    }

    fn validate(&self, causes: &mut Causes) {
        let at = Field::root("spec");
        let Some(spec) = &self.spec else {
            causes.required(&at, "");
            return;
        };
        not_negative(spec.replicas, &at.child("replicas"), causes);
        not_negative(spec.min_ready_seconds, &at.child("minReadySeconds"), causes);
        not_negative(
            spec.revision_history_limit,
            &at.child("revisionHistoryLimit"),
            causes,
        );
        let deadline = spec.progress_deadline_seconds;
        not_negative(deadline, &at.child("progressDeadlineSeconds"), causes);
        if deadline.is_some_and(|deadline| deadline <= spec.min_ready_seconds.unwrap_or(0)) {
            let at = at.child("progressDeadlineSeconds");
            causes.invalid(
                &at,
                deadline.unwrap_or_default(),
                "must be greater than minReadySeconds",
            );
        }
        validate_selector(&spec.selector, &at.child("selector"), causes);
        if let Some(strategy) = &spec.strategy {
            validate_strategy(strategy, &at.child("strategy"), causes);
        }
        validate_template(&spec.template, &spec.selector, &at, causes);
    }

    fn validate_update(&self, old: &Self, causes: &mut Causes) {
        let selector = |d: &Self| d.spec.as_ref().map(|spec| spec.selector.clone());
        if selector(self) != selector(old) {
            immutable_selector(selector(self), causes);
        }
    }

    fn warnings(&self, warnings: &mut Vec<Warning>) {
        template_warnings(self.spec.as_ref().map(|spec| &spec.template), warnings);
    }

    fn initial_status(&self) -> Option<Value> {
        Some(json!({}))
    }
}

fn validate_strategy(strategy: &DeploymentStrategy, at: &Field, causes: &mut Causes) {
    match strategy.type_.as_deref().unwrap_or_default() {
        "Recreate" => {
            if strategy.rolling_update.is_some() {
                let detail = "may not be specified when strategy `type` is 'Recreate'";
                causes.forbidden(&at.child("rollingUpdate"), detail);
            }
        }
        "RollingUpdate" => {
            if let Some(rolling) = &strategy.rolling_update {
                validate_rolling(rolling, &at.child("rollingUpdate"), causes);
            }
        }
        other => causes.unsupported(&at.child("type"), other, &["Recreate", "RollingUpdate"]),
    }
}

fn validate_rolling(rolling: &RollingUpdateDeployment, at: &Field, causes: &mut Causes) {
    let mut zero = 0;
    for (field, value, limit) in [
        ("maxUnavailable", &rolling.max_unavailable, Some(100)),
        ("maxSurge", &rolling.max_surge, None),
    ] {
        let at = at.child(field);
        let number = match value {
            None => continue,
            Some(IntOrString::Int(number)) => *number,
            Some(IntOrString::String(text)) => {
                let percent = text
                    .strip_suffix('%')
                    .and_then(|digits| digits.parse::<i32>().ok());
                let Some(percent) = percent else {
                    let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
                    causes.invalid(&at, text, detail);
                    continue;
                };
                if limit.is_some_and(|limit| percent > limit) {
                    causes.invalid(&at, text, "must not be greater than 100%");
                }
                percent
            }
        };
        if number < 0 {
            causes.invalid(&at, number, "must be greater than or equal to 0");
        }
        zero += i32::from(number == 0);
    }
    if zero == 2 {
        causes.invalid(
            &at.child("maxUnavailable"),
            0,
            "may not be 0 when `maxSurge` is 0",
        );
    }
}

/// `maxSurge` or `maxUnavailable` in pods: a percentage of `replicas`, rounded
/// up or down. What does not parse is 0 (it was refused).
pub fn scaled(value: &IntOrString, replicas: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let digits = text.strip_suffix('%').unwrap_or_default();
            let percent: i64 = digits.parse().unwrap_or_default();
            let product = percent * i64::from(replicas);
            let pods = product / 100 + i64::from(round_up && product % 100 != 0);
            i32::try_from(pods).unwrap_or(i32::MAX)
        }
    }
}
