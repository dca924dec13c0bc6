//! JSON of registries, and what is wrong with it. Used by `manifest.rs` and `token.rs`.

use serde::Deserialize;
use serde_json::error::Category;

/// Why a document cannot be read. serde's own message quotes the document: who names a registry
/// could have one of another server read to it, of the node's network for instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at line {line} column {column}")]
pub(super) struct JsonProblem {
    problem: &'static str,
    line: usize,
    column: usize,
}

/// Reads a document.
///
/// # Errors
/// [`JsonProblem`]: the place alone.
pub(super) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, JsonProblem> {
    serde_json::from_slice(bytes).map_err(|error| JsonProblem {
        problem: match error.classify() {
            Category::Syntax => "not JSON",
            Category::Eof => "unexpected end of JSON",
            Category::Data => "missing field or value of another type",
            Category::Io => "cannot be read",
        },
        line: error.line(),
        column: error.column(),
    })
}
