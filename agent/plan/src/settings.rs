//! Facts of the node and the operator's choices, as the plans need them.
//!
//! Made by the daemon from its configuration file and the kernel.

use std::net::Ipv4Addr;

/// CPU time and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
}

impl Resources {
    /// What is left without these, and without so many bytes more.
    pub fn less(self, reserved: Resources, memory_bytes: u64) -> Resources {
        Resources {
            cpu_millis: self.cpu_millis.saturating_sub(reserved.cpu_millis),
            memory_bytes: self
                .memory_bytes
                .saturating_sub(reserved.memory_bytes)
                .saturating_sub(memory_bytes),
        }
    }
}

/// `foil0`: what the programs hold of it as constants, so that it is the same again when it was
/// made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServiceLink {
    /// Interface index.
    pub ifindex: u32,
    /// Ethernet address.
    pub mac: [u8; 6],
    /// Bytes.
    pub mtu: u32,
}

/// Facts of the node and the operator's choices; fixed while the agent runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the node.
    pub node_name: String,
    /// The address that the other nodes reach this one by.
    pub node_ip: Ipv4Addr,
    /// First uplink: next hops of the other nodes are reached through it.
    pub uplink: String,
    /// All uplinks.
    pub uplinks: Vec<String>,
    /// `foil0`, as programs and flows hold it.
    pub service: ServiceLink,
    /// MTU of the uplink, bytes; pods get the same.
    pub mtu: u32,
    /// What the node has.
    pub capacity: Resources,
    /// What of it is kept for the system and the agent.
    pub reserved: Resources,
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
    /// Processes and threads that a pod may have; 0: as many as the node.
    pub pod_pids_limit: u32,
    /// Swap that the pods may use together, bytes; 0: none.
    pub swap_bytes: u64,
}
