//! The real `foil` against the real control plane in this process, over mutual TLS.
//!
//! Nodes are played by the tests (`node.rs`): they speak the agents' protocol, report what a
//! test sets, and run no containers. What is proved here is what `foil` sends, prints and ends
//! with.
#![cfg(test)]

mod apply;
mod conflict;
mod delete;
mod describe;
mod drain;
mod errors;
mod exec;
mod get;
mod image;
mod logs;
mod manifests;
mod node;
mod rollout;
mod run;
mod watch;
