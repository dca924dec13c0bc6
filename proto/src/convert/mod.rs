//! Kubernetes objects to node specs, and what nodes report back to Kubernetes'
//! status: the only door between the two. Pure and total: fields are read as
//! admission left them (`control-api` has the defaults), and what cannot be
//! resolved becomes an error in the message (`config_error`, `Files.error`),
//! never a failure. Called by `control-server`.

mod backend;
pub mod budget;
pub mod container;
pub mod env;
pub mod field;
pub mod input;
pub mod pod;
pub mod probe;
pub mod pull;
pub mod service;
pub mod status;
pub mod volume;
