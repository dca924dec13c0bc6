//! The Kubernetes object model, pure: k8s-openapi's types, and what they lack.
//!
//! Objects are `serde_json::Value`s where the kind does not matter, and
//! k8s-openapi's structs where it does. Nothing here reads a clock, a disk or
//! the network. Called by `control-plan`, `control-server`, `foil` and by the
//! feature `convert` of `proto`.
//!
//! Reading order: `kind` (what a kind is), `registry` (which there are), `admit`
//! (how a write becomes an object), one file per kind, then the parts of kinds.

#![forbid(unsafe_code)]

mod address;
pub mod admit;
pub mod apply;
pub mod bytes;
pub mod compare;
pub mod condition;
pub mod decode;
pub mod effective;
pub mod equality;
pub mod fieldset;
pub mod invalid;
pub mod json_patch;
pub mod kind;
pub mod managed;
pub mod meta;
pub mod patch;
pub mod quantity;
pub mod registry;
pub mod schema;
pub mod selector;
pub mod strategic;
pub mod unique;
pub mod unknown;
pub mod unsupported;

// One file per kind.
mod configmap;
pub mod deployment;
pub mod endpointslice;
mod event;
pub mod namespace;
mod node;
pub mod pod;
mod replicaset;
mod secret;
pub mod service;
mod service_rules;
pub mod service_type;

// What kinds are built of.
mod container;
mod fieldref;
mod hostport;
mod lifecycle;
mod name;
pub mod podspec;
mod probe;
mod resources;
mod security;
mod sysctl;
pub mod taint;
pub mod volume;

pub use admit::{admit, admit_status};
pub use invalid::{Cause, Causes, Field, Invalid, Warning};
pub use kind::Kind;
pub use registry::{by_word, find, find_for, kinds};
