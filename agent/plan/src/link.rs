//! Links and routes as values: a pod's veth pair, the link through which the
//! node's own processes reach services, address ranges and routes.
//!
//! Which routes there shall be is decided in `route.rs`; `apply.rs` of the daemon
//! makes these values so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use sha2::{Digest, Sha256};

use crate::conflict::NodeSockets;
use crate::settings::Settings;
use crate::step::Step;

/// The link that the service addresses are routed to: its other end leads nowhere,
/// as the programs take every packet on their way out.
pub const SERVICE_LINK: &str = "foil0";

/// A veth pair, from which everything follows that rtnetlink is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLink {
    /// Of the host's end; the pod's is "eth0".
    pub name: String,
    /// Ethernet address of the host's end.
    pub host_mac: [u8; 6],
    /// Ethernet address of the pod's end.
    pub pod_mac: [u8; 6],
    /// Bytes.
    pub mtu: u32,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Source of the node's own packets to the pod; none: while no link has that address, as
    /// the kernel refuses routes with another's source.
    pub node_ip: Option<Ipv4Addr>,
}

/// Name of the host's end of a pod's link: 14 of the 15 bytes that the kernel allows.
pub fn name(uid: &str) -> String {
    let hash = Sha256::digest(uid.as_bytes());
    let hex: String = hash
        .iter()
        .take(5)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("foil{hex}")
}

/// Ethernet address of a pod's end: locally administered, made from its address,
/// so that a neighbour entry never has to be learnt.
pub fn pod_mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// Ethernet address of the host's end of the link of this pod.
pub fn host_mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0e, 0x58, a, b, c, d]
}

/// The link of a pod with an address of its own.
pub fn pod(uid: &str, address: Ipv4Addr, network: &Network, settings: &Settings) -> PodLink {
    PodLink {
        name: name(uid),
        host_mac: host_mac(address),
        pod_mac: pod_mac(address),
        mtu: settings.mtu,
        address,
        node_ip: network.source(settings),
    }
}

/// A range of IPv4 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    /// First address.
    pub address: Ipv4Addr,
    /// Bits that count.
    pub bits: u8,
}

impl Cidr {
    /// "10.244.1.0/24"; `None` if it is no IPv4 range.
    pub fn parse(text: &str) -> Option<Cidr> {
        let (address, bits) = text.split_once('/')?;
        let (address, bits) = (address.parse().ok()?, bits.parse().ok()?);
        (bits <= 32).then_some(Cidr { address, bits })
    }
}

/// A route of the node that belongs to no pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: Cidr,
    /// What becomes of the packets.
    pub hop: Hop,
}

/// What a route does with packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hop {
    /// Out of a link.
    Link {
        /// Its name.
        name: String,
        /// Next hop; none: directly on the link.
        via: Option<Ipv4Addr>,
        /// Source of the node's own packets.
        source: Option<Ipv4Addr>,
    },
    /// They are answered with ICMP unreachable: no pod has that address.
    Unreachable,
    /// To the node's own processes: the address is on the service link.
    Local,
}

/// What a device is to the data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `foil0`.
    Service,
    /// Leads to other nodes.
    Uplink,
}

/// The role of a device of this name.
pub fn role(name: &str) -> Role {
    if name == SERVICE_LINK {
        Role::Service
    } else {
        Role::Uplink
    }
}

/// A device of the node, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// Interface index; none: it is not there.
    pub ifindex: Option<u32>,
    /// The link itself: ready if it is there and as it shall be. Only that of `foil0` is made.
    pub link: Step,
    /// The programs on it.
    pub programs: Step,
}

/// A device as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shape {
    /// Interface index.
    pub ifindex: u32,
    /// It is up.
    pub up: bool,
    /// Ethernet address.
    pub mac: [u8; 6],
    /// It is a pair, of which the other side is in the same namespace and up.
    pub paired: bool,
    /// All programs of its role are attached.
    pub attached: bool,
}

/// What was taken for granted of a device when the kernel was asked: its index, and how far its
/// link was.
pub(crate) type Granted = (Option<u32>, Step);

/// Links and routes of the node itself, as they are.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// Routes with our protocol number that belong to no pod.
    pub routes: BTreeMap<Cidr, Route>,
    /// Blocks of addresses that the programs know, and what they are.
    pub blocks: BTreeMap<Cidr, u32>,
    /// Links with our mark that no pod has, by name.
    pub strays: BTreeMap<String, Step>,
    /// Interfaces of pods' links that others deleted: programs may be pinned for them.
    pub dead: BTreeMap<u32, Step>,
    /// Routes that an action is at, or that failed.
    pub pending: BTreeMap<Cidr, Step>,
    /// `foil0` and the uplinks, by name.
    pub devices: BTreeMap<String, Device>,
    /// No link has the node's address, which may come back.
    pub without_address: bool,
    /// Addresses at which other machines may reach the node.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Ports that the node itself uses, as last seen while a pod wanted ports of the node.
    pub sockets: NodeSockets,
}

impl Network {
    /// What is taken for granted of the devices now.
    pub(crate) fn granted(&self) -> BTreeMap<String, Granted> {
        let devices = self.devices.iter();
        devices
            .map(|(name, device)| (name.clone(), (device.ifindex, device.link.clone())))
            .collect()
    }

    /// Source address for routes to pods, if the kernel takes one.
    pub fn source(&self, settings: &Settings) -> Option<Ipv4Addr> {
        (!self.without_address).then_some(settings.node_ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_stable_and_ours() {
        assert_eq!(name("a").len(), 14);
        assert_eq!(name("a"), name("a"));
        assert_ne!(name("a"), name("b"));
        assert!(name("a").starts_with("foil"));
    }

    #[test]
    fn ranges() {
        assert!(Cidr::parse("10.0.0.0/33").is_none());
        assert!(Cidr::parse("10.0.0.0").is_none());
        assert!(Cidr::parse("fd00::/64").is_none());
        assert_eq!(Cidr::parse("10.0.0.0/8").unwrap().bits, 8);
    }
}
