//! What is kept from pods, and what must stay available: the sections `[reserved]`
//! and `[pressure]` of the configuration.
//!
//! Defaults are with all others in `config.rs`, which calls [`section`].

use agent_plan::pressure::{Threshold, Thresholds};
use agent_plan::settings::Resources;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};

/// `[reserved]`
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reserved {
    /// Thousandths of a CPU.
    #[serde(rename = "cpu", deserialize_with = "millis")]
    cpu_millis: u64,
    #[serde(deserialize_with = "threshold")]
    memory: Threshold,
}

impl Reserved {
    /// Of a node with this capacity.
    pub(crate) fn of(self, capacity: Resources) -> Resources {
        Resources {
            cpu_millis: self.cpu_millis,
            memory_bytes: self.memory.of(capacity.memory_bytes),
        }
    }
}

/// `[pressure]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pressure {
    #[serde(deserialize_with = "threshold")]
    memory_available: Threshold,
    #[serde(deserialize_with = "threshold")]
    disk_available: Threshold,
    #[serde(deserialize_with = "threshold")]
    disk_inodes: Threshold,
    #[serde(deserialize_with = "threshold")]
    images_available: Threshold,
    #[serde(deserialize_with = "threshold")]
    images_inodes: Threshold,
    #[serde(deserialize_with = "threshold")]
    pids_available: Threshold,
    transition_s: u32,
}

impl Pressure {
    /// As the plan takes them.
    pub(crate) fn thresholds(&self) -> Thresholds {
        Thresholds {
            memory: self.memory_available,
            disk: self.disk_available,
            disk_inodes: self.disk_inodes,
            images: self.images_available,
            images_inodes: self.images_inodes,
            pids: self.pids_available,
            transition_ms: i64::from(self.transition_s) * 1000,
        }
    }

    /// What pods may have of a node: its capacity less what is reserved, and less the
    /// memory that must stay available (kubelet's "allocatable").
    pub(crate) fn allocatable(&self, capacity: Resources, reserved: Resources) -> Resources {
        let kept = self.memory_available.of(capacity.memory_bytes);
        capacity.less(reserved, kept)
    }
}

/// A section as it is written, over its defaults.
pub(crate) fn section<T: DeserializeOwned>(
    given: toml::Table,
    mut defaults: toml::Table,
) -> Result<T, toml::de::Error> {
    defaults.extend(given);
    defaults.try_into()
}

fn threshold<'de, D: Deserializer<'de>>(value: D) -> Result<Threshold, D::Error> {
    let text = text(value)?;
    Threshold::parse(&text).ok_or_else(|| {
        D::Error::custom(format!(
            "{text:?} is not of the form 10%, 100Mi, 2G or 5000"
        ))
    })
}

/// "2" or "100m"
fn millis<'de, D: Deserializer<'de>>(value: D) -> Result<u64, D::Error> {
    let text = text(value)?;
    let (digits, unit) = match text.strip_suffix('m') {
        Some(digits) => (digits, 1),
        None => (text.as_str(), 1000),
    };
    let number: Option<u64> = digits.parse().ok();
    number
        .and_then(|n| n.checked_mul(unit))
        .ok_or_else(|| D::Error::custom(format!("{text:?} is not of the form 2 or 100m")))
}

/// A number may be written without quotes.
fn text<'de, D: Deserializer<'de>>(value: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(u64),
        Text(String),
    }
    Ok(match Written::deserialize(value)? {
        Written::Number(number) => number.to_string(),
        Written::Text(text) => text,
    })
}
