//! Manifests: files, folders and standard input to objects, each with its place.
//!
//! A document stands or falls alone: what is wrong with one is kept beside it,
//! and the others are still there. Not validation: kinds and fields are judged
//! by `control-api` and the server. Called by apply, create and delete.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use control_api::{Invalid, Warning};
use serde_json::Value;

use crate::yaml::{self, YamlError};

/// A source that gives no documents at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("the path \"{path}\" does not exist")]
    Missing { path: PathBuf },
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not text: byte {at} is not UTF-8")]
    NotText { path: PathBuf, at: usize },
    #[error("{path}: no .yaml, .yml or .json file is in this folder{hint}")]
    EmptyFolder { path: PathBuf, hint: &'static str },
    #[error("{path}: no object is in this file")]
    NoObjects { path: PathBuf },
    #[error(
        "{path}: manifests are read from files, folders and standard input; fetch this one first"
    )]
    Remote { path: PathBuf },
}

/// What is wrong with a document as a whole.
#[derive(Debug, thiserror::Error, PartialEq)]
pub(crate) enum DocumentError {
    #[error("line {line}, column {column}: {message}")]
    Yaml {
        line: u64,
        column: u64,
        message: String,
    },
    #[error("not an object: a manifest begins with apiVersion and kind")]
    NotAnObject,
    #[error("{object}{field}: Required value")]
    Required { object: String, field: String },
    #[error("{object}{field}: Invalid value: must be a string")]
    NotAString { object: String, field: String },
    #[error("{object}: duplicate: {first} has it already")]
    Duplicate { object: String, first: String },
}

/// Where a document stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Place {
    /// As it was named; "standard input".
    pub(crate) file: String,
    /// 1-based; empty documents do not count.
    pub(crate) document: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: document {}", self.file, self.document)
    }
}

impl Place {
    /// Without the file, for messages inside of which it is named already.
    fn seen_from(&self, other: &Self) -> String {
        if self.file == other.file {
            format!("document {}", self.document)
        } else {
            self.to_string()
        }
    }
}

/// One document: its objects (several in a list), or what is wrong with it.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) place: Place,
    pub(crate) objects: Result<Vec<Value>, DocumentError>,
}

/// Reads all documents of files, folders (with `recursive`, those below) and `-`.
pub(crate) fn read(files: &[String], recursive: bool) -> Result<Vec<Document>, SourceError> {
    let mut documents = Vec::new();
    for name in files {
        if name == "-" {
            let mut bytes = Vec::new();
            let path = PathBuf::from("standard input");
            if let Err(source) = io::stdin().lock().read_to_end(&mut bytes) {
                return Err(SourceError::Read { path, source });
            }
            documents.extend(of_bytes(path, bytes)?);
            continue;
        }
        if name.starts_with("http://") || name.starts_with("https://") {
            return Err(SourceError::Remote { path: name.into() });
        }
        for path in paths(Path::new(name), recursive)? {
            let bytes = std::fs::read(&path).map_err(|source| SourceError::Read {
                path: path.clone(),
                source,
            })?;
            documents.extend(of_bytes(path, bytes)?);
        }
    }
    Ok(documents)
}

/// A file itself, or the manifests in a folder, by name.
fn paths(path: &Path, recursive: bool) -> Result<Vec<PathBuf>, SourceError> {
    let failed = |source: io::Error| {
        if source.kind() == io::ErrorKind::NotFound {
            SourceError::Missing { path: path.into() }
        } else {
            SourceError::Read {
                path: path.into(),
                source,
            }
        }
    };
    if !std::fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut found = Vec::new();
    in_folder(path, recursive, &mut found).map_err(failed)?;
    if found.is_empty() {
        let hint = if recursive {
            ""
        } else {
            "; -R looks into the folders below as well"
        };
        return Err(SourceError::EmptyFolder {
            path: path.into(),
            hint,
        });
    }
    Ok(found)
}

fn in_folder(folder: &Path, recursive: bool, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            if recursive {
                in_folder(&path, recursive, found)?;
            }
        } else if path
            .extension()
            .is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json")
        {
            found.push(path);
        }
    }
    Ok(())
}

fn of_bytes(path: PathBuf, bytes: Vec<u8>) -> Result<Vec<Document>, SourceError> {
    let text = String::from_utf8(bytes).map_err(|error| SourceError::NotText {
        path: path.clone(),
        at: error.utf8_error().valid_up_to(),
    })?;
    let documents = parse(&path.display().to_string(), &text);
    if documents.is_empty() {
        return Err(SourceError::NoObjects { path });
    }
    Ok(documents)
}

