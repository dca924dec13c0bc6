//! Links and routes as the kernel has them while the agent runs, against what
//! `Observed` takes for granted: what others removed is there no more, and is planned
//! again.
//!
//! Taken in by `take.rs`. What an action was at while the kernel was asked is left
//! alone: its own outcome says how it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::conflict::NodeSockets;
use crate::hostport;
use crate::link::{self, Cidr, Granted, Route, Shape};
use crate::settings::Settings;
use crate::step::Step;
use crate::time::Monotonic;
use crate::world::{Observed, Pod};

/// What was taken for granted when the kernel was asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expected {
    /// Interface indexes of pods' links, by uid.
    pub links: BTreeMap<String, u32>,
    /// Routes with our protocol number that belong to no pod.
    pub routes: BTreeMap<Cidr, Route>,
    /// Devices of the node.
    pub(crate) devices: BTreeMap<String, Granted>,
    /// A pod wants ports of the node, so the node's own sockets are to be looked at.
    pub host_ports: bool,
}

/// A link with our mark.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Interface index.
    pub ifindex: u32,
    /// It is up.
    pub up: bool,
    /// Addresses that are routed over it, and the source of the node's own packets there.
    pub routed: Vec<(Ipv4Addr, Option<Ipv4Addr>)>,
    /// Permanent neighbours on it.
    pub neighbours: Vec<(Ipv4Addr, [u8; 6])>,
}

/// Our links, routes and neighbours in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// Links by name.
    pub links: BTreeMap<String, Link>,
    /// Routes that belong to no pod.
    pub routes: BTreeMap<Cidr, Route>,
    /// Devices of the node, by name.
    pub devices: BTreeMap<String, Shape>,
    /// No link has the node's address.
    pub without_address: bool,
    /// Addresses at which other machines may reach the node.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Ports that the node itself uses; `None`: not asked for.
    pub sockets: Option<NodeSockets>,
}

impl Observed {
    /// What is taken for granted now.
    pub fn expected(&self) -> Expected {
        let links = self
            .pods
            .iter()
            .filter(|(_, pod)| kept(pod))
            .filter_map(|(uid, pod)| Some((uid.clone(), pod.ifindex?)));
        Expected {
            links: links.collect(),
            routes: self.network.routes.clone(),
            devices: self.network.granted(),
            host_ports: self.pods.values().any(|pod| hostport::has_any(&pod.spec)),
        }
    }

    /// uids of pods that have no link.
    pub fn unlinked(&self) -> impl Iterator<Item = String> {
        let pods = self.pods.iter();
        let unlinked = pods.filter(|(_, pod)| pod.link == Step::Absent);
        unlinked.map(|(uid, _)| uid.clone())
    }

    /// Records what was seen; uids of the pods whose links are not whole.
    pub(crate) fn compare(
        &mut self,
        expected: &Expected,
        seen: Seen,
        settings: &Settings,
        now: Monotonic,
    ) -> Vec<String> {
        let source = self.network.source(settings);
        let mut broken = Vec::new();
        for (uid, ifindex) in &expected.links {
            let Some(pod) = self.pods.get_mut(uid) else {
                continue;
            };
            // Made anew, or being removed, since the kernel was asked.
            if !kept(pod) || pod.ifindex != Some(*ifindex) {
                continue;
            }
            let found = seen.links.get(&link::name(uid));
            match found.filter(|l| l.ifindex == *ifindex) {
                Some(link) if whole(pod, link, source) => continue,
                // Still the same one: it is repaired.
                Some(_) => {}
                None => {
                    pod.ifindex = None;
                    pod.programs = Step::Absent;
                    self.network.dead.insert(*ifindex, Step::Absent);
                }
            }
            pod.link = Step::Absent;
            broken.push(uid.clone());
        }
        let network = &mut self.network;
        for (destination, route) in &expected.routes {
            let same = network.routes.get(destination) == Some(route);
            let busy = network.pending.contains_key(destination);
            if same && !busy && !seen.routes.contains_key(destination) {
                network.routes.remove(destination);
            }
        }
        for (destination, route) in seen.routes {
            let known = network.routes.get(&destination) == expected.routes.get(&destination);
            if known && !network.pending.contains_key(&destination) {
                network.routes.insert(destination, route);
            }
        }
        // What the kernel refused, it may take now: a link that is up again.
        for step in network.pending.values_mut() {
            if let Step::Failed { retry, .. } = step {
                *retry = now;
            }
        }
        broken
    }
}

