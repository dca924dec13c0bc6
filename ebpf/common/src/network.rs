//! Networks: the address blocks of the cluster, longest prefix first.

use crate::{map_abi, net::Addr};

/// `Network::kind`: addresses of pods; others' are reached by native routing.
pub const PODS: u32 = 1;
/// `Network::kind`: addresses of services; one without a frontend is refused.
pub const SERVICES: u32 = 2;
/// `Network::kind`: addresses of services at which the node itself answers its pods.
pub const LOCAL: u32 = 3;
/// `Network::kind`: an address of this node, at which node ports are reached.
pub const NODE: u32 = 4;
/// `Network::kind`: addresses of services outside of the cluster's ranges, which the network
/// brings to the nodes; what has no frontend there is refused.
pub const EXTERNAL: u32 = 5;

map_abi! {
    /// Key of the LPM trie.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct NetworkKey {
        /// Bits that count, of 128: a mapped IPv4 /16 is 112.
        pub prefix_len: u32,
        /// First address.
        pub addr: Addr,
    }

    /// What the block is.
    pub struct Network {
        /// `PODS`, `SERVICES`, `LOCAL`, `NODE` or `EXTERNAL`.
        pub kind: u32,
    }
}

impl NetworkKey {
    /// A block of either family; `prefix_len` as people write it (0..=32 for IPv4).
    pub fn new(addr: Addr, prefix_len: u32) -> Self {
        let mapped = if addr.as_v4().is_some() { 96 } else { 0 };
        Self {
            prefix_len: prefix_len + mapped,
            addr,
        }
    }
}
