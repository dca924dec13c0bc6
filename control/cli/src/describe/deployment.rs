//! Deployments: how far the rollout is, by which ReplicaSets.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod;
use super::text::{Text, time};
use super::{Describer, Related, typed, typed_all};
use crate::client::Selection;
use crate::printer::{self, NONE};

/// Numbers the rollouts, on the Deployment and on its ReplicaSets.
const REVISION: &str = "deployment.kubernetes.io/revision";

pub(crate) const DESCRIBER: Describer = Describer {
    related: Some(Related {
        word: "replicasets",
        selection: |deployment| Selection {
            namespace: control_api::meta::namespace(deployment).to_owned(),
            ..Selection::default()
        },
    }),
    text: |text, object, related, _| {
        let mut sets: Vec<ReplicaSet> = typed_all(related)?;
        let uid = control_api::meta::uid(object);
        sets.retain(|set| {
            let mut owners = set.metadata.owner_references.iter().flatten();
            owners.any(|owner| owner.uid == uid)
        });
        describe(text, &typed(object)?, &sets);
        Ok(())
    },
};

fn describe(text: &mut Text, deployment: &Deployment, sets: &[ReplicaSet]) {
    let spec = deployment.spec.clone().unwrap_or_default();
    let status = deployment.status.clone().unwrap_or_default();
    pod::heading(text, &deployment.metadata);
    text.pair(
        0,
        "CreationTimestamp",
        time(deployment.metadata.creation_timestamp.as_ref()),
    );
    text.pair(0, "Selector", printer::selector(&spec.selector));
    text.pair(
        0,
        "Replicas",
        format!(
            "{} desired | {} updated | {} total | {} available | {} unavailable",
            spec.replicas.unwrap_or(1),
            status.updated_replicas.unwrap_or(0),
            status.replicas.unwrap_or(0),
            status.available_replicas.unwrap_or(0),
            status.unavailable_replicas.unwrap_or(0)
        ),
    );
    let strategy = spec.strategy.clone().unwrap_or_default();
    text.pair(
        0,
        "StrategyType",
        strategy.type_.as_deref().unwrap_or("RollingUpdate"),
    );
    text.pair(
        0,
        "MinReadySeconds",
        spec.min_ready_seconds.unwrap_or(0).to_string(),
    );
    if let Some(rolling) = strategy.rolling_update {
        let amount = |amount: Option<IntOrString>| match amount {
            Some(IntOrString::Int(number)) => number.to_string(),
            Some(IntOrString::String(percent)) => percent,
            None => "25%".into(),
        };
        let line = format!(
            "{} max unavailable, {} max surge",
            amount(rolling.max_unavailable),
            amount(rolling.max_surge)
        );
        text.pair(0, "RollingUpdateStrategy", line);
    }
    if spec.paused == Some(true) {
        text.pair(0, "Paused", "true");
    }
    pod::template(text, &spec.template);
    if let Some(conditions) = status
        .conditions
        .filter(|conditions| !conditions.is_empty())
    {
        text.section(0, "Conditions");
        let mut rows = vec![["Type", "Status", "Reason"].map(String::from).to_vec()];
        rows.extend(
            conditions
                .into_iter()
                .map(|found| vec![found.type_, found.status, found.reason.unwrap_or_default()]),
        );
        text.table(1, rows);
    }
    let revision = |set: &ReplicaSet| -> i64 {
        let text = set
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get(REVISION));
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    let newest = sets.iter().max_by_key(|set| revision(set));
    let line = |set: &ReplicaSet| {
        let replicas = set
            .spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or(1);
        let created = set.status.as_ref().map_or(0, |status| status.replicas);
        format!(
            "{} ({created}/{replicas} replicas created)",
            set.metadata.name.as_deref().unwrap_or_default()
        )
    };
    let older: Vec<String> = sets
        .iter()
        .filter(|set| newest.is_some_and(|newest| newest.metadata.name != set.metadata.name))
        .filter(|set| {
            set.status
                .as_ref()
                .is_some_and(|status| status.replicas > 0)
        })
        .map(line)
        .collect();
    text.pair(
        0,
        "OldReplicaSets",
        if older.is_empty() {
            NONE.into()
        } else {
            older.join("\n")
        },
    );
    text.pair(
        0,
        "NewReplicaSet",
        newest.map_or_else(|| NONE.to_string(), line),
    );
}
