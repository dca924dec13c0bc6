//! Links and routes: a pod's veth pair, the link through which the node's own
//! processes reach services, and the ways to the other nodes' pods.
//!
//! No netlink here: `apply.rs` of the daemon makes these values so.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ebpf_common::network::{PODS, SERVICES};
use sha2::{Digest, Sha256};

use crate::action::{Action, Problem};
use crate::world::{Desired, Settings, Step, address};

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
    /// Source of the node's own packets to the pod.
    pub node_ip: Ipv4Addr,
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
pub fn pod(uid: &str, address: Ipv4Addr, settings: &Settings) -> PodLink {
    PodLink {
        name: name(uid),
        host_mac: host_mac(address),
        pod_mac: pod_mac(address),
        mtu: settings.mtu,
        address,
        node_ip: settings.node_ip,
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
    /// Name of the link.
    pub link: String,
    /// Next hop; none: directly on the link.
    pub via: Option<Ipv4Addr>,
    /// Source of the node's own packets.
    pub source: Option<Ipv4Addr>,
}

/// Links and routes of the node itself, as they are.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// Routes of ours that belong to no pod.
    pub routes: BTreeMap<Cidr, Route>,
    /// Blocks of addresses that the programs know, and what they are.
    pub blocks: BTreeMap<Cidr, u32>,
    /// Links of ours that no pod has, by name.
    pub strays: BTreeMap<String, Step>,
    /// Routes that an action is at, or that failed.
    pub pending: BTreeMap<Cidr, Step>,
}

/// Routes that the node shall have, and what cannot be had.
pub fn routes(desired: &Desired, settings: &Settings) -> (BTreeMap<Cidr, Route>, Vec<Problem>) {
    let mut routes = BTreeMap::new();
    let mut problems = Vec::new();
    for text in &desired.config.service_cidrs {
        match Cidr::parse(text) {
            Some(destination) => {
                let source = Some(settings.node_ip);
                let route = Route {
                    destination,
                    link: SERVICE_LINK.into(),
                    via: None,
                    source,
                };
                routes.insert(destination, route);
            }
            None => problems.push(Problem::Range {
                of: "cluster".into(),
                text: text.clone(),
            }),
        }
    }
    for (node, wanted) in &desired.routes {
        if *node == settings.node_name {
            continue;
        }
        let Some(via) = wanted.node_ips.iter().find_map(|ip| ip.parse().ok()) else {
            problems.push(Problem::NoNextHop { node: node.clone() });
            continue;
        };
        for text in &wanted.pod_cidrs {
            match Cidr::parse(text) {
                Some(destination) => {
                    let link = settings.uplink.clone();
                    let route = Route {
                        destination,
                        link,
                        via: Some(via),
                        source: None,
                    };
                    routes.insert(destination, route);
                }
                None => problems.push(Problem::Range {
                    of: node.clone(),
                    text: text.clone(),
                }),
            }
        }
    }
    (routes, problems)
}

/// Blocks of addresses that the programs shall know.
fn blocks(desired: &Desired) -> BTreeMap<Cidr, u32> {
    let of = |texts: &[String], kind: u32| {
        texts
            .iter()
            .filter_map(|t| Cidr::parse(t))
            .map(move |c| (c, kind))
            .collect::<Vec<_>>()
    };
    let mut blocks = BTreeMap::new();
    blocks.extend(of(&desired.config.pod_cidrs, PODS));
    blocks.extend(of(&desired.config.service_cidrs, SERVICES));
    blocks
}

/// What brings the node's own links and routes to what is wanted.
pub fn plan(
    desired: &Desired,
    network: &Network,
    settings: &Settings,
    now: i64,
) -> (Vec<Action>, Vec<Problem>) {
    let (wanted, problems) = routes(desired, settings);
    let mut actions = Vec::new();
    let idle = |destination: &Cidr| network.pending.get(destination).is_none_or(|s| s.due(now));
    for (destination, route) in &wanted {
        if idle(destination) && network.routes.get(destination) != Some(route) {
            actions.push(Action::PutRoute {
                route: route.clone(),
            });
        }
    }
    let blocks = blocks(desired);
    for (range, kind) in &blocks {
        if network.blocks.get(range) != Some(kind) {
            actions.push(Action::PutNetwork {
                range: *range,
                kind: *kind,
            });
        }
    }
    if desired.complete {
        for range in network.blocks.keys().filter(|r| !blocks.contains_key(r)) {
            actions.push(Action::DeleteNetwork { range: *range });
        }
        for (destination, route) in &network.routes {
            if !wanted.contains_key(destination) && idle(destination) {
                actions.push(Action::DeleteRoute {
                    route: route.clone(),
                });
            }
        }
    }
    (actions, problems)
}

