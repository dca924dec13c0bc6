//! The control plane for tests: the real server in this process, over mutual TLS on loopback,
//! and agents that speak the node's protocol without containers.
//!
//! Used by the tests of `control/server` and of `control/cli`.

#![forbid(unsafe_code)]

mod agent;
mod dial;
mod object;
mod server;
mod wait;

pub use agent::{Agent, Options, Told, node_status, report, up};
pub use control_server::pki::Pki;
pub use control_server::start::Running;
pub use control_server::token::Scope;
pub use dial::{admin, csr, endpoint, join, node_client, trusting};
pub use object::{deployment, is_ready, pod, service, text};
pub use server::{Server, detail, kind, server, server_with};
pub use wait::{PATIENCE, eventually};
