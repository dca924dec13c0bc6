//! Cluster DNS of one node: Kubernetes' DNS-based service discovery, version 1.1.0, from
//! what the control plane pushed, and a forwarder with a cache for all other names.
//!
//! Pure, without sockets: [`zone`] (which names exist), [`lookup`] (question to records),
//! [`message`] (bytes to question, answer to bytes), [`cache`], [`resolv`]. Around them:
//! [`resolver`] (zone, cache or upstream), [`upstream`] (asking another server), [`udp`] and
//! [`tcp`] (serving), [`status`] (what it has done). The daemon starts it and hands on changes (`agent/daemon/src/dns.rs`).

#![forbid(unsafe_code)]

pub mod cache;
pub mod counters;
pub mod lookup;
pub mod message;
mod places;
pub mod resolv;
pub mod resolver;
pub mod server;
pub mod status;
mod tcp;
mod udp;
pub mod upstream;
pub mod zone;

#[cfg(test)]
#[path = "tests/receive.rs"]
mod receive;

/// Seconds for which clients may keep records of the zone, and that a name is not in it.
pub const TTL: u32 = 5;
/// Version of the schema, the text of `dns-version.DOMAIN`.
pub const SCHEMA: &str = "1.1.0";
/// UDP and TCP port.
pub const PORT: u16 = 53;