/// The documents of a text.
pub(crate) fn parse(file: &str, text: &str) -> Vec<Document> {
    split(text.strip_prefix('\u{feff}').unwrap_or(text))
        .into_iter()
        .enumerate()
        .map(|(index, (lines_before, piece))| Document {
            place: Place {
                file: file.to_string(),
                document: index + 1,
            },
            objects: objects(lines_before, piece),
        })
        .collect()
}

/// Cuts at lines that begin with "---", as Kubernetes does. Only pieces with
/// something in them, each with the number of lines before it.
fn split(text: &str) -> Vec<(u64, &str)> {
    let mut pieces = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let (mut at, mut line_number) = (0, 0);
    for line in text.split_inclusive('\n') {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && at > start {
            pieces.push((start_line, text.get(start..at).unwrap_or_default()));
            (start, start_line) = (at, line_number);
        }
        at += line.len();
        line_number += 1;
    }
    pieces.push((start_line, text.get(start..).unwrap_or_default()));
    pieces.retain(|(_, piece)| has_content(piece));
    pieces
}

fn has_content(piece: &str) -> bool {
    piece.lines().any(|line| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        !line.is_empty() && !line.starts_with('#') && !line.starts_with('%') && line != "..."
    })
}

fn objects(lines_before: u64, piece: &str) -> Result<Vec<Value>, DocumentError> {
    let value = yaml::parse(piece).map_err(
        |YamlError {
             line,
             column,
             message,
         }| DocumentError::Yaml {
            line: lines_before + line,
            column,
            message,
        },
    )?;
    let mut found = Vec::new();
    flatten(value, &mut found)?;
    Ok(found)
}

/// A list is its items; each must say what it is.
fn flatten(value: Value, found: &mut Vec<Value>) -> Result<(), DocumentError> {
    if !value.is_object() {
        return Err(DocumentError::NotAnObject);
    }
    let label = label(&value);
    for field in ["apiVersion", "kind"] {
        require(&value, &label, field)?;
    }
    let of_list = value
        .get("kind")
        .and_then(Value::as_str)
        .and_then(|kind| kind.strip_suffix("List"));
    let Some((of_list, Value::Array(items))) = of_list.zip(value.get("items").cloned()) else {
        found.push(value);
        return Ok(());
    };
    for mut item in items {
        // The items of a PodList need not repeat that they are pods.
        if let (false, Some(map)) = (of_list.is_empty(), item.as_object_mut()) {
            let version = value.get("apiVersion").cloned().unwrap_or_default();
            map.entry("apiVersion").or_insert(version);
            map.entry("kind").or_insert(of_list.into());
        }
        flatten(item, found)?;
    }
    Ok(())
}

fn require(value: &Value, label: &str, field: &str) -> Result<(), DocumentError> {
    let object = if label.is_empty() {
        String::new()
    } else {
        format!("{label}: ")
    };
    match value.get(field) {
        Some(Value::String(text)) if !text.is_empty() => Ok(()),
        None | Some(Value::Null | Value::String(_)) => Err(DocumentError::Required {
            object,
            field: field.into(),
        }),
        Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            Err(DocumentError::NotAString {
                object,
                field: field.into(),
            })
        }
    }
}

/// "Pod/x", as far as it is known.
pub(crate) fn label(object: &Value) -> String {
    let kind = object
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let name = match control_api::meta::name(object) {
        "" => control_api::meta::generate_name(object),
        name => name,
    };
    match (kind, name) {
        (kind, "") => kind.to_string(),
        ("", name) => name.to_string(),
        (kind, name) => format!("{kind}/{name}"),
    }
}

/// Judges a whole object as the control plane will, as far as that needs no other object.
pub(crate) fn judge(object: &Value, namespace: &str) -> Result<Vec<Warning>, Invalid> {
    let kind = control_api::find_for(object)?;
    let mut placed = object.clone();
    if kind.namespaced && control_api::meta::namespace(object).is_empty() {
        control_api::meta::set_namespace(&mut placed, namespace);
    }
    let (_, warnings) = control_api::admit(&placed, kind, None)?;
    Ok(warnings)
}

