//! The datapath tier: the real programs on real packets.
//!
//! Most tests run a program on a packet with `test_run` and look at all that it left: verdict,
//! packet, maps, counters. `live` sends real traffic between namespaces. All of it happens in
//! namespaces and pins of their own; root and the built object are needed.
//!
//! Reading order: `node` (the world of a test), `balance` (its services), `packet` (building and judging packets;
//! `six` and `packet6` are the same of IPv6), `connection` (opening and judging connections), then one file per noun.
#![forbid(unsafe_code)]

pub mod balance;
pub mod balance6;
pub mod connection;
pub mod folder;
pub mod node;
pub mod packet;
pub mod packet6;
pub mod six;

#[cfg(test)]
mod abi;
#[cfg(test)]
mod affinity;
#[cfg(test)]
mod choice;
#[cfg(test)]
mod conntrack;
#[cfg(test)]
mod differential;
#[cfg(test)]
mod direct;
#[cfg(test)]
mod firewall;
#[cfg(test)]
mod frontend;
#[cfg(test)]
mod generation;
#[cfg(test)]
mod group;
#[cfg(test)]
mod held;
#[cfg(test)]
mod icmp;
#[cfg(test)]
mod ipv6;
#[cfg(test)]
mod ipv6_live;
#[cfg(test)]
mod kernel;
#[cfg(test)]
mod leftovers;
#[cfg(test)]
mod live;
#[cfg(test)]
mod model;
#[cfg(test)]
mod nexthop;
#[cfg(test)]
mod nodeport;
#[cfg(test)]
mod offload;
#[cfg(test)]
mod parse;
#[cfg(test)]
mod pins;
#[cfg(test)]
mod quota;
#[cfg(test)]
mod refuse;
#[cfg(test)]
mod reply_tuple;
#[cfg(test)]
mod reuse;
#[cfg(test)]
mod route;
#[cfg(test)]
mod service;
#[cfg(test)]
mod snat;
#[cfg(test)]
mod socket;
#[cfg(test)]
mod verify;
#[cfg(test)]
mod world;