/// When time alone makes something due.
pub fn wake(network: &Network) -> Option<i64> {
    network.pending.values().filter_map(Step::wake).min()
}

/// True when every wanted route is in force.
pub fn settled(desired: &Desired, network: &Network, settings: &Settings) -> bool {
    routes(desired, settings)
        .0
        .iter()
        .all(|(d, route)| network.routes.get(d) == Some(route))
}

/// The link of a pod, if it has one.
pub fn of(spec: &proto::v1::PodSpec, settings: &Settings) -> Option<PodLink> {
    Some(pod(&spec.uid, address(spec)?, settings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::settings;
    use proto::v1;

    fn desired() -> Desired {
        let mut desired = Desired {
            config: v1::ClusterConfig {
                service_cidrs: vec!["10.96.0.0/16".into()],
                ..Default::default()
            },
            complete: true,
            ..Default::default()
        };
        for (node, cidr, ip) in [
            ("n1", "10.244.1.0/24", "172.31.0.11"),
            ("n2", "10.244.2.0/24", "172.31.0.12"),
        ] {
            desired.routes.insert(
                node.into(),
                v1::NodeRoute {
                    node: node.into(),
                    pod_cidrs: vec![cidr.into()],
                    node_ips: vec![ip.into()],
                },
            );
        }
        desired
    }

    #[test]
    fn names_are_short_stable_and_ours() {
        assert_eq!(name("a").len(), 14);
        assert_eq!(name("a"), name("a"));
        assert_ne!(name("a"), name("b"));
        assert!(name("a").starts_with("foil"));
    }

    #[test]
    fn services_over_their_link_and_nodes_over_the_uplink() {
        let (routes, problems) = routes(&desired(), &settings());
        assert!(problems.is_empty());
        let list: Vec<_> = routes.values().map(|r| (r.link.as_str(), r.via)).collect();
        assert_eq!(
            list,
            [
                ("foil0", None),
                ("eth0", Some(Ipv4Addr::new(172, 31, 0, 12)))
            ]
        );
    }

    #[test]
    fn nothing_is_deleted_before_the_state_is_whole() {
        let mut network = Network {
            ..Default::default()
        };
        let stale = Cidr::parse("10.9.0.0/24").unwrap();
        network.routes.insert(
            stale,
            Route {
                destination: stale,
                link: "eth0".into(),
                via: None,
                source: None,
            },
        );
        let mut wanted = desired();
        wanted.complete = false;
        let deletes = |wanted: &Desired| {
            plan(wanted, &network, &settings(), 0)
                .0
                .iter()
                .filter(|a| matches!(a, Action::DeleteRoute { .. }))
                .count()
        };
        assert_eq!(deletes(&wanted), 0);
        wanted.complete = true;
        assert_eq!(deletes(&wanted), 1);
    }

    #[test]
    fn what_is_no_address_is_a_problem_and_the_rest_goes_on() {
        let mut desired = desired();
        desired.config.service_cidrs.push("nonsense".into());
        desired.routes.insert(
            "n3".into(),
            v1::NodeRoute {
                node: "n3".into(),
                ..Default::default()
            },
        );
        let (routes, problems) = routes(&desired, &settings());
        assert_eq!((routes.len(), problems.len()), (2, 2));
    }

    #[test]
    fn ranges() {
        assert!(Cidr::parse("10.0.0.0/33").is_none());
        assert!(Cidr::parse("10.0.0.0").is_none());
        assert!(Cidr::parse("fd00::/64").is_none());
        assert_eq!(Cidr::parse("10.0.0.0/8").unwrap().bits, 8);
    }
}
