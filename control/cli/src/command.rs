//! One file per command: its options, its help, its code.
//!
//! A command gets the session and somewhere to print; it returns an error for `main` to
//! print. Which command runs is chosen in `args.rs`.

pub(crate) mod annotate;
pub(crate) mod api_resources;
pub(crate) mod apply;
mod apply_order;
pub(crate) mod bpf;
mod bpf_choices;
pub(crate) mod bpf_error;
mod bpf_flows;
mod bpf_rows;
pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod cordon;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod describe;
pub(crate) mod drain;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod get;
pub(crate) mod image;
pub(crate) mod label;
pub(crate) mod logs;
pub(crate) mod patch;
pub(crate) mod rollout;
mod rollout_status;
pub(crate) mod scale;
pub(crate) mod version;
pub(crate) mod wait;
