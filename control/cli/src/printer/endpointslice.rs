//! EndpointSlices: the first few addresses.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::Value;

use super::{Printer, narrow};
use crate::output::age;

/// More than these are counted only.
const SHOWN: usize = 3;

pub(crate) const PRINTER: Printer = Printer {
    columns: &[
        narrow("NAME"),
        narrow("ADDRESSTYPE"),
        narrow("PORTS"),
        narrow("ENDPOINTS"),
        narrow("AGE"),
    ],
    cells,
};

fn cells(object: &Value, now: Timestamp) -> Result<Vec<String>, serde_json::Error> {
    let slice = EndpointSlice::deserialize(object)?;
    let ports: Vec<String> = slice
        .ports
        .iter()
        .flatten()
        .map(|port| {
            port.port
                .map_or_else(|| "*".to_string(), |number| number.to_string())
        })
        .collect();
    let addresses: Vec<String> = slice
        .endpoints
        .iter()
        .flat_map(|endpoint| endpoint.addresses.clone())
        .collect();
    Ok(vec![
        slice.metadata.name.unwrap_or_default(),
        slice.address_type,
        some_of(&ports, "<unset>"),
        some_of(&addresses, "<unset>"),
        age::since(slice.metadata.creation_timestamp.as_ref(), now),
    ])
}

fn some_of(all: &[String], none: &str) -> String {
    match all.split_at_checked(SHOWN) {
        Some((shown, rest)) if !rest.is_empty() => {
            format!("{} + {} more...", shown.join(","), rest.len())
        }
        Some(_) | None if all.is_empty() => none.into(),
        Some(_) | None => all.join(","),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::rows::line;
    use super::*;

    #[test]
    fn rows() {
        let endpoint = |ip: &str| json!({"addresses": [ip]});
        for (endpoints, want) in [
            (json!([]), "s|IPv4|8080|<unset>|<unknown>"),
            (
                json!([endpoint("1"), endpoint("2"), endpoint("3")]),
                "s|IPv4|8080|1,2,3|<unknown>",
            ),
            (
                json!([
                    endpoint("1"),
                    endpoint("2"),
                    endpoint("3"),
                    endpoint("4"),
                    endpoint("5")
                ]),
                "s|IPv4|8080|1,2,3 + 2 more...|<unknown>",
            ),
        ] {
            let object = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 8080}]});
            assert_eq!(line(&PRINTER, &object), want);
        }
    }
}
