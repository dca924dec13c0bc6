//! The map ABI: every type and constant that the programs in the kernel and the agent share.
//!
//! Types and constants only: no map access, no decision (see `ebpf-logic`), no dependency.
//! The programs (`ebpf-programs`) compile against it for the BPF target, `agent-plan` and
//! `agent-sys` for the host; tools read it through `agent-sys`.
//!
//! Reading order: `abi` (what a map type may be), `net` (byte order), `address` (the two families),
//! `maps` (the table of
//! maps), then one file per noun.
#![no_std]
#![deny(missing_docs)]

pub mod abi;
pub mod address;
pub mod config;
pub mod conntrack;
pub mod counter;
pub mod drop;
pub mod endpoint;
pub mod event;
pub mod maps;
pub mod name;
pub mod net;
pub mod network;
pub mod program;
pub mod service;
pub mod socket;

/// Moves whenever a layout, a map's shape or a meaning below moves.
///
/// Written into each object (`config::NODE_CONFIG`) and next to the pins; the agent refuses to
/// adopt maps of another version.
pub const ABI_VERSION: u32 = 6;
