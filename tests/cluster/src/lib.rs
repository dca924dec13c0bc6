//! Two nodes and a control plane on one machine: the cases, the demo and the benchmark.
//!
//! The machinery (namespaces, processes, cluster) is `tests-harness`; here is what is done
//! with it. Binaries: `demo` and `bench-cluster`, both started by xtask; test program:
//! `suite.rs`, which shares one cluster among its cases.
//! Reading order: `scene`, `objects`, `traffic`, `counters`, `upstream`, `limits`, `fixture`, `case`, `teardown`, `demo`.
#![forbid(unsafe_code)]

pub mod bench;
pub mod case;
pub mod counters;
pub mod demo;
mod fixture;
pub mod limits;
pub mod objects;
pub mod scene;
pub mod teardown;
pub mod traffic;
pub mod upstream;
