//! ConfigMaps: how many keys.

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::Value;

use super::{Printer, narrow};
use crate::output::age;

pub(crate) const PRINTER: Printer = Printer {
    columns: &[narrow("NAME"), narrow("DATA"), narrow("AGE")],
    cells,
};

fn cells(object: &Value, now: Timestamp) -> Result<Vec<String>, serde_json::Error> {
    let map = ConfigMap::deserialize(object)?;
    let keys = map.data.map_or(0, |data| data.len()) + map.binary_data.map_or(0, |data| data.len());
    Ok(vec![
        map.metadata.name.unwrap_or_default(),
        keys.to_string(),
        age::since(map.metadata.creation_timestamp.as_ref(), now),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::rows::line;
    use super::*;

    #[test]
    fn counts_text_and_bytes() {
        let object = json!({"metadata": {"name": "c", "creationTimestamp": "2026-01-01T00:09:00Z"},
            "data": {"a": "1", "b": "2"}, "binaryData": {"c": "AA=="}});
        assert_eq!(line(&PRINTER, &object), "c|3|60s");
    }
}
