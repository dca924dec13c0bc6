//! ReplicaSets: how many pods in which state, and of what template.

use k8s_openapi::api::apps::v1::ReplicaSet;

use super::pod;
use super::text::Text;
use super::{Describer, typed};
use crate::printer;

pub(crate) const DESCRIBER: Describer = Describer {
    related: None,
    text: |text, object, _, _| {
        describe(text, &typed(object)?);
        Ok(())
    },
};

fn describe(text: &mut Text, set: &ReplicaSet) {
    let spec = set.spec.clone().unwrap_or_default();
    let status = set.status.clone().unwrap_or_default();
    pod::heading(text, &set.metadata);
    text.pair(0, "Selector", printer::selector(&spec.selector));
    if let Some(owner) = set
        .metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
    {
        text.pair(0, "Controlled By", format!("{}/{}", owner.kind, owner.name));
    }
    text.pair(
        0,
        "Replicas",
        format!(
            "{} current / {} desired, {} ready, {} available",
            status.replicas,
            spec.replicas.unwrap_or(1),
            status.ready_replicas.unwrap_or(0),
            status.available_replicas.unwrap_or(0)
        ),
    );
    pod::template(text, &spec.template.unwrap_or_default());
}
