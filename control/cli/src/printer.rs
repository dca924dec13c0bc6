//! Tables of objects: which columns a kind has, and what is in them.
//!
//! One file per kind, in the columns that `kubectl` users expect. A kind without
//! a file is printed by name and age. Called by `get` and `events`.

pub(crate) mod configmap;
pub(crate) mod deployment;
pub(crate) mod endpointslice;
pub(crate) mod event;
pub(crate) mod generic;
pub(crate) mod namespace;
pub(crate) mod node;
pub(crate) mod pod;
pub(crate) mod replicaset;
pub(crate) mod secret;
pub(crate) mod service;
mod workload;

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

pub(crate) use workload::selector;

use crate::kinds::Kind;

/// What a cell says where there is nothing.
pub(crate) const NONE: &str = "<none>";

/// A column's header, and whether only `-o wide` has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    pub(crate) header: &'static str,
    pub(crate) wide: bool,
}

/// Always there.
const fn narrow(header: &'static str) -> Column {
    Column {
        header,
        wide: false,
    }
}

/// Only with `-o wide`.
const fn wide(header: &'static str) -> Column {
    Column { header, wide: true }
}

/// How a kind is printed.
pub(crate) struct Printer {
    pub(crate) columns: &'static [Column],
    /// One cell for each column, the wide ones included.
    pub(crate) cells: fn(&Value, Timestamp) -> Result<Vec<String>, serde_json::Error>,
}

/// What to add to a kind's own columns.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extras {
    pub(crate) wide: bool,
    pub(crate) namespace: bool,
    pub(crate) show_labels: bool,
    /// Labels with a column of their own.
    pub(crate) label_columns: Vec<String>,
    /// "pod/x" instead of "x", where several kinds are listed.
    pub(crate) with_kind: bool,
}

impl Printer {
    /// The headers.
    pub(crate) fn header(&self, extras: &Extras) -> Vec<String> {
        let mut row = Vec::new();
        if extras.namespace {
            row.push("NAMESPACE".to_string());
        }
        let own = self
            .columns
            .iter()
            .filter(|column| extras.wide || !column.wide);
        row.extend(own.map(|column| column.header.to_string()));
        let short = |label: &String| label.rsplit('/').next().unwrap_or(label).to_uppercase();
        row.extend(extras.label_columns.iter().map(short));
        if extras.show_labels {
            row.push("LABELS".to_string());
        }
        row
    }

    /// An object's cells, below the headers.
    pub(crate) fn row(
        &self,
        kind: &Kind,
        object: &Value,
        extras: &Extras,
        now: Timestamp,
    ) -> Result<Vec<String>, serde_json::Error> {
        let mut row = Vec::new();
        if extras.namespace {
            row.push(control_api::meta::namespace(object).to_string());
        }
        for (column, cell) in self.columns.iter().zip((self.cells)(object, now)?) {
            if column.wide && !extras.wide {
                continue;
            }
            row.push(if extras.with_kind && column.header == "NAME" {
                kind.object(&cell)
            } else {
                cell
            });
        }
        let label = |key: &String| {
            control_api::meta::label(object, key)
                .unwrap_or_default()
                .to_string()
        };
        row.extend(extras.label_columns.iter().map(label));
        if extras.show_labels {
            let labels: BTreeMap<&str, &str> = control_api::meta::labels(object).collect();
            row.push(pairs(labels, "="));
        }
        Ok(row)
    }
}

/// "a=1,b=2", or `<none>`.
pub(crate) fn pairs<K: AsRef<str>, V: AsRef<str>>(
    map: impl IntoIterator<Item = (K, V)>,
    between: &str,
) -> String {
    let all: Vec<String> = map
        .into_iter()
        .map(|(key, value)| format!("{}{between}{}", key.as_ref(), value.as_ref()))
        .collect();
    if all.is_empty() {
        NONE.into()
    } else {
        all.join(",")
    }
}

/// The text, or `<none>`.
pub(crate) fn or_none(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty())
        .unwrap_or(NONE)
        .to_string()
}

#[cfg(test)]
pub(crate) mod rows {
    //! Rows of objects and the table that is expected for them.

    use super::*;

    /// All printer tests live at this instant: 2026-01-01T00:10:00Z.
    pub(crate) fn now() -> Timestamp {
        "2026-01-01T00:10:00Z".parse().unwrap()
    }

    /// A line of the table with all columns, cells separated by "|".
    pub(crate) fn line(printer: &Printer, object: &Value) -> String {
        let cells = (printer.cells)(object, now()).unwrap();
        assert_eq!(cells.len(), printer.columns.len());
        cells.join("|")
    }
}
