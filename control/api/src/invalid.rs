//! What is wrong with an object, field by field, in Kubernetes' words.
//! Not a place for rules: those are with their kinds. Every rule reports here.

use std::fmt;

/// Where in an object: `spec.containers[0].ports[1].name`. Cheap to extend, and
/// only made while an object is being judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field(String);

impl Field {
    /// The first step, such as `spec`.
    pub fn root(name: &str) -> Self {
        Self(name.to_owned())
    }
    /// A field of the object here; `name` may have dots (several steps).
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() {
            Self(name.to_owned())
        } else {
            Self(format!("{}.{name}", self.0))
        }
    }
    /// An element of the list here.
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }
    /// An entry of the map here.
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One thing that is wrong. `message` is what Kubernetes says after the path:
/// `Required value`, `Invalid value: "x": must be ...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// `spec.containers[0].image`; empty when it is about the object as a whole.
    pub field: String,
    pub message: String,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.field, self.message)
        }
    }
}

/// A field that is accepted and has no effect, or is ill-advised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    pub field: String,
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// An object that is refused, with at least one cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {name:?} is invalid: {}", list(.causes))]
pub struct Invalid {
    pub kind: String,
    pub name: String,
    pub causes: Vec<Cause>,
}

impl Invalid {
    /// One cause.
    pub fn one(
        kind: impl Into<String>,
        name: impl Into<String>,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        let cause = Cause {
            field: field.into(),
            message: message.into(),
        };
        Self {
            kind: kind.into(),
            name: name.into(),
            causes: vec![cause],
        }
    }
}

fn list(causes: &[Cause]) -> String {
    let lines: Vec<String> = causes.iter().map(Cause::to_string).collect();
    match lines.as_slice() {
        [only] => only.clone(),
        several => format!("[{}]", several.join(", ")),
    }
}

/// Collects causes while an object is being judged.
#[derive(Debug, Default)]
pub struct Causes(Vec<Cause>);

impl Causes {
    pub fn push(&mut self, field: &Field, message: impl Into<String>) {
        self.0.push(Cause {
            field: field.0.clone(),
            message: message.into(),
        });
    }
    /// `Required value`, with an explanation if there is one.
    pub fn required(&mut self, field: &Field, detail: &str) {
        let end = if detail.is_empty() {
            String::new()
        } else {
            format!(": {detail}")
        };
        self.push(field, format!("Required value{end}"));
    }
    pub fn invalid(&mut self, field: &Field, value: impl fmt::Debug, detail: impl fmt::Display) {
        self.push(field, format!("Invalid value: {value:?}: {detail}"));
    }
    pub fn unsupported(&mut self, field: &Field, value: impl fmt::Debug, supported: &[&str]) {
        let known: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let known = known.join(", ");
        self.push(
            field,
            format!("Unsupported value: {value:?}: supported values: {known}"),
        );
    }
    pub fn duplicate(&mut self, field: &Field, value: impl fmt::Debug) {
        self.push(field, format!("Duplicate value: {value:?}"));
    }
    pub fn forbidden(&mut self, field: &Field, detail: impl fmt::Display) {
        self.push(field, format!("Forbidden: {detail}"));
    }
    pub fn not_found(&mut self, field: &Field, value: impl fmt::Debug) {
        self.push(field, format!("Not found: {value:?}"));
    }
    /// Takes over what another judge found.
    pub fn extend(&mut self, more: Vec<Cause>) {
        self.0.extend(more);
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub fn into_vec(self) -> Vec<Cause> {
        self.0
    }
}
