//! Facts of the node and the operator's choices, as the plans need them.
//!
//! Made by the daemon from its configuration file and the kernel.

use std::net::Ipv4Addr;

/// Facts of the node and the operator's choices; fixed while the agent runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the node.
    pub node_name: String,
    /// The address that the other nodes reach this one by.
    pub node_ip: Ipv4Addr,
    /// First uplink: next hops of the other nodes are reached through it.
    pub uplink: String,
    /// MTU of the uplink, bytes; pods get the same.
    pub mtu: u32,
    /// Memory of the node, bytes (for `oom_score_adj`).
    pub memory_bytes: u64,
    /// First delay of CrashLoopBackOff, milliseconds (Kubernetes: 10 s).
    pub restart_backoff_base_ms: i64,
    /// Longest delay of CrashLoopBackOff, milliseconds (Kubernetes: 300 s).
    pub restart_backoff_max_ms: i64,
    /// First delay of ImagePullBackOff, milliseconds (Kubernetes: 10 s).
    pub image_backoff_base_ms: i64,
    /// Longest delay of ImagePullBackOff, milliseconds (Kubernetes: 300 s).
    pub image_backoff_max_ms: i64,
    /// Bytes after which a container's log is rotated; 0: never.
    pub log_max_bytes: u64,
}
