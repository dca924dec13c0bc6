//! From the store's keys and bytes to what the controllers see.
//!
//! Called by `run.rs`, for the first load and for each event.

use control_api::kind::Kind;
use control_plan::claim::{self, ClaimKey};
use control_plan::{Key, Name, Object, registry};

/// Objects that cannot be read are told by name, up to this many.
const TOLD: usize = 20;

/// What a key of the store stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Record {
    /// An address or a number.
    Claim(ClaimKey),
    /// An object of a known kind.
    Object(&'static Kind, Name),
    /// An object of another kind, or a claim of another sort: a newer version's.
    Unknown(Key),
}

/// Reads a key of the store.
pub fn parse_key(key: &str) -> Record {
    if let Some(claim) = ClaimKey::parse(key) {
        return Record::Claim(claim);
    }
    let (resource, rest) = key.split_once('/').unwrap_or((key, ""));
    let mut all = control_api::kinds().iter().copied();
    if !key.starts_with(claim::PREFIX)
        && let Some(kind) = all.find(|k| k.resource() == resource)
        && let Some(name) = named(kind, rest)
    {
        return Record::Object(kind, name);
    }
    let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
    let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
    Record::Unknown(Key::new(group, plural, Name::new(namespace, name)))
}

fn named(kind: &Kind, rest: &str) -> Option<Name> {
    if kind.namespaced {
        let (namespace, name) = rest.split_once('/')?;
        Some(Name::new(namespace, name))
    } else {
        Some(Name::new("", rest))
    }
}

/// The key of the controllers' world.
pub fn world_key(kind: &Kind, name: Name) -> Key {
    Key::new(kind.group, kind.kind, name)
}

/// An object of the store, with its revision.
pub fn object(kind: &Kind, bytes: &[u8], revision: u64) -> Result<Object, serde_json::Error> {
    Object::read(kind.group, kind.kind, bytes, revision)
}

/// The uid of an object that cannot be read, if that much of it can be.
pub fn uid(bytes: &[u8]) -> Option<String> {
    registry::metadata(bytes).ok()?.uid
}

/// What the store holds and this version cannot read.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// How many objects.
    count: usize,
    /// Some of them: key and reason.
    told: Vec<(String, String)>,
}

impl Unreadable {
    /// One more.
    pub fn add(&mut self, key: &str, reason: String) {
        self.count += 1;
        if self.told.len() < TOLD {
            self.told.push((key.to_owned(), reason));
        }
    }

    /// True when all can be read.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in the store: ", self.count)?;
        for (at, (key, reason)) in self.told.iter().enumerate() {
            let comma = if at == 0 { "" } else { "; " };
            write!(f, "{comma}{key} ({reason})")?;
        }
        if self.count > self.told.len() {
            write!(f, "; and {} more", self.count - self.told.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let object = |word: &str, namespace: &str, name: &str| {
            let kind = control_api::by_word(word).unwrap();
            Record::Object(kind, Name::new(namespace, name))
        };
        let unknown = |group: &str, plural: &str, namespace: &str, name: &str| {
            Record::Unknown(Key::new(group, plural, Name::new(namespace, name)))
        };
        let rows = [
            ("pods/default/a", object("pod", "default", "a")),
            ("nodes/n1", object("node", "", "n1")),
            (
                "deployments.apps/default/a",
                object("deployment", "default", "a"),
            ),
            ("claims/service-id/7", Record::Claim(ClaimKey::ServiceId(7))),
            (
                "widgets.example.org/default/a",
                unknown("example.org", "widgets", "default", "a"),
            ),
            ("claims/colour/red", unknown("", "claims", "colour", "red")),
            ("pods/a", unknown("", "pods", "", "a")),
            ("x", unknown("", "x", "", "")),
        ];
        for (key, expected) in rows {
            assert_eq!(parse_key(key), expected, "{key}");
        }
    }

    #[test]
    fn a_long_list_is_cut() {
        let mut unreadable = Unreadable::default();
        assert!(unreadable.is_empty());
        for n in 0..22 {
            unreadable.add(&format!("pods/default/p{n}"), "why".to_owned());
        }
        let text = unreadable.to_string();
        assert!(
            text.starts_with("22 in the store: pods/default/p0 (why); pods"),
            "{text}"
        );
        assert!(
            text.ends_with("pods/default/p19 (why); and 2 more"),
            "{text}"
        );
    }
}
