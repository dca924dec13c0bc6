//! `-o custom-columns=NAME:PATH,...`: a table that the user describes.

use serde_json::Value;

use super::jsonpath::{JsonPathError, Template};
use super::jsonpath_eval::text_of;
use super::table::Table;

/// A description that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq)]
pub(crate) enum ColumnsError {
    #[error("custom-columns: \"{word}\" is not HEADER:PATH, as in NAME:.metadata.name")]
    NotAPair { word: String },
    #[error(transparent)]
    Path(#[from] JsonPathError),
}

/// Headers and the paths below them.
#[derive(Debug)]
pub(crate) struct Columns(Vec<(String, Template)>);

impl Columns {
    /// "NAME:.metadata.name,IMAGE:.spec.containers[*].image"
    pub(crate) fn parse(text: &str) -> Result<Self, ColumnsError> {
        let column = |word: &str| {
            let pair = word
                .split_once(':')
                .filter(|(header, path)| !header.is_empty() && !path.is_empty());
            let (header, path) = pair.ok_or_else(|| ColumnsError::NotAPair {
                word: word.to_string(),
            })?;
            Ok((header.to_string(), Template::parse_path(path)?))
        };
        Ok(Self(
            text.split(',')
                .map(column)
                .collect::<Result<_, ColumnsError>>()?,
        ))
    }

    /// Adds the headers to a table.
    pub(crate) fn header(&self, table: &mut Table) {
        table.row(self.0.iter().map(|(header, _)| header.clone()).collect());
    }

    /// Adds an object's row.
    pub(crate) fn row(&self, table: &mut Table, object: &Value) {
        let cell = |(_, path): &(String, Template)| {
            let found: Vec<String> = path.find(object).into_iter().map(text_of).collect();
            if found.is_empty() {
                "<none>".to_string()
            } else {
                found.join(",")
            }
        };
        table.row(self.0.iter().map(cell).collect());
    }
}
