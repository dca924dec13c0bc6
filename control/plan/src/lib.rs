//! Controllers as pure plans: what is there and what is wanted in, writes out.
//!
//! No store, no clock, no network, no randomness: `control-server` feeds a
//! [`World`] from the store's watch, calls [`plan`] for each [`Task`] that a
//! change made due, and carries the writes out by compare and swap.
//! Planning again after the writes took effect yields nothing.

#![forbid(unsafe_code)]

pub mod action;
pub mod claim;
pub mod deployment;
mod endpoint;
pub mod endpoint_use;
pub mod endpointslice;
pub mod event;
mod eviction;
mod filter;
pub mod gc;
pub mod hash;
mod hints;
mod hostport;
pub mod identity;
pub mod index;
pub mod ipam;
pub mod loadbalancer;
pub mod member;
pub mod namespace;
pub mod node;
pub mod nodeport;
pub mod object;
mod place;
pub mod pod;
mod podgc;
pub mod pool;
pub mod progress;
pub mod queue;
pub mod ranges;
pub mod readiness;
mod refused;
pub mod registry;
pub mod replicaset;
pub mod rollout;
pub mod schedule;
mod score;
mod select;
pub mod service;
pub mod service_problem;
pub mod settings;
pub mod taint;
pub mod task;
pub mod time;
pub mod usage;
pub mod victim;
pub mod watched;
pub mod world;
pub mod zone;

pub use action::{Notice, Plan, Severity, Write};
pub use claim::{Claim, ClaimKey, ClaimWrite};
pub use object::{Key, Name};
pub use pool::Claims;
pub use registry::Object;
pub use settings::Settings;
pub use task::Task;
pub use world::World;

use jiff::Timestamp;

/// What has to be written so that `task`'s object is as it should be.
///
/// Proportional to what belongs to that object, not to the cluster.
pub fn plan(world: &World, task: &Task, now: Timestamp) -> Plan {
    match task {
        Task::Deployment(name) => deployment::plan(world, name, now),
        Task::ReplicaSet(name) => replicaset::plan(world, name, now),
        Task::EndpointSlices(service) => endpointslice::plan(world, service),
        Task::LoadBalancer(service) => loadbalancer::plan(world, service),
        Task::LoadBalancers => loadbalancer::assign(world),
        Task::Schedule => schedule::plan(world, now),
        Task::Node(name) => node::plan(world, name, now),
        Task::Zones => zone::plan(world, now),
        Task::Addresses => ipam::release(world),
        Task::Identity(pod) => identity::plan(world, pod),
        Task::Namespace(name) => namespace::plan(world, name),
        Task::Collect(key) => gc::collect(world, key),
        Task::FinishedPods => podgc::collect_finished(world),
        Task::Events => event::plan(world, now),
    }
}

#[cfg(test)]
mod for_tests;
