//! Reading JSON (or YAML) without losing duplicate keys: the second one is an
//! error with its path, where `serde_json` alone would let it win in silence.
//! Not strict about fields: see `decode`. Called by all parsers of manifests.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::decode::Path;
use crate::invalid::Cause;

/// JSON text to a value; a key that occurs twice is an error with its path.
pub fn from_json(text: &[u8]) -> Result<Value, Cause> {
    match serde_json::from_slice::<Unique>(text) {
        Ok(Unique(value)) => Ok(value),
        Err(error) => Err(Cause {
            field: String::new(),
            message: error.to_string(),
        }),
    }
}

/// A JSON value in which no object has a key twice. Deserializes from any
/// format, so that YAML readers can use it too.
#[derive(Debug, Clone, PartialEq)]
pub struct Unique(pub Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        UniqueSeed { path: &Path::Root }
            .deserialize(deserializer)
            .map(Self)
    }
}

struct UniqueSeed<'a> {
    path: &'a Path<'a>,
}

impl<'de> DeserializeSeed<'de> for UniqueSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

macro_rules! visits {
    ($($method:ident: $type:ty),*) => {
        $(fn $method<E: serde::de::Error>(self, value: $type) -> Result<Value, E> {
            Ok(Value::from(value))
        })*
    };
}

impl<'de> Visitor<'de> for UniqueSeed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    visits!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str,
        visit_string: String);

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = Path::Index(self.path, items.len());
            let Some(item) = seq.next_element_seed(UniqueSeed { path: &path })? else {
                break;
            };
            items.push(item);
        }
        Ok(Value::Array(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = Path::Field(self.path, &key);
            if object.contains_key(&key) {
                return Err(serde::de::Error::custom(format!("{path}: duplicate field")));
            }
            let value = map.next_value_seed(UniqueSeed { path: &path })?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}
