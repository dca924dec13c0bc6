//! `NodeConfig`: facts of the node, constant from the moment the programs are loaded.
//!
//! In `.rodata`, so that the verifier knows the values and removes what they switch off.
//! What changes while the node runs is in maps instead.

use crate::{
    map_abi,
    net::{Addr, Be32},
};

/// Symbol of the `NodeConfig` in the object.
pub const NODE_CONFIG: &str = "NODE_CONFIG";

/// Link-local source address of a connection whose client and backend are the same pod, or the
/// node itself: its answers leave by the default route of the pod, or by the service device.
pub const HAIRPIN: [u8; 4] = [169, 254, 1, 2];

/// The same for IPv6, in the prefix for local use by translators (RFC 8215). Not link-local: a UDP
/// server would answer from its own link-local address.
pub const HAIRPIN6: [u8; 16] = [0, 0x64, 0xff, 0x9b, 0, 1, 0, 0, 0, 0, 0, 0, 169, 254, 1, 2];

/// `NodeConfig::flags`: an event for each new flow, not only for drops.
pub const FLOW_EVENTS: u32 = 1;
/// `NodeConfig::flags`: the node and its pods have IPv6 addresses.
pub const IPV6: u32 = 2;

/// Mark (`skb->mark`) of a packet of the node that was translated already on its way into a pod.
///
/// Set at the egress of the service device, cleared at the egress of the pod's interface; no
/// packet leaves the machine or enters a pod with it.
pub const TRANSLATED_MARK: u32 = 0x0f01_1001;

map_abi! {
    /// Facts of the node.
    pub struct NodeConfig {
        /// `ABI_VERSION` of the agent; the object has its own as default, and they must agree.
        pub abi_version: u32,
        /// Bits: `FLOW_EVENTS`, `IPV6`.
        pub flags: u32,
        /// Address of the node, mapped if IPv4; zero when there is none.
        pub node: Addr,
        /// IPv6 address of the node; zero when there is none.
        pub node6: Addr,
        /// `HAIRPIN6`.
        pub hairpin6: Addr,
        /// `HAIRPIN`.
        pub hairpin: Be32,
        /// Interface of the node's own service traffic (`foil0`); 0 when there is none.
        pub service_ifindex: u32,
        /// Its Ethernet address, two bytes at a time as they are loaded from memory.
        pub service_mac: [u16; 3],
        /// Named padding.
        pub pad: u16,
        /// Ticks of `bpf_jiffies64` in a second.
        pub jiffies_per_second: u32,
        /// Mixed into backend choice, so that nodes choose differently.
        pub seed: u32,
        /// Entries that the flow map has.
        pub flow_entries: u32,
        /// Named padding.
        pub pad2: u32,
        /// Cookie of the node's network namespace, whose sockets are not translated at `connect`.
        pub netns_cookie: u64,
    }
}
