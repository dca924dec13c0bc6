//! ConfigMaps with what is in them, Secrets without.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use super::pod::heading;
use super::text::Text;

pub(super) fn config_map(text: &mut Text, map: &ConfigMap) {
    heading(text, &map.metadata);
    text.line(0, "");
    text.line(0, "Data");
    text.line(0, "====");
    for (key, value) in map.data.iter().flatten() {
        text.line(0, &format!("{key}:"));
        text.line(0, "----");
        value.lines().for_each(|line| text.line(0, line));
        text.line(0, "");
    }
    for (key, value) in map.binary_data.iter().flatten() {
        text.line(0, &format!("{key}: {} bytes", value.0.len()));
    }
    text.line(0, "");
}

pub(super) fn secret(text: &mut Text, secret: &Secret) {
    heading(text, &secret.metadata);
    text.line(0, "");
    text.pair(0, "Type", secret.type_.as_deref().unwrap_or("Opaque"));
    text.line(0, "");
    text.line(0, "Data");
    text.line(0, "====");
    for (key, value) in secret.data.iter().flatten() {
        text.pair(0, key, format!("{} bytes", value.0.len()));
    }
    text.line(0, "");
}
