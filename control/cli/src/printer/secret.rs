//! Secrets: type and how many keys, never what is in them.

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::Value;

use super::{Printer, narrow};
use crate::output::age;

pub(crate) const PRINTER: Printer = Printer {
    columns: &[
        narrow("NAME"),
        narrow("TYPE"),
        narrow("DATA"),
        narrow("AGE"),
    ],
    cells,
};

fn cells(object: &Value, now: Timestamp) -> Result<Vec<String>, serde_json::Error> {
    let secret = Secret::deserialize(object)?;
    Ok(vec![
        secret.metadata.name.unwrap_or_default(),
        secret.type_.unwrap_or_else(|| "Opaque".into()),
        secret.data.map_or(0, |data| data.len()).to_string(),
        age::since(secret.metadata.creation_timestamp.as_ref(), now),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::rows::line;
    use super::*;

    #[test]
    fn rows() {
        let object =
            json!({"metadata": {"name": "s"}, "data": {"a": "AA=="}, "type": "kubernetes.io/tls"});
        assert_eq!(line(&PRINTER, &object), "s|kubernetes.io/tls|1|<unknown>");
    }
}
