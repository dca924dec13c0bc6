//! ConfigMaps with what is in them, Secrets without.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use super::pod::heading;
use super::text::Text;
use super::{Describer, typed};

pub(crate) const CONFIG_MAP: Describer = Describer {
    related: None,
    text: |text, object, _, _| {
        config_map(text, &typed(object)?);
        Ok(())
    },
};

fn config_map(text: &mut Text, map: &ConfigMap) {
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

pub(crate) const SECRET: Describer = Describer {
    related: None,
    text: |text, object, _, _| {
        secret(text, &typed(object)?);
        Ok(())
    },
};

fn secret(text: &mut Text, secret: &Secret) {
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
