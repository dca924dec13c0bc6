//! What the cluster was configured with, as far as plans need it.

use ipnet::IpNet;

use crate::pool::PortRange;

/// What the cluster was configured with.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// All pods' addresses.
    pub pod_cidr: IpNet,
    /// Prefix length of one node's part of `pod_cidr`.
    pub node_prefix: u8,
    /// All services' addresses.
    pub service_cidr: IpNet,
    /// Ports of every node that services may have.
    pub node_ports: PortRange,
    /// Addresses of load balancers, in the order in which the ranges are used.
    pub load_balancer_pools: Vec<IpNet>,
    /// Seconds after which the pods of a lost node are deleted, unless they
    /// tolerate the taint for another time.
    pub eviction_seconds: i64,
    /// Seconds for which events are kept.
    pub event_seconds: i64,
    /// Seconds after which a silent node counts as lost, and the pods of one that
    /// does not exist as gone.
    pub lost_seconds: i64,
    /// Finished pods that are kept; 0: all.
    pub terminated_pods: usize,
}
