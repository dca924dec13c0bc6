//! Kubernetes objects to node specs, and status back, by rows.
#![cfg(test)]
#![cfg(feature = "convert")]

mod env;
mod pod;
mod service;
mod status;
mod volume;
mod world;
