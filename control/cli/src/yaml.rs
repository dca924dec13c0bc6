//! YAML in and out, with the scalars that `kubectl` reads and writes.
//!
//! Manifests are written for YAML 1.1 (`0644` is octal, `yes` is a boolean), and
//! what we print must survive such a reader: a string that would be read as
//! something else is quoted. Not here: what the documents mean (`manifest.rs`).

use serde_json::{Map, Value};

/// A document that is not YAML.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("line {line}, column {column}: {message}")]
pub(crate) struct YamlError {
    /// 1-based, within the text that was parsed.
    pub(crate) line: u64,
    /// 1-based.
    pub(crate) column: u64,
    pub(crate) message: String,
}

/// Reads one document. Duplicate keys are an error.
pub(crate) fn parse(text: &str) -> Result<Value, YamlError> {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options::<Value>(text, options).map_err(|error| {
        let at = error.location();
        let formatter = serde_saphyr::UserMessageFormatter;
        let rendered = error.without_snippet().render_with_formatter(&formatter);
        YamlError {
            line: at.map_or(1, |at| at.line()),
            column: at.map_or(1, |at| at.column()),
            message: strip_location(&rendered),
        }
    })
}

/// The parser ends or begins its texts with the place, which we say ourselves.
fn strip_location(text: &str) -> String {
    let first = text.lines().next().unwrap_or(text);
    let end = first.find(" at line ").unwrap_or(first.len());
    let message = first.get(..end).unwrap_or(first);
    let message = message.strip_prefix("error: ").unwrap_or(message);
    match message
        .strip_prefix("line ")
        .and_then(|rest| rest.split_once(": "))
    {
        Some((_, rest)) => rest.to_string(),
        None => message.to_string(),
    }
}

/// Writes a value as a document, with a line end.
pub(crate) fn print(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => mapping(&mut out, map, 0, false),
        Value::Array(items) if !items.is_empty() => sequence(&mut out, items, 0),
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => {
            scalar(&mut out, value, 0);
        }
    }
    out
}

/// `inline`: the first key goes on the line that is already begun ("- ").
fn mapping(out: &mut String, map: &Map<String, Value>, indent: usize, inline: bool) {
    for (index, (key, value)) in map.iter().enumerate() {
        if index > 0 || !inline {
            spaces(out, indent);
        }
        out.push_str(&plain_or_quoted(key));
        out.push(':');
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                mapping(out, inner, indent + 2, false);
            }
            // A list is not indented below its key: that is how manifests look.
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                sequence(out, items, indent);
            }
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => {
                out.push(' ');
                scalar(out, value, indent + 2);
            }
        }
    }
}

fn sequence(out: &mut String, items: &[Value], indent: usize) {
    for item in items {
        spaces(out, indent);
        out.push('-');
        match item {
            Value::Object(inner) if !inner.is_empty() => {
                out.push(' ');
                mapping(out, inner, indent + 2, true);
            }
            Value::Array(inner) if !inner.is_empty() => {
                out.push('\n');
                sequence(out, inner, indent + 2);
            }
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => {
                out.push(' ');
                scalar(out, item, indent + 2);
            }
        }
    }
}

fn spaces(out: &mut String, count: usize) {
    out.extend(std::iter::repeat_n(' ', count));
}

/// A scalar or an empty collection, and the end of its line.
fn scalar(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::String(text) if is_block(text) => block(out, text, indent),
        Value::String(text) => {
            out.push_str(&plain_or_quoted(text));
            out.push('\n');
        }
        Value::Array(_) => out.push_str("[]\n"),
        Value::Object(_) => out.push_str("{}\n"),
        Value::Null => out.push_str("null\n"),
        Value::Bool(_) | Value::Number(_) => {
            out.push_str(&value.to_string());
            out.push('\n');
        }
    }
}

/// Several lines are readable as a block, unless a block could not hold them.
fn is_block(text: &str) -> bool {
    text.contains('\n')
        && !text
            .chars()
            .any(|c| c != '\n' && (c.is_control() || c == '\u{feff}'))
}

fn block(out: &mut String, text: &str, indent: usize) {
    out.push('|');
    // The reader takes the indentation from the first line with text: say it when that one begins with a space.
    if text.starts_with([' ', '\n']) {
        out.push('2');
    }
    if !text.ends_with('\n') {
        out.push('-');
    } else if text.ends_with("\n\n") || text == "\n" {
        out.push('+');
    }
    out.push('\n');
    for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
        if !line.is_empty() {
            spaces(out, indent);
            out.push_str(line);
        }
        out.push('\n');
    }
}

fn plain_or_quoted(text: &str) -> String {
    if text.chars().any(char::is_control) {
        // JSON's escapes are YAML's.
        return Value::String(text.to_string()).to_string();
    }
    if reads_as_other(text) {
        return format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    }
    if needs_quotes(text) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    text.to_string()
}

