//! The decisions of the data plane, as functions of values: no map, no packet pointer, no clock.
//!
//! `ebpf-programs` calls them in the kernel after it has fetched what they ask for;
//! `tests-datapath` calls them as the oracle; everything is tested on the host.
//!
//! Reading order: `parse` (what a packet is) and `extension`,
//! `service` (which backend), `nat` (which port),
//! `checksum` (what a translation does to the sums), `conntrack` (where a connection stands),
//! `generation` (whether a decision still stands), `reply_tuple` (whether it still needs its entries), `quota`
//! (how many entries a pod may have), `icmp` (errors about flows), `refuse` (the packet that says no).
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod checksum;
pub mod conntrack;
pub mod extension;
pub mod generation;
pub mod icmp;
pub mod nat;
pub mod parse;
pub mod quota;
pub mod refuse;
pub mod reply_tuple;
pub mod service;
