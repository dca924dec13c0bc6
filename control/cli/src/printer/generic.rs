//! Any kind: name and age.

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::{Printer, narrow};
use crate::output::age;

pub(crate) const PRINTER: Printer = Printer {
    columns: &[narrow("NAME"), narrow("AGE")],
    cells,
};

fn cells(object: &Value, now: Timestamp) -> Result<Vec<String>, serde_json::Error> {
    let created = control_api::meta::creation_timestamp(object)
        .map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time);
    Ok(vec![
        control_api::meta::name(object).to_string(),
        age::since(created.as_ref(), now),
    ])
}
