//! Which routes and address blocks the node shall have: services over their link,
//! the other nodes' pods over the uplink, and none to its own pods' addresses that no
//! pod has.
//!
//! Pods' own routes come and go with their links. Called by the daemon's loop.

use std::collections::BTreeMap;
use std::mem::discriminant;

use ebpf_common::config::HAIRPIN;
use ebpf_common::network::{EXTERNAL, LOCAL, NODE, PODS, SERVICES};

use crate::action::{Action, Problem};
use crate::link::{Cidr, Hop, Network, Route, SERVICE_LINK};
use crate::settings::Settings;
use crate::step::Step;
use crate::time::Monotonic;
use crate::world::Desired;

/// Routes that the node shall have, and what cannot be had.
pub fn routes(desired: &Desired, settings: &Settings) -> (BTreeMap<Cidr, Route>, Vec<Problem>) {
    let mut routes = BTreeMap::new();
    let mut problems = Vec::new();
    let over_service_link = |destination| Route {
        destination,
        hop: Hop::Link {
            name: SERVICE_LINK.into(),
            via: None,
            source: Some(settings.node_ip),
        },
    };
    for text in &desired.config.service_cidrs {
        match Cidr::parse(text) {
            Some(destination) => {
                routes.insert(destination, over_service_link(destination));
                // Answers of backends in the node's own host network.
                let hairpin = Cidr {
                    address: HAIRPIN.into(),
                    bits: 32,
                };
                routes.insert(hairpin, over_service_link(hairpin));
            }
            None => problems.push(Problem::Range {
                of: "cluster".into(),
                text: text.clone(),
            }),
        }
    }
    if let Some(destination) = dns(desired) {
        let hop = Hop::Local;
        routes.insert(destination, Route { destination, hop });
    }
    // A pod's own route is longer, and goes with its link: after that its address is
    // answered for at once, and does not go out by the default route.
    for text in &desired.config.node_pod_cidrs {
        match Cidr::parse(text) {
            Some(destination) => {
                let hop = Hop::Unreachable;
                routes.insert(destination, Route { destination, hop });
            }
            None => problems.push(Problem::Range {
                of: settings.node_name.clone(),
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
                    let hop = Hop::Link {
                        name: settings.uplink.clone(),
                        via: Some(via),
                        source: None,
                    };
                    let route = Route { destination, hop };
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

/// The address at which the node answers cluster DNS.
fn dns(desired: &Desired) -> Option<Cidr> {
    let address = desired.config.dns_address.parse().ok()?;
    Some(Cidr { address, bits: 32 })
}

/// Blocks of addresses that the programs shall know.
fn blocks(desired: &Desired, network: &Network) -> BTreeMap<Cidr, u32> {
    let of = |texts: &[String], kind: u32| {
        texts
            .iter()
            .filter_map(|t| Cidr::parse(t))
            .map(move |c| (c, kind))
            .collect::<Vec<_>>()
    };
    let mut blocks = BTreeMap::new();
    let own = network.addresses.iter().map(|address| Cidr {
        address: *address,
        bits: 32,
    });
    // An address of the node's own may be one of a pool.
    blocks.extend(of(&desired.config.load_balancer_pools, EXTERNAL));
    blocks.extend(own.map(|address| (address, NODE)));
    blocks.extend(of(&desired.config.pod_cidrs, PODS));
    blocks.extend(of(&desired.config.service_cidrs, SERVICES));
    blocks.extend(dns(desired).map(|address| (address, LOCAL)));
    blocks
}

/// What brings the node's own links and routes to what is wanted.
pub fn plan(
    desired: &Desired,
    network: &Network,
    settings: &Settings,
    now: Monotonic,
) -> (Vec<Action>, Vec<Problem>) {
    let (wanted, problems) = routes(desired, settings);
    let mut actions = Vec::new();
    let idle = |destination: &Cidr| network.pending.get(destination).is_none_or(|s| s.due(now));
    for (destination, route) in &wanted {
        if !idle(destination) {
            continue;
        }
        match network.routes.get(destination) {
            Some(there) if there == route => {}
            // The kernel replaces no route by one of another kind: both would stand.
            Some(there) if discriminant(&there.hop) != discriminant(&route.hop) => {
                actions.push(Action::DeleteRoute {
                    route: there.clone(),
                });
            }
            Some(_) | None => actions.push(Action::PutRoute {
                route: route.clone(),
            }),
        }
    }
    let blocks = blocks(desired, network);
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
pub fn wake(network: &Network) -> Option<Monotonic> {
    network.pending.values().filter_map(Step::wake).min()
}

/// True when every wanted route is in force.
pub fn settled(desired: &Desired, network: &Network, settings: &Settings) -> bool {
    routes(desired, settings)
        .0
        .iter()
        .all(|(d, route)| network.routes.get(d) == Some(route))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::simulate::settings;
    use proto::v1;

    fn desired() -> Desired {
        let mut desired = Desired {
            config: v1::ClusterConfig {
                service_cidrs: vec!["10.96.0.0/16".into()],
                node_pod_cidrs: vec!["10.244.1.0/24".into()],
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
    fn services_over_their_link_nodes_over_the_uplink_and_nothing_to_dead_pods() {
        let (routes, problems) = routes(&desired(), &settings());
        assert!(problems.is_empty());
        let via = |name: &str, via| Hop::Link {
            name: name.into(),
            via,
            source: (name == SERVICE_LINK).then(|| settings().node_ip),
        };
        let hops: Vec<_> = routes.values().map(|r| r.hop.clone()).collect();
        let next = Some(Ipv4Addr::new(172, 31, 0, 12));
        let expected = [
            via("foil0", None),
            Hop::Unreachable,
            via("eth0", next),
            via("foil0", None),
        ];
        assert_eq!(hops, expected);
        let hairpin = Cidr::parse("169.254.1.2/32").unwrap();
        assert!(routes.contains_key(&hairpin));
    }

    #[test]
    fn the_dns_address_is_on_the_node_and_no_service_of_the_programs() {
        let mut desired = desired();
        desired.config.dns_address = "10.96.0.10".into();
        let address = Cidr::parse("10.96.0.10/32").unwrap();
        let (routes, problems) = routes(&desired, &settings());
        assert!(problems.is_empty());
        assert_eq!(routes[&address].hop, Hop::Local);
        assert_eq!(blocks(&desired, &Network::default())[&address], LOCAL);
        // Another address: the old one goes.
        let mut network = Network::default();
        network.routes.insert(address, routes[&address].clone());
        network.blocks.insert(address, LOCAL);
        desired.config.dns_address = "10.96.0.11".into();
        let actions = plan(&desired, &network, &settings(), Monotonic::default()).0;
        let route = routes[&address].clone();
        assert!(actions.contains(&Action::DeleteRoute { route }));
        assert!(actions.contains(&Action::DeleteNetwork { range: address }));
    }

    #[test]
    fn a_route_of_another_kind_is_deleted_before_it_is_put() {
        let mut observed = crate::world::Observed::default();
        let destination = Cidr::parse("10.244.1.0/24").unwrap();
        let hop = Hop::Link {
            name: "eth0".into(),
            via: None,
            source: None,
        };
        let before = Route { destination, hop };
        observed.network.routes.insert(destination, before.clone());
        let mut seen = Vec::new();
        loop {
            let now = Monotonic::default();
            let actions = plan(&desired(), &observed.network, &settings(), now).0;
            if actions.is_empty() {
                break;
            }
            for action in actions {
                crate::simulate::simulate(&mut observed, &action, Default::default());
                seen.push(action);
            }
        }
        let place = |wanted: &Action| seen.iter().position(|a| a == wanted).unwrap();
        let delete = place(&Action::DeleteRoute { route: before });
        let hop = Hop::Unreachable;
        let put = place(&Action::PutRoute {
            route: Route { destination, hop },
        });
        assert!(delete < put);
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
                hop: Hop::Link {
                    name: "eth0".into(),
                    via: None,
                    source: None,
                },
            },
        );
        let mut wanted = desired();
        wanted.complete = false;
        let deletes = |wanted: &Desired| {
            plan(wanted, &network, &settings(), Monotonic::default())
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
        assert_eq!((routes.len(), problems.len()), (4, 2));
    }
}
