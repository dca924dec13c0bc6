//! The control plane's server: store, controllers, and the two gRPC services
//! over mutual TLS, wired together.
//!
//! A library so that tests run it in their own process; `main.rs` is the
//! program. Reading order: `config`, `pki`, `auth`, `tls` (who is let in),
//! `stored`, `writing`, `objects`, `delete` (the store as objects), `serve` (operators), `run`,
//! `agenda`, `carry`, `write`, `health`, `view`, `hub`, `mailbox`, `drain` (controllers and what
//! nodes get), `session`,
//! `report`, `record`, `attach` (nodes).

#![forbid(unsafe_code)]

mod agenda;
pub mod attach;
pub mod auth;
mod carry;
pub mod config;
pub mod delete;
pub mod drain;
mod health;
pub mod hub;
pub mod load;
pub mod mailbox;
pub mod objects;
pub mod pki;
pub mod record;
pub mod refusal;
pub mod report;
pub mod run;
pub mod serve;
pub mod session;
pub mod start;
pub mod stored;
pub mod tls;
pub mod view;
pub mod write;
pub mod writing;

pub use config::{Config, ConfigError};
pub use start::{StartError, start};
