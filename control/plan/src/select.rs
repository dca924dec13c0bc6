//! Label selectors over the world's pods.
//!
//! Used by controllers that adopt what they select.

use std::sync::Arc;

use control_api::selector::Selector;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use crate::index::Label;
use crate::world::World;

/// A label pair that all objects have that the selector selects; `None` when it
/// has no plain pair.
pub(crate) fn pair(namespace: &str, selector: &LabelSelector) -> Option<Label> {
    let (key, value) = selector.match_labels.as_ref()?.iter().next()?;
    Some((namespace.to_owned(), key.clone(), value.clone()))
}

/// Pods that a label selector may select: those with its first plain pair, or
/// all pods of the namespace when it has none.
pub(crate) fn candidates<'a>(
    world: &'a World,
    namespace: &str,
    selector: &LabelSelector,
) -> Vec<&'a Arc<Pod>> {
    match pair(namespace, selector) {
        Some((_, key, value)) => world.pods_labelled(namespace, &key, &value).collect(),
        None => (world.in_namespace(namespace))
            .filter(|k| k.kind == "Pod" && k.group.is_empty())
            .filter_map(|k| world.pods.get(&k.name))
            .collect(),
    }
}

/// True when the selector selects an object with this metadata.
pub(crate) fn selects(selector: &LabelSelector, meta: &ObjectMeta) -> bool {
    let label = |key: &str| {
        meta.labels
            .as_ref()
            .and_then(|l| l.get(key))
            .map(String::as_str)
    };
    Selector::from_label_selector(selector).matches_by(label)
}
