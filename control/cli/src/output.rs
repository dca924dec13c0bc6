//! How results are printed: the formats of `-o`, and objects in them.
//!
//! Tables are made by `printer/`; this chooses, and prints what needs no table.

pub(crate) mod age;
pub(crate) mod columns;
pub(crate) mod jsonpath;
pub(crate) mod jsonpath_eval;
pub(crate) mod table;

use std::io::{self, Write};
use std::str::FromStr;

use serde_json::{Map, Value};

use columns::{Columns, ColumnsError};
use jsonpath::{JsonPathError, Template};

use crate::kinds::Kind;
use crate::yaml;

/// A word after `-o` that means nothing.
#[derive(Debug, thiserror::Error, PartialEq)]
pub(crate) enum FormatError {
    #[error(
        "unknown format \"{word}\"; use wide, yaml, json, name, jsonpath=TEMPLATE or custom-columns=NAME:PATH,..."
    )]
    Unknown { word: String },
    #[error("this command prints yaml, json, name or jsonpath=TEMPLATE, not tables")]
    NoTable,
    #[error(transparent)]
    JsonPath(#[from] JsonPathError),
    #[error(transparent)]
    Columns(#[from] ColumnsError),
}

/// A result cannot be printed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrintError {
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// What `-o` chose.
#[derive(Debug, Clone)]
pub(crate) enum Format {
    /// Columns for a person.
    Table {
        wide: bool,
    },
    Yaml,
    Json,
    /// "pod/x"
    Name,
    JsonPath(std::sync::Arc<Template>),
    Columns(std::sync::Arc<Columns>),
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(word: &str) -> Result<Self, FormatError> {
        if let Some(template) = word.strip_prefix("jsonpath=") {
            return Ok(Self::JsonPath(Template::parse(template)?.into()));
        }
        if let Some(list) = word.strip_prefix("custom-columns=") {
            return Ok(Self::Columns(Columns::parse(list)?.into()));
        }
        match word {
            "wide" => Ok(Self::Table { wide: true }),
            "yaml" => Ok(Self::Yaml),
            "json" => Ok(Self::Json),
            "name" => Ok(Self::Name),
            _ => Err(FormatError::Unknown {
                word: word.to_string(),
            }),
        }
    }
}

/// Prints a value in a format that is not a table.
pub(crate) fn print_value(
    out: &mut dyn Write,
    format: &Format,
    kind: &Kind,
    value: &Value,
) -> Result<(), io::Error> {
    match format {
        Format::Yaml => out.write_all(yaml::print(&presentable(value)).as_bytes()),
        Format::Json => writeln!(out, "{}", pretty(&presentable(value))),
        Format::JsonPath(template) => write!(out, "{}", template.render(value)),
        Format::Name | Format::Table { .. } | Format::Columns(_) => {
            writeln!(out, "{}", kind.object(control_api::meta::name(value)))
        }
    }
}

/// Reports what became of an object: "pod/x created", or as `-o` asks for it.
pub(crate) fn report(
    out: &mut dyn Write,
    format: Option<&Format>,
    kind: &Kind,
    object: &Value,
    outcome: &str,
) -> Result<(), PrintError> {
    match format {
        None => writeln!(
            out,
            "{} {outcome}",
            kind.object(control_api::meta::name(object))
        )?,
        Some(Format::Table { .. } | Format::Columns(_)) => return Err(FormatError::NoTable.into()),
        Some(format @ (Format::Yaml | Format::Json | Format::Name | Format::JsonPath(_))) => {
            let mut object = object.clone();
            hide_owners(&mut object);
            print_value(out, format, kind, &object)?;
        }
    }
    Ok(out.flush()?)
}

/// JSON with the indentation that `kubectl` uses.
pub(crate) fn pretty(value: &Value) -> String {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    match serde::Serialize::serialize(value, &mut serializer) {
        Ok(()) => String::from_utf8_lossy(&text).into_owned(),
        Err(_) => value.to_string(),
    }
}

/// Keys in order, as YAML and JSON are printed.
pub(crate) fn presentable(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            let sorted: Map<String, Value> = keys
                .into_iter()
                .filter_map(|key| Some((key.clone(), presentable(map.get(key)?))))
                .collect();
            Value::Object(sorted)
        }
        Value::Array(items) => Value::Array(items.iter().map(presentable).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// Removes the record of field owners, which is longer than most objects.
pub(crate) fn hide_owners(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn formats() {
        for word in [
            "wide",
            "yaml",
            "json",
            "name",
            "jsonpath={.a}",
            "custom-columns=A:.a,B:.b",
        ] {
            assert!(word.parse::<Format>().is_ok(), "{word}");
        }
        for word in ["", "yml", "jsonpath={.a", "custom-columns=A"] {
            assert!(word.parse::<Format>().is_err(), "{word}");
        }
    }

    #[test]
    fn keys_are_sorted_and_owners_hidden() {
        let mut value = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "managedFields": [1], "labels": {"b": "1", "a": "2"}}});
        hide_owners(&mut value);
        assert_eq!(
            yaml::print(&presentable(&value)),
            "apiVersion: v1\nkind: Pod\nmetadata:\n  labels:\n    a: \"2\"\n    b: \"1\"\n  name: a\n"
        );
    }
}
