//! Claims: addresses and numbers that one object holds at a time.
//!
//! A claim is one key of the store, taken by compare and swap, so two control
//! planes can never give out the same. A released claim stays as a record
//! without owner: its revision says how long ago, and the one that was
//! released longest ago is taken first.

use std::net::IpAddr;

use ipnet::IpNet;

/// What is claimed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClaimKey {
    /// Address of a pod; owner: uid of the pod.
    PodAddress(IpAddr),
    /// Address of a service; owner: uid of the service.
    ServiceAddress(IpAddr),
    /// `Service.id` of the node stream; owner: uid of the service.
    ServiceId(u32),
    /// `ServicePort.id` of the node stream; owner: uid of the service.
    PortId(u32),
    /// Port of every node; owner: uid of the service.
    NodePort(u16),
    /// Address of a service's load balancer; owner: uid of the service.
    LoadBalancerAddress(IpAddr),
    /// Range of a node's pods; owner: name of the node.
    NodeRange(IpNet),
    /// Identity number; owner: namespace and labels in canonical form.
    Identity(u32),
}

/// Folder of all claims in the store.
pub const PREFIX: &str = "claims/";

impl std::fmt::Display for ClaimKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ClaimKey::PodAddress(a) => write!(f, "{PREFIX}pod-address/{a}"),
            ClaimKey::ServiceAddress(a) => write!(f, "{PREFIX}service-address/{a}"),
            ClaimKey::ServiceId(n) => write!(f, "{PREFIX}service-id/{n}"),
            ClaimKey::PortId(n) => write!(f, "{PREFIX}port-id/{n}"),
            ClaimKey::NodePort(n) => write!(f, "{PREFIX}node-port/{n}"),
            ClaimKey::LoadBalancerAddress(a) => write!(f, "{PREFIX}load-balancer-address/{a}"),
            ClaimKey::NodeRange(n) => {
                write!(f, "{PREFIX}node-range/{}_{}", n.addr(), n.prefix_len())
            }
            ClaimKey::Identity(n) => write!(f, "{PREFIX}identity/{n}"),
        }
    }
}

impl ClaimKey {
    /// From a key of the store; `None` for a key that is no claim.
    pub fn parse(key: &str) -> Option<Self> {
        let (kind, rest) = key.strip_prefix(PREFIX)?.split_once('/')?;
        match kind {
            "pod-address" => rest.parse().ok().map(ClaimKey::PodAddress),
            "service-address" => rest.parse().ok().map(ClaimKey::ServiceAddress),
            "service-id" => rest.parse().ok().map(ClaimKey::ServiceId),
            "port-id" => rest.parse().ok().map(ClaimKey::PortId),
            "node-port" => rest.parse().ok().map(ClaimKey::NodePort),
            "load-balancer-address" => rest.parse().ok().map(ClaimKey::LoadBalancerAddress),
            "node-range" => rest.replace('_', "/").parse().ok().map(ClaimKey::NodeRange),
            "identity" => rest.parse().ok().map(ClaimKey::Identity),
            _ => None,
        }
    }
}

/// A claim as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Who has it; empty: released.
    pub owner: String,
    /// Revision of the last change.
    pub revision: u64,
}

/// One claim taken or released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimWrite {
    /// What.
    pub key: ClaimKey,
    /// Revision that it must still have; 0: it must not be there.
    pub revision: u64,
    /// New owner; empty: released.
    pub owner: String,
}

impl ClaimWrite {
    /// True when the record itself goes with the release: what is numbered
    /// upwards needs no memory of when it was released.
    pub fn forgets(&self) -> bool {
        self.owner.is_empty() && matches!(self.key, ClaimKey::Identity(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let net = "10.244.1.0/24".parse().unwrap();
        for key in [
            ClaimKey::PodAddress("10.244.1.9".parse().unwrap()),
            ClaimKey::ServiceAddress("fd00::1".parse().unwrap()),
            ClaimKey::ServiceId(7),
            ClaimKey::PortId(4_000_000_000),
            ClaimKey::NodePort(30_080),
            ClaimKey::LoadBalancerAddress("203.0.113.7".parse().unwrap()),
            ClaimKey::NodeRange(net),
            ClaimKey::Identity(1),
        ] {
            assert_eq!(ClaimKey::parse(&key.to_string()), Some(key));
        }
        assert_eq!(ClaimKey::parse("objects//Pod/default/a"), None);
        assert_eq!(ClaimKey::parse("claims/pod-address/x"), None);
    }
}
