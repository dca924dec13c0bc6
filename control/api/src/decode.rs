//! Strict decoding of JSON values into Kubernetes' types: unknown fields, wrong
//! types and duplicate keys are refused with their path. Not validation: that
//! judges what was decoded. Called by `admit`.

use std::cell::RefCell;
use std::fmt;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};
use serde_json::{Map, Value};

use crate::invalid::Cause;

/// Decodes `value`, refusing what `T` does not know. All unknown fields are
/// listed; of wrong types, the first.
pub fn strict<T: DeserializeOwned>(value: &Value) -> Result<T, Vec<Cause>> {
    let unknown = RefCell::new(Vec::new());
    let result = T::deserialize(Strict {
        value,
        path: &Path::Root,
        unknown: &unknown,
    });
    let mut causes = unknown.into_inner();
    match result {
        Ok(decoded) if causes.is_empty() => Ok(decoded),
        Ok(_) => Err(causes),
        Err(DecodeError { path, message }) => {
            causes.push(Cause {
                field: path.unwrap_or_default(),
                message,
            });
            Err(causes)
        }
    }
}

/// Decodes what was admitted before, or comes from a trusted side: fields that
/// are not known are left out.
pub fn lenient<T: DeserializeOwned>(value: &Value) -> Result<T, Cause> {
    T::deserialize(value).map_err(|error| Cause {
        field: String::new(),
        message: error.to_string(),
    })
}

/// Where a decoder is, as a chain on the stack.
pub(crate) enum Path<'p> {
    Root,
    Field(&'p Path<'p>, &'p str),
    Key(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Key(parent, key) => write!(f, "{parent}[{key}]"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

#[derive(Debug)]
struct DecodeError {
    path: Option<String>,
    message: String,
}

impl DecodeError {
    /// The innermost place wins.
    fn at(mut self, path: &Path<'_>) -> Self {
        self.path.get_or_insert_with(|| path.to_string());
        self
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for DecodeError {}
impl serde::de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self {
            path: None,
            message: message.to_string(),
        }
    }
}

struct Strict<'a> {
    value: &'a Value,
    path: &'a Path<'a>,
    unknown: &'a RefCell<Vec<Cause>>,
}

fn type_of(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => format!("boolean {b}"),
        Value::Number(n) => format!("number {n}"),
        Value::String(s) => format!("string {s:?}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

impl Strict<'_> {
    fn wrong_type(&self, expected: &str) -> DecodeError {
        let message = format!("expected {expected}, got {}", type_of(self.value));
        DecodeError {
            path: Some(self.path.to_string()),
            message,
        }
    }

    fn scalar<'de, V: Visitor<'de>>(
        self,
        visitor: V,
        expected: &str,
    ) -> Result<V::Value, DecodeError> {
        let fits = match self.value {
            Value::Array(_) | Value::Object(_) | Value::Null => false,
            Value::Bool(_) => expected == "a boolean",
            Value::Number(n) => match expected {
                "an integer" => n.is_i64() || n.is_u64(),
                "a number" => true,
                _ => false,
            },
            Value::String(_) => expected == "a string",
        };
        if !fits {
            return Err(self.wrong_type(expected));
        }
        self.any(visitor)
    }

    fn any<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        // Owned, so that visitors which borrow do not tie us to the value's lifetime.
        self.value
            .clone()
            .deserialize_any(visitor)
            .map_err(|error: serde_json::Error| {
                DecodeError {
                    path: None,
                    message: error.to_string(),
                }
                .at(self.path)
            })
    }
}

macro_rules! scalars {
    ($expected:literal: $($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            self.scalar(visitor, $expected)
        })*
    };
}

impl<'de> Deserializer<'de> for Strict<'_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.any(visitor)
    }
    scalars!("a boolean": deserialize_bool);
    scalars!("an integer": deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64);
    scalars!("a number": deserialize_f32 deserialize_f64);
    scalars!("a string": deserialize_char deserialize_str deserialize_string
        deserialize_bytes deserialize_byte_buf deserialize_identifier);

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if self.value.is_null() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.any(visitor)
    }
    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.any(visitor)
    }
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let Value::Array(items) = self.value else {
            return Err(self.wrong_type("a list"));
        };
        visitor.visit_seq(Items {
            items,
            next: 0,
            path: self.path,
            unknown: self.unknown,
        })
    }
    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_seq(visitor)
    }
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_seq(visitor)
    }
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let Value::Object(map) = self.value else {
            return Err(self.wrong_type("an object"));
        };
        visitor.visit_map(Entries::new(map, self.path, self.unknown, false))
    }
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let Value::Object(map) = self.value else {
            return Err(self.wrong_type("an object"));
        };
        for key in map.keys().filter(|key| !fields.contains(&key.as_str())) {
            let field = Path::Field(self.path, key).to_string();
            self.unknown.borrow_mut().push(Cause {
                field,
                message: unknown(key, fields),
            });
        }
        visitor.visit_map(Entries::new(map, self.path, self.unknown, true))
    }
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.value
            .clone()
            .into_deserializer()
            .deserialize_enum(name, variants, visitor)
            .map_err(|error: serde_json::Error| {
                DecodeError {
                    path: None,
                    message: error.to_string(),
                }
                .at(self.path)
            })
    }
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }
}