/// Its link is there, as far as is known, and is not to go.
fn kept(pod: &Pod) -> bool {
    pod.link == Step::Ready && pod.teardown.sandbox == Step::Absent
}

/// `source`: that the route to it shall have; none: any.
fn whole(pod: &Pod, link: &Link, source: Option<Ipv4Addr>) -> bool {
    let routed = |address: Ipv4Addr| {
        let mut routes = link.routed.iter().filter(|(to, _)| *to == address);
        routes.any(|(_, from)| source.is_none() || *from == source)
    };
    pod.address().is_none_or(|address| {
        link.up && routed(address) && link.neighbours.contains(&(address, link::pod_mac(address)))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::link::Hop;
    use crate::simulate::{pod_spec, settings};
    use crate::time::Moment;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);

    fn observed() -> Observed {
        let mut pod = Pod::new(Arc::new(pod_spec("u", 1)), Moment::default());
        pod.link = Step::Ready;
        pod.programs = Step::Ready;
        pod.ifindex = Some(7);
        let mut observed = Observed::default();
        observed.pods.insert("u".into(), pod);
        let route = route("10.244.2.0/24");
        observed.network.routes.insert(route.destination, route);
        observed
    }

    fn route(text: &str) -> Route {
        Route {
            destination: Cidr::parse(text).unwrap(),
            hop: Hop::Unreachable,
        }
    }

    /// All is as `observed` has it.
    fn seen() -> Seen {
        let link = Link {
            ifindex: 7,
            up: true,
            routed: vec![(ADDRESS, Some(settings().node_ip))],
            neighbours: vec![(ADDRESS, link::pod_mac(ADDRESS))],
        };
        let route = route("10.244.2.0/24");
        Seen {
            links: BTreeMap::from([(link::name("u"), link)]),
            routes: BTreeMap::from([(route.destination, route)]),
            ..Seen::default()
        }
    }

    /// (broken, link, programs, ifindex, dead) after what was seen.
    fn after(change: impl FnOnce(&mut Link) -> bool) -> (bool, Step, Step, Option<u32>, usize) {
        let (mut observed, mut seen) = (observed(), seen());
        let name = link::name("u");
        if !change(seen.links.get_mut(&name).unwrap()) {
            seen.links.clear();
        }
        let broken = observed.compare(
            &observed.expected(),
            seen,
            &settings(),
            Monotonic::default(),
        );
        let pod = &observed.pods["u"];
        let (link, programs) = (pod.link.clone(), pod.programs.clone());
        let dead = observed.network.dead.len();
        (!broken.is_empty(), link, programs, pod.ifindex, dead)
    }

    #[test]
    fn a_link_that_is_gone_is_made_anew_and_one_that_is_not_whole_repaired() {
        use Step::{Absent, Ready};
        assert_eq!(after(|_| true), (false, Ready, Ready, Some(7), 0));
        let repaired = (true, Absent, Ready, Some(7), 0);
        let set = |change: fn(&mut Link)| {
            after(|link| {
                change(link);
                true
            })
        };
        assert_eq!(set(|l| l.up = false), repaired);
        assert_eq!(set(|l| l.routed.clear()), repaired);
        assert_eq!(
            set(|l| l.routed[0].1 = None),
            repaired,
            "without its source"
        );
        assert_eq!(set(|l| l.neighbours.clear()), repaired);
        assert_eq!(set(|l| l.neighbours[0].1[5] += 1), repaired);
        let anew = (true, Absent, Absent, None, 1);
        assert_eq!(after(|_| false), anew);
        assert_eq!(set(|l| l.ifindex = 8), anew, "another one of that name");
    }

    /// The kernel removes routes with a source that it loses, and refuses to have them again.
    #[test]
    fn pods_are_reached_while_the_node_has_no_address_and_as_before_afterwards() {
        let mut observed = observed();
        let source = |observed: &Observed| observed.network.source(&settings());
        let look = |observed: &mut Observed, seen: Seen| {
            let (expected, now) = (observed.expected(), Monotonic::default());
            let notes = observed.seen(&expected, seen, &settings(), now);
            let repaired = observed.pods["u"].link == Step::Absent;
            observed.pods.get_mut("u").unwrap().link = Step::Ready;
            (notes.into_iter().map(|n| n.reason).collect(), repaired)
        };
        let with = |from: Option<Option<Ipv4Addr>>, without_address| {
            let mut seen = seen();
            let link = seen.links.get_mut(&link::name("u")).unwrap();
            link.routed = from.map(|from| (ADDRESS, from)).into_iter().collect();
            seen.without_address = without_address;
            seen
        };
        let expected = |reasons: &[&'static str], repaired| (reasons.to_vec(), repaired);
        let lost = look(&mut observed, with(None, true));
        assert_eq!(lost, expected(&["NodeAddressLost", "NetworkChanged"], true));
        assert_eq!(source(&observed), None);
        let whole = look(&mut observed, with(Some(None), true));
        assert_eq!(whole, expected(&[], false));
        let back = look(&mut observed, with(Some(None), false));
        assert_eq!(
            back,
            expected(&["NodeAddressRestored", "NetworkChanged"], true)
        );
        assert_eq!(source(&observed), Some(settings().node_ip));
    }

    #[test]
    fn a_link_that_is_being_removed_is_not_missed() {
        let mut observed = observed();
        let expected = observed.expected();
        observed.pods.get_mut("u").unwrap().teardown.sandbox.start();
        assert_eq!(observed.expected().links, BTreeMap::new());
        let broken = observed.compare(
            &expected,
            Seen::default(),
            &settings(),
            Monotonic::default(),
        );
        assert_eq!(broken, Vec::<String>::new());
    }

    #[test]
    fn what_changed_since_the_kernel_was_asked_is_left_alone() {
        let mut observed = observed();
        let expected = observed.expected();
        // Made anew meanwhile: the answer is about the one before.
        observed.pods.get_mut("u").unwrap().ifindex = Some(9);
        let fresh = route("10.244.3.0/24");
        let destination = fresh.destination;
        observed.network.routes.insert(destination, fresh);
        let broken = observed.compare(
            &expected,
            Seen::default(),
            &settings(),
            Monotonic::default(),
        );
        assert_eq!(broken, Vec::<String>::new());
        assert_eq!(observed.pods["u"].ifindex, Some(9));
        let left: Vec<_> = observed.network.routes.keys().collect();
        assert_eq!(left, [&destination], "the one that was asked for is gone");
    }

    #[test]
    fn routes_are_as_they_are_seen_and_refused_ones_tried_again() {
        let mut observed = observed();
        let refused = Cidr::parse("10.244.9.0/24").unwrap();
        let mut step = Step::Absent;
        step.end(Err("no link".into()), Monotonic::default());
        observed.network.pending.insert(refused, step);
        let stray = route("10.9.0.0/24");
        let mut seen = seen();
        seen.routes.insert(stray.destination, stray.clone());
        let now = Monotonic::from_ms(1);
        observed.compare(&observed.expected(), seen, &settings(), now);
        assert_eq!(observed.network.routes.len(), 2);
        assert_eq!(observed.network.routes[&stray.destination], stray);
        assert!(observed.network.pending[&refused].due(now));
    }
}
