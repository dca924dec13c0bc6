//! Names: what people call the numbers in the other maps.
//!
//! Written by the agent, read by tools, never by a program: a node can be looked into with
//! agent and control plane both gone.

use crate::map_abi;

/// `NameKey::kind`: `id` is 0; the `ABI_VERSION` of the build that made the maps, as text. Sizes are
/// compared map by map, but only this tells that a field has another meaning.
pub const ABI: u32 = 0;
/// `NameKey::kind`: `id` is an endpoint id; "namespace/pod".
pub const ENDPOINT: u32 = 1;
/// `NameKey::kind`: `id` is a service port id; "namespace/service:port".
pub const SERVICE_PORT: u32 = 2;
/// `NameKey::kind`: `id` is a backend id; "namespace/pod".
pub const BACKEND: u32 = 3;

/// Bytes of a name: 253 of an object's name would not all fit, and are cut.
pub const NAME_BYTES: usize = 128;

map_abi! {
    /// What is named.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct NameKey {
        /// `ABI`, `ENDPOINT`, `SERVICE_PORT`, `BACKEND`.
        pub kind: u32,
        /// Its number.
        pub id: u32,
    }

    /// UTF-8, zeros after it.
    pub struct Name {
        /// The bytes.
        pub text: [u8; NAME_BYTES],
    }
}

impl Name {
    /// From text, cut at a character when it is too long.
    pub fn new(text: &str) -> Self {
        let mut end = text.len().min(NAME_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = [0; NAME_BYTES];
        bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
        Self { text: bytes }
    }

    /// The text; empty when the bytes are none.
    pub fn as_str(&self) -> &str {
        let end = self
            .text
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(NAME_BYTES);
        core::str::from_utf8(&self.text[..end]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::{NAME_BYTES, Name};

    #[test]
    fn long_names_are_cut_at_a_character() {
        assert_eq!(Name::new("default/web:http").as_str(), "default/web:http");
        let long = "ä".repeat(NAME_BYTES);
        assert_eq!(Name::new(&long).as_str(), "ä".repeat(NAME_BYTES / 2));
    }
}
