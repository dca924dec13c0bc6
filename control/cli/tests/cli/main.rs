//! The real `foil` against a control plane in this process, over real TLS.
//!
//! The control plane is a small one (`fake.rs`): objects in memory, judged by the
//! same code as in the real one, and statuses as a test sets them. What is proved
//! here is what `foil` sends, prints and ends with; not what a cluster does.
#![cfg(test)]

mod apply;
mod delete;
mod describe;
mod errors;
mod exec;
mod fake;
mod get;
mod image;
mod logs;
mod manifests;
mod pki;
mod rollout;
mod run;
mod store;
