//! The wire: what foil, the control plane, agents and shims say to each other.
//!
//! Plain messages always; gRPC clients and servers with the feature `grpc`;
//! Kubernetes objects to node specs with the feature `convert`.

#![forbid(unsafe_code)]

pub mod frame;

/// Generated from `v1/*.proto`, where the documentation is.
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/hydrofoil.v1.rs"));
}
