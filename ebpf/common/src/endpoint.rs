//! Endpoints: the pods of this node, by interface and by address.

use crate::{
    map_abi,
    net::{Addr, MacAddr},
};

/// Network interfaces that are endpoints, at most; ids are below.
pub const MAX_ENDPOINTS: usize = 4096;
/// Endpoint id: traffic that came in from a network device. Never in a map.
pub const FROM_NETDEV: u16 = 0;
/// Endpoint id: the node itself. Never in a map.
pub const HOST: u16 = 1;
/// First id of a pod.
pub const FIRST_POD: u16 = 2;

map_abi! {
    /// One pod, the same in `endpoints` (by ifindex) and in `local_addrs` (by address).
    pub struct Endpoint {
        /// The pod's address; with `addr6` the only source addresses that it may use.
        pub addr: Addr,
        /// Its IPv6 address; zero if it has none.
        pub addr6: Addr,
        /// Host side of the pod's veth.
        pub ifindex: u32,
        /// Identity number: one per distinct (namespace, labels).
        pub identity: u32,
        /// `FIRST_POD..MAX_ENDPOINTS`; index into `endpoint_gens`.
        pub id: u16,
        /// Ethernet address of the pod's own side.
        pub mac: MacAddr,
    }
}