/// Turns documents that repeat an object of an earlier one into errors.
pub(crate) fn refuse_duplicates(documents: &mut [Document], namespace: &str) {
    let mut seen: HashMap<[String; 4], Place> = HashMap::new();
    for document in documents {
        let Ok(objects) = &document.objects else {
            continue;
        };
        let mut error = None;
        for object in objects
            .iter()
            .filter(|object| !control_api::meta::name(object).is_empty())
        {
            let text = |name: &str| {
                object
                    .get(name)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_string()
            };
            let group = text("apiVersion")
                .split_once('/')
                .map(|(group, _)| group.to_string())
                .unwrap_or_default();
            let place = match control_api::meta::namespace(object) {
                "" => namespace,
                named => named,
            };
            let key = [
                group,
                text("kind"),
                place.to_string(),
                control_api::meta::name(object).to_string(),
            ];
            match seen.get(&key) {
                Some(first) => {
                    error = Some(DocumentError::Duplicate {
                        object: label(object),
                        first: first.seen_from(&document.place),
                    })
                }
                None => drop(seen.insert(key, document.place.clone())),
            }
        }
        if let Some(error) = error {
            document.objects = Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str) -> Vec<String> {
        let mut documents = parse("f", text);
        refuse_duplicates(&mut documents, "default");
        let row = |document: &Document| match &document.objects {
            Ok(objects) => {
                format!(
                    "{}: {}",
                    document.place,
                    objects.iter().map(label).collect::<Vec<_>>().join(" ")
                )
            }
            Err(error) => format!("{}: {error}", document.place),
        };
        documents.iter().map(row).collect()
    }

    #[test]
    fn documents() {
        let pod = |name: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n");
        for (text, want) in [
            (pod("a"), vec!["f: document 1: Pod/a"]),
            (format!("---\n# first\n{}---\n---\n# nothing\n--- # second\n{}", pod("a"), pod("b")),
             vec!["f: document 1: Pod/a", "f: document 2: Pod/b"]),
            (format!("{}---\nx: [1\n---\n{}", pod("a"), pod("b")),
             vec!["f: document 1: Pod/a", "f: document 2: line 5, column 4: unclosed bracket '['", "f: document 3: Pod/b"]),
            ("apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n- {apiVersion: v1, kind: Service, metadata: {name: b}}\n".into(),
             vec!["f: document 1: Pod/a Service/b"]),
            ("{\"apiVersion\": \"v1\", \"kind\": \"PodList\", \"items\": [{\"metadata\": {\"name\": \"a\"}}]}".into(), vec!["f: document 1: Pod/a"]),
            ("- a\n- b\n".into(), vec!["f: document 1: not an object: a manifest begins with apiVersion and kind"]),
            ("kind: Pod\nmetadata: {name: a}\n".into(), vec!["f: document 1: Pod/a: apiVersion: Required value"]),
            ("apiVersion: v1\nkind: 3\n".into(), vec!["f: document 1: kind: Invalid value: must be a string"]),
            (format!("{0}---\n{1}---\n{0}", pod("a"), pod("b")),
             vec!["f: document 1: Pod/a", "f: document 2: Pod/b", "f: document 3: Pod/a: duplicate: document 1 has it already"]),
            ("# only a comment\n".into(), vec![]),
            ("\u{feff}apiVersion: v1\nkind: Pod\nmetadata:\n  generateName: a-\n".into(), vec!["f: document 1: Pod/a-"]),
        ] {
            assert_eq!(read_all(&text), want, "{text}");
        }
    }

    #[test]
    fn folders() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("below");
        std::fs::create_dir(&below).unwrap();
        for (path, text) in [
            (
                folder.path().join("b.yaml"),
                "apiVersion: v1\nkind: Pod\nmetadata: {name: b}",
            ),
            (
                folder.path().join("a.json"),
                "{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"a\"}}",
            ),
            (folder.path().join("notes.txt"), "not a manifest"),
            (
                below.join("c.yml"),
                "apiVersion: v1\nkind: Pod\nmetadata: {name: c}",
            ),
        ] {
            std::fs::write(path, text).unwrap();
        }
        let name = folder.path().to_str().unwrap().to_string();
        let labels = |recursive| -> Vec<String> {
            read(std::slice::from_ref(&name), recursive)
                .unwrap()
                .iter()
                .flat_map(|document| {
                    document
                        .objects
                        .as_ref()
                        .unwrap()
                        .iter()
                        .map(label)
                        .collect::<Vec<_>>()
                })
                .collect()
        };
        assert_eq!(labels(false), ["Pod/a", "Pod/b"]);
        assert_eq!(labels(true), ["Pod/a", "Pod/b", "Pod/c"]);
    }

    #[test]
    fn sources_that_are_not_there() {
        for (name, want) in [
            (
                "/nonexistent/x.yaml",
                "the path \"/nonexistent/x.yaml\" does not exist",
            ),
            (
                "https://example.com/x.yaml",
                "https://example.com/x.yaml: manifests are read from files, folders and standard input; fetch this one first",
            ),
        ] {
            assert_eq!(
                read(&[name.to_string()], false).unwrap_err().to_string(),
                want
            );
        }
    }
}
