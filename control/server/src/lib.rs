//! The control plane's server: store, controllers, and the two gRPC services
//! over mutual TLS, wired together.
//!
//! A library so that tests run it in their own process; `main.rs` is the
//! program. Reading order: `config`, `subject`, `csr`, `pki`, `token`, `auth`, `tls`,
//! `join`, `join_rate` (who is let in), `stored`, `writing`, `objects`, `delete` (the store as objects), `serve`
//! (operators), `run`, `agenda`, `carry`, `write`, `health`, `view`, `hub`, `mailbox`, `drain`
//! (controllers and what nodes get), `session`, `bounds`, `budget`, `report`, `said`,
//! `correlate`, `record`, `attach` (nodes).

#![forbid(unsafe_code)]

mod advertise;
mod agenda;
pub mod attach;
pub mod auth;
pub mod bounds;
pub mod budget;
mod builtin;
mod carry;
mod claims;
pub mod config;
pub mod correlate;
pub mod csr;
pub mod delete;
pub mod drain;
mod handshakes;
mod health;
pub mod hub;
pub mod join;
pub mod join_rate;
pub mod load;
pub mod mailbox;
pub mod objects;
pub mod pki;
mod rates;
pub mod record;
pub mod refusal;
pub mod report;
pub mod run;
pub mod said;
pub mod serve;
pub mod session;
pub mod start;
pub mod stored;
pub mod subject;
pub mod tls;
pub mod token;
pub mod view;
pub mod write;
pub mod writing;

pub use config::{Config, ConfigError};
pub use start::{StartError, start};