/// Would a YAML 1.1 reader take it for something that is not a string?
fn reads_as_other(text: &str) -> bool {
    const WORDS: [&str; 12] = [
        "", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n", "=",
    ];
    if WORDS.contains(&text.to_ascii_lowercase().as_str()) {
        return true;
    }
    let unsigned = text.trim_start_matches(['+', '-']);
    let dotted = unsigned.trim_start_matches('.');
    // Numbers in any base, floats, sexagesimals, times: all begin with a digit.
    // An address or a version begins so as well and is no number: two dots.
    let number = dotted.starts_with(|c: char| c.is_ascii_digit())
        && dotted
            .chars()
            .all(|c| c.is_ascii_hexdigit() || "_.:xXoO+-TtZz ".contains(c))
        && dotted.matches('.').count() <= 1;
    number || matches!(unsigned.to_ascii_lowercase().as_str(), ".inf" | ".nan")
}

/// Is there something in it that has a meaning in YAML?
fn needs_quotes(text: &str) -> bool {
    text.starts_with([
        ' ', '!', '&', '*', '?', '|', '>', '@', '`', '"', '\'', '%', '#', '{', '}', '[', ']', ',',
    ]) || text.ends_with([' ', ':'])
        || text == "-"
        || text == "<<"
        || text.starts_with("- ")
        || text.starts_with("---")
        || text.starts_with("...")
        || text.starts_with(": ")
        || text.contains(": ")
        || text.contains(" #")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_yaml_as_manifests_mean_it() {
        for (text, want) in [
            ("a: 1", json!({"a": 1})),
            ("a: 0644", json!({"a": 420})),
            ("a: 0x1F", json!({"a": 31})),
            ("a: \"0644\"", json!({"a": "0644"})),
            ("a: yes\nb: off", json!({"a": true, "b": false})),
            ("a: ~\nb:", json!({"a": null, "b": null})),
            ("a: 2001-01-01", json!({"a": "2001-01-01"})),
            ("a: 10.96.0.1", json!({"a": "10.96.0.1"})),
            ("a: 1.5", json!({"a": 1.5})),
            ("a: 100m", json!({"a": "100m"})),
            ("a: |\n  x\n   y\n", json!({"a": "x\n y\n"})),
            (
                "x: &x {b: 1}\ny:\n  <<: *x\n  c: 2",
                json!({"x": {"b": 1}, "y": {"b": 1, "c": 2}}),
            ),
            ("{\"a\": [1, 2]}", json!({"a": [1, 2]})),
        ] {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn refuses_with_line_and_column() {
        for (text, line, column, message) in [
            ("a: 1\nb: [1, 2\n", 2, 4, "unclosed bracket"),
            ("a: 1\nc: 2\na: 3\n", 3, 1, "duplicate mapping key: a"),
            ("a:\n\t- b\n", 2, 2, "tabs disallowed"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(
                (error.line, error.column),
                (line, column),
                "{text}: {error}"
            );
            assert!(error.message.contains(message), "{text}: {error}");
            assert!(!error.message.contains("at line"), "{error}");
        }
    }

    #[test]
    fn prints_what_reads_back_the_same() {
        let value = json!({
            "words": ["yes", "n", "null", "~", "", "true", "0755", "1e3", "1:30", "1_000", ".5", "-1", "2024-01-01T00:00:00Z", "0x1F"],
            "texts": ["a: b", "- a", "a #b", "*a", "@a", " x", "x ", "it's", "say \"hi\"", "x:", "10.96.0.1", "100m", "v1.2.3", "tab\there", "é"],
            "block": "one\n  two\n",
            "open": "one\ntwo",
            "kept": "one\n\n",
            "lead": "  one\ntwo\n",
            "end": "\n",
            "empty": {"map": {}, "list": []},
            "nested": [[1, 2], {"a": [{"b": 1}]}, null, 1.5],
            "with space": 1,
            "8080": "port",
        });
        let text = print(&value);
        assert_eq!(parse(&text), Ok(value), "{text}");
    }

    #[test]
    fn prints_as_kubectl_does() {
        let value = json!({"apiVersion": "v1", "data": {"m": "0755", "v": "a: b", "u": "block\n two\n", "y": "x"},
            "list": [1, {"name": "a", "ports": [{"containerPort": 80}]}], "ip": "10.0.0.1", "args": ["-c", "--port=1"]});
        assert_eq!(
            print(&value),
            "apiVersion: v1\ndata:\n  m: \"0755\"\n  v: 'a: b'\n  u: |\n    block\n     two\n  \"y\": x\nlist:\n- 1\n- name: a\n  ports:\n  - containerPort: 80\nip: 10.0.0.1\nargs:\n- -c\n- --port=1\n"
        );
    }
}
