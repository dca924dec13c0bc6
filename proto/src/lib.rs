//! The wire: what foil, the control plane, agents and shims say to each other.
//!
//! Plain messages always; gRPC clients and servers with the feature `grpc`;
//! Kubernetes objects to node specs with the feature `convert`. Beside the messages,
//! what processes on both sides of a wire have to do alike and no other crate is
//! below all of them: [`bounds`], [`bucket`], [`file`], [`socket`], [`error`],
//! [`limits`], [`protocol`], [`service_change`].

#![forbid(unsafe_code)]

pub mod bounds;
pub mod bucket;
#[cfg(feature = "convert")]
pub mod convert;
pub mod error;
pub mod file;
pub mod frame;
pub mod limits;
pub mod protocol;
pub mod service_change;
pub mod socket;

/// Encoding and decoding of messages.
pub use prost::{DecodeError, Message, bytes::Bytes};

/// Generated from `v1/*.proto`, where the documentation is.
#[cfg_attr(
    feature = "grpc",
    expect(
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "generated: tonic writes such attributes"
    )
)]
#[expect(
    clippy::large_enum_variant,
    reason = "generated: which variant is large is the protocol's choice"
)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/hydrofoil.v1.rs"));
}

/// gRPC's own health protocol, which probes of kind "grpc" speak.
pub mod health {
    /// Generated from `v1/health.proto`.
    #[cfg_attr(
        feature = "grpc",
        expect(
            clippy::allow_attributes,
            clippy::allow_attributes_without_reason,
            reason = "generated: tonic writes such attributes"
        )
    )]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
    }
}
