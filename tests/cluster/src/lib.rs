//! Two nodes and a control plane on one machine: the demo, the cases and the benchmark.
//!
//! The machinery (namespaces, processes, cluster) is `tests-harness`; here is what is done
//! with it. Binaries: `demo` and `bench-cluster`, both started by xtask; test program:
//! `suite.rs`, which shares one cluster among its cases.
//! Reading order: `objects`, `traffic`, `counters`, `limits`, `demo`, `case`.
#![forbid(unsafe_code)]

pub mod bench;
pub mod case;
pub mod counters;
pub mod demo;
pub mod limits;
pub mod objects;
pub mod traffic;