/// The sentence about a field that does not exist: the nearest name first.
fn unknown(key: &str, fields: &[&str]) -> String {
    let near = fields
        .iter()
        .map(|field| (distance(&key.to_lowercase(), &field.to_lowercase()), *field))
        .filter(|(distance, field)| *distance <= 2 && *distance < field.len())
        .min();
    let hint = near
        .map(|(_, field)| format!(" (did you mean {field:?}?)"))
        .unwrap_or_default();
    format!("unknown field{hint}, expected one of {}", fields.join(", "))
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            let best = (above + 1)
                .min(row[j] + 1)
                .min(diagonal + usize::from(x != *y));
            diagonal = above;
            row[j + 1] = best;
        }
    }
    row.last().copied().unwrap_or_default()
}

struct Items<'a> {
    items: &'a [Value],
    next: usize,
    path: &'a Path<'a>,
    unknown: &'a RefCell<Vec<Cause>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        let Some(value) = self.items.get(self.next) else {
            return Ok(None);
        };
        let path = Path::Index(self.path, self.next);
        self.next += 1;
        seed.deserialize(Strict {
            value,
            path: &path,
            unknown: self.unknown,
        })
        .map(Some)
        .map_err(|error| error.at(&path))
    }
    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len() - self.next)
    }
}

struct Entries<'a> {
    entries: serde_json::map::Iter<'a>,
    current: Option<(&'a String, &'a Value)>,
    path: &'a Path<'a>,
    unknown: &'a RefCell<Vec<Cause>>,
    /// Keys are field names, not data.
    fields: bool,
}

impl<'a> Entries<'a> {
    fn new(
        map: &'a Map<String, Value>,
        path: &'a Path<'a>,
        unknown: &'a RefCell<Vec<Cause>>,
        fields: bool,
    ) -> Self {
        Self {
            entries: map.iter(),
            current: None,
            path,
            unknown,
            fields,
        }
    }
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        self.current = self.entries.next();
        let Some((key, _)) = self.current else {
            return Ok(None);
        };
        seed.deserialize(key.as_str().into_deserializer()).map(Some)
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, DecodeError> {
        let Some((key, value)) = self.current else {
            return Err(DecodeError {
                path: None,
                message: "a value without a key".to_owned(),
            });
        };
        let path = if self.fields {
            Path::Field(self.path, key)
        } else {
            Path::Key(self.path, key)
        };
        seed.deserialize(Strict {
            value,
            path: &path,
            unknown: self.unknown,
        })
        .map_err(|error| error.at(&path))
    }
}
