//! What `foil describe` says: a text for each kind, one file each.
//!
//! Pure but for `object`, which fetches what belongs to the object (endpoints of
//! a service, pods of a node, events). A kind without a file is said as YAML.

mod container;
mod deployment;
mod events;
mod keys;
mod node;
mod pod;
mod probe;
mod replicaset;
mod service;
mod text;
mod volume;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::client::{Client, Selection};
use crate::command;
use crate::error::CommandError;
use crate::kinds::Kind;
use crate::session::{list_typed, namespace_of, typed};
use text::Text;

/// All that is to be said about an object.
pub(crate) async fn object(
    client: &mut Client,
    kind: &Kind,
    object: &Value,
    show_events: bool,
    now: Timestamp,
) -> Result<String, CommandError> {
    let mut text = Text::default();
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod::describe(&mut text, &typed(object)?),
        ("", "Service") => {
            let label = format!(
                "kubernetes.io/service-name={}",
                control_api::meta::name(object)
            );
            let slices: Vec<EndpointSlice> =
                of_kind(client, "endpointslices", namespace_of(object), &label, "").await?;
            service::describe(&mut text, &typed(object)?, &slices);
        }
        ("", "Node") => {
            let field = format!("spec.nodeName={}", control_api::meta::name(object));
            let pods: Vec<Pod> = of_kind(client, "pods", "", "", &field).await?;
            node::describe(&mut text, &typed(object)?, &pods, now);
        }
        ("", "ConfigMap") => keys::config_map(&mut text, &typed(object)?),
        ("", "Secret") => keys::secret(&mut text, &typed(object)?),
        ("apps", "Deployment") => {
            let mut sets: Vec<ReplicaSet> =
                of_kind(client, "replicasets", namespace_of(object), "", "").await?;
            let uid = control_api::meta::uid(object);
            sets.retain(|set| {
                set.metadata
                    .owner_references
                    .iter()
                    .flatten()
                    .any(|owner| owner.uid == uid)
            });
            deployment::describe(&mut text, &typed(object)?, &sets);
        }
        ("apps", "ReplicaSet") => replicaset::describe(&mut text, &typed(object)?),
        _ => generic(&mut text, object),
    }
    if show_events && kind.kind != "Event" {
        events::describe(
            &mut text,
            &command::events::about(client, object).await?,
            now,
        );
    }
    Ok(text.finish())
}

async fn of_kind<T: serde::de::DeserializeOwned>(
    client: &mut Client,
    word: &str,
    namespace: &str,
    labels: &str,
    fields: &str,
) -> Result<Vec<T>, CommandError> {
    let selection = Selection {
        namespace: namespace.into(),
        labels: labels.into(),
        fields: fields.into(),
    };
    list_typed(client, word, &selection).await
}

/// Name and so on first, then everything as it is.
fn generic(text: &mut Text, object: &Value) {
    let yaml = crate::yaml::print(&crate::output::presentable(object));
    for line in yaml.lines() {
        text.line(0, line);
    }
}
