//! The pieces of work of the controllers.
//!
//! A change of an object makes tasks due (`watched.rs`); [`crate::plan`] plans one.

use crate::object::{Key, Name};

/// One piece of work, due because something changed or a time has come.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// A Deployment's replica sets and status.
    Deployment(Name),
    /// A ReplicaSet's pods and status.
    ReplicaSet(Name),
    /// The slices of a Service.
    EndpointSlices(Name),
    /// Addresses for all Services that wait for one of their load balancer.
    LoadBalancers,
    /// The address of one Service of the type LoadBalancer.
    LoadBalancer(Name),
    /// All pods that have no node.
    Schedule,
    /// A Node's range, taints, and its pods when it is lost.
    Node(String),
    /// Which lost nodes their pods are driven off.
    Zones,
    /// Claims whose owners are gone.
    Addresses,
    /// A Pod's identity number.
    Identity(Name),
    /// The contents of a Namespace that is being deleted.
    Namespace(String),
    /// An object whose owners or whose own deletion changed.
    Collect(Key),
    /// Finished pods, where there are too many.
    FinishedPods,
    /// Events that are old.
    Events,
}
