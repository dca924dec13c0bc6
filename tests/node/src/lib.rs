//! Real kernel, one node: pods through the shim, their namespaces and groups.
//!
//! Needs root. Everything made here is named with our prefix and removed, also when a
//! test fails. Reading order: `pod` (what the tests stand on), then a file per subject.

#![forbid(unsafe_code)]

pub mod pod;

#[cfg(test)]
mod adoption;
#[cfg(test)]
mod agent;
#[cfg(test)]
mod alone;
#[cfg(test)]
mod cgroup;
#[cfg(test)]
mod change;
#[cfg(test)]
mod cleanup;
#[cfg(test)]
mod connect;
#[cfg(test)]
mod container;
#[cfg(test)]
mod control;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod device;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod dns;
#[cfg(test)]
mod ending;
#[cfg(test)]
mod exec;
#[cfg(test)]
mod image;
#[cfg(test)]
mod link;
#[cfg(test)]
mod log;
#[cfg(test)]
mod monitor;
#[cfg(test)]
mod netns;
#[cfg(test)]
mod node;
#[cfg(test)]
mod preflight;
#[cfg(test)]
mod reboot;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod security;
#[cfg(test)]
mod silence;
#[cfg(test)]
mod socket;
#[cfg(test)]
mod volume;
