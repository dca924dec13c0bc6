//! Addresses: ranges of nodes, addresses of pods and services, numbers of
//! services and their ports.
//!
//! Everything is held by a claim (`claim.rs`). What was released is given out
//! again as late as possible: first what nobody ever had, then what has been
//! free for longest. Called by the scheduler, by `node.rs`, and by
//! control-server when a Service is written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort};

use crate::action::{Plan, Write};
use crate::claim::{Claim, ClaimKey, ClaimWrite};
use crate::world::World;
use crate::{identity, object};

/// Annotation with the number of a Service on the node stream.
pub const SERVICE_ID: &str = "hydrofoil.dev/service-id";
/// Annotation with the numbers of its ports: "http=3,metrics=4"; a port
/// without a name is "=3".
pub const PORT_IDS: &str = "hydrofoil.dev/port-ids";
/// Numbers of services and ports are below this: they are keys of BPF arrays.
const MOST_IDS: u32 = 65_536;

/// All claims, for those who pick from them.
pub type Claims = BTreeMap<ClaimKey, Claim>;

/// Address number `offset` of a range; `None` behind its end.
pub fn address(range: &IpNet, offset: u64) -> Option<IpAddr> {
    let address = match range {
        IpNet::V4(net) => {
            let offset = u32::try_from(offset).ok()?;
            IpAddr::V4(Ipv4Addr::from(
                u32::from(net.network()).checked_add(offset)?,
            ))
        }
        IpNet::V6(net) => {
            let base = u128::from(net.network());
            IpAddr::V6(Ipv6Addr::from(base.checked_add(u128::from(offset))?))
        }
    };
    range.contains(&address).then_some(address)
}

/// The addresses of a range that are given out: not its network address, not
/// the first (a gateway's by custom), not IPv4's broadcast address.
fn usable(range: &IpNet) -> impl Iterator<Item = IpAddr> + '_ {
    let broadcast = if let IpNet::V4(net) = range {
        Some(IpAddr::V4(net.broadcast()))
    } else {
        None
    };
    (2..)
        .map_while(|offset| address(range, offset))
        .filter(move |a| Some(*a) != broadcast)
}

/// Picks what nobody ever had, else what was released first; and not what was
/// picked a moment ago (`taken`).
fn pick(
    claims: &Claims,
    candidates: impl Iterator<Item = ClaimKey>,
    taken: &BTreeSet<ClaimKey>,
) -> Option<(ClaimKey, u64)> {
    let mut released: Option<(ClaimKey, u64)> = None;
    for key in candidates {
        if taken.contains(&key) {
            continue;
        }
        match claims.get(&key) {
            None => return Some((key, 0)),
            Some(claim) if claim.owner.is_empty() => {
                if released
                    .as_ref()
                    .is_none_or(|(_, revision)| claim.revision < *revision)
                {
                    released = Some((key, claim.revision));
                }
            }
            Some(_) => {}
        }
    }
    released
}

/// An address for a pod in one of the node's ranges. `None`: all are in use.
pub fn pod_address(
    claims: &Claims,
    ranges: &[IpNet],
    owner: &str,
    taken: &mut BTreeSet<ClaimKey>,
) -> Option<(IpAddr, ClaimWrite)> {
    let candidates = ranges.iter().flat_map(usable).map(ClaimKey::PodAddress);
    let (key, revision) = pick(claims, candidates, taken)?;
    let ClaimKey::PodAddress(address) = key else {
        return None;
    };
    taken.insert(key.clone());
    Some((
        address,
        ClaimWrite {
            key,
            revision,
            owner: owner.to_owned(),
        },
    ))
}

/// A range of pod addresses for a node. `None`: the cluster's range is used up.
pub fn node_range(world: &World, node: &str) -> Option<(IpNet, ClaimWrite)> {
    let settings = &world.settings;
    // A node that was taken out and comes back has its range still.
    let own = world.claims_by_owner.get(node).into_iter().flatten();
    for key in own {
        if let (ClaimKey::NodeRange(range), Some(claim)) = (key, world.claims.get(key)) {
            let (key, revision, owner) = (key.clone(), claim.revision, node.to_owned());
            return Some((
                *range,
                ClaimWrite {
                    key,
                    revision,
                    owner,
                },
            ));
        }
    }
    let subnets = settings.pod_cidr.subnets(settings.node_prefix).ok()?;
    let candidates = subnets.map(ClaimKey::NodeRange);
    let (key, revision) = pick(&world.claims, candidates, &BTreeSet::new())?;
    let ClaimKey::NodeRange(range) = key else {
        return None;
    };
    Some((
        range,
        ClaimWrite {
            key,
            revision,
            owner: node.to_owned(),
        },
    ))
}

/// Releases what belonged to objects that are gone, and forgets identities that
/// no pod has any more.
pub fn release(world: &World) -> Plan {
    let writes: Vec<ClaimWrite> = (world.orphan_claims.iter())
        .filter_map(|key| {
            let claim = world.claims.get(key)?;
            // A claim and its owner come with one write, the claim first.
            if claim.owner.is_empty() || world.owner_exists(key, &claim.owner) {
                return None;
            }
            Some(ClaimWrite {
                key: key.clone(),
                revision: claim.revision,
                owner: String::new(),
            })
        })
        .chain(identity::unused(world))
        .collect();
    let mut plan = Plan::default();
    // Not all at once: a conflict of one must not keep the others.
    for part in writes.chunks(64) {
        plan.writes.push(Write::Claims(part.to_vec()));
    }
    plan
}

/// Why a Service cannot have what it asks for, or needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceProblem {
    /// `spec.clusterIPs[index]` is not an address of the range, or not one
    /// that is given out.
    OutOfRange {
        /// Which.
        index: usize,
        /// What was asked for.
        address: String,
    },
    /// Another service has it.
    Taken {
        /// Which.
        index: usize,
        /// What was asked for.
        address: String,
    },
    /// Nothing is left: "addresses", "service numbers", "port numbers".
    UsedUp {
        /// What of.
        what: &'static str,
    },
}

/// Gives a Service its addresses and numbers, and takes the claims that go with
/// them. What `old` has, it keeps. Headless and ExternalName services get none.
pub fn service(
    claims: &Claims,
    range: &IpNet,
    service: &mut Service,
    old: Option<&Service>,
) -> Result<Vec<ClaimWrite>, ServiceProblem> {
    let owner = object::uid(&service.metadata).to_owned();
    let mut writes = Vec::new();
    let Some(spec) = &mut service.spec else {
        return Ok(writes);
    };
    let external = spec.type_.as_deref() == Some("ExternalName");
    let before = old.and_then(|o| o.spec.as_ref());
    let mut asked: Vec<String> = spec.cluster_ips.clone().unwrap_or_default();
    if asked.is_empty() {
        asked.extend(spec.cluster_ip.clone().filter(|ip| !ip.is_empty()));
    }
    if asked.is_empty() && !external {
        asked = before
            .and_then(|s| s.cluster_ips.clone())
            .unwrap_or_default();
    }
    if external || asked.first().is_some_and(|a| a == "None") {
        return Ok(writes);
    }
    if asked.is_empty() {
        // The first address is left for the cluster's own use.
        let candidates = usable(range).map(ClaimKey::ServiceAddress);
        let used_up = ServiceProblem::UsedUp { what: "addresses" };
        let (key, revision) = pick(claims, candidates, &BTreeSet::new()).ok_or(used_up)?;
        if let ClaimKey::ServiceAddress(address) = &key {
            asked.push(address.to_string());
        }
        writes.push(ClaimWrite {
            key,
            revision,
            owner: owner.clone(),
        });
    } else {
        for (index, text) in asked.iter().enumerate() {
            writes.extend(asked_address(claims, range, index, text, &owner)?);
        }
    }
    spec.cluster_ip = asked.first().cloned();
    spec.cluster_ips = Some(asked);
    let ports = spec.ports.clone().unwrap_or_default();
    number(claims, service, &ports, old, &owner, &mut writes)?;
    Ok(writes)
}

/// Claims an address that a Service names, unless it has it already.
fn asked_address(
    claims: &Claims,
    range: &IpNet,
    index: usize,
    text: &str,
    owner: &str,
) -> Result<Option<ClaimWrite>, ServiceProblem> {
    let out = || ServiceProblem::OutOfRange {
        index,
        address: text.to_owned(),
    };
    let address: IpAddr = text
        .parse()
        .map_err(|_parse: std::net::AddrParseError| out())?;
    let edge = address == range.network() || address == range.broadcast();
    if !range.contains(&address) || edge {
        return Err(out());
    }
    let key = ClaimKey::ServiceAddress(address);
    let revision = match claims.get(&key) {
        Some(claim) if claim.owner == owner => return Ok(None),
        Some(claim) if !claim.owner.is_empty() => {
            return Err(ServiceProblem::Taken {
                index,
                address: text.to_owned(),
            });
        }
        Some(claim) => claim.revision,
        None => 0,
    };
    Ok(Some(ClaimWrite {
        key,
        revision,
        owner: owner.to_owned(),
    }))
}

/// Gives numbers to the service and to the ports that have none.
fn number(
    claims: &Claims,
    service: &mut Service,
    ports: &[ServicePort],
    old: Option<&Service>,
    owner: &str,
    writes: &mut Vec<ClaimWrite>,
) -> Result<(), ServiceProblem> {
    let (old_id, old_ports) = old.map(ids).unwrap_or_default();
    let mut taken = BTreeSet::new();
    let mut next = |make: fn(u32) -> ClaimKey, what| {
        let candidates = (1..MOST_IDS).map(make);
        let picked = pick(claims, candidates, &taken);
        let (key, revision) = picked.ok_or(ServiceProblem::UsedUp { what })?;
        let number = match key {
            ClaimKey::ServiceId(n) | ClaimKey::PortId(n) => n,
            ClaimKey::PodAddress(_)
            | ClaimKey::ServiceAddress(_)
            | ClaimKey::NodeRange(_)
            | ClaimKey::Identity(_) => 0,
        };
        taken.insert(key.clone());
        writes.push(ClaimWrite {
            key,
            revision,
            owner: owner.to_owned(),
        });
        Ok(number)
    };
    let id = match old_id {
        Some(id) => id,
        None => next(ClaimKey::ServiceId, "service numbers")?,
    };
    let mut numbers = Vec::new();
    for port in ports {
        let name = port.name.clone().unwrap_or_default();
        let number = match old_ports.get(&name) {
            Some(number) => *number,
            None => next(ClaimKey::PortId, "port numbers")?,
        };
        numbers.push(format!("{name}={number}"));
    }
    // Ports that are gone give their numbers back.
    for (name, number) in &old_ports {
        let gone = ports
            .iter()
            .all(|p| p.name.as_deref().unwrap_or("") != name);
        let key = ClaimKey::PortId(*number);
        if let Some(claim) = claims.get(&key).filter(|c| gone && c.owner == owner) {
            writes.push(ClaimWrite {
                key,
                revision: claim.revision,
                owner: String::new(),
            });
        }
    }
    let annotations = service.metadata.annotations.get_or_insert_default();
    annotations.insert(SERVICE_ID.to_owned(), id.to_string());
    annotations.insert(PORT_IDS.to_owned(), numbers.join(","));
    Ok(())
}

/// The numbers that a Service has: its own, and those of its ports by name.
pub fn ids(service: &Service) -> (Option<u32>, BTreeMap<String, u32>) {
    let id = object::annotation(&service.metadata, SERVICE_ID).and_then(|id| id.parse().ok());
    let ports = object::annotation(&service.metadata, PORT_IDS).unwrap_or("");
    let pairs = ports.split(',').filter_map(|pair| pair.rsplit_once('='));
    (
        id,
        pairs
            .filter_map(|(name, id)| Some((name.to_owned(), id.parse().ok()?)))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::for_tests::{service as service_of, typed};

    fn take(claims: &mut Claims, revision: u64, write: &ClaimWrite) {
        claims.insert(
            write.key.clone(),
            Claim {
                owner: write.owner.clone(),
                revision,
            },
        );
    }

    #[test]
    fn addresses_are_used_again_as_late_as_possible() {
        let ranges: Vec<IpNet> = vec!["10.0.0.0/29".parse().unwrap()];
        let mut claims = Claims::new();
        let mut order = Vec::new();
        for revision in 1..=5 {
            let (address, write) =
                pod_address(&claims, &ranges, "pod", &mut BTreeSet::new()).unwrap();
            order.push(address.to_string());
            take(&mut claims, revision, &write);
        }
        // Neither the network's, nor the first, nor the broadcast address.
        assert_eq!(
            order,
            ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
        );
        assert_eq!(
            pod_address(&claims, &ranges, "pod", &mut BTreeSet::new()),
            None
        );
        for (revision, released) in [(6, "10.0.0.4"), (7, "10.0.0.2")] {
            let key = ClaimKey::PodAddress(released.parse().unwrap());
            claims.insert(
                key,
                Claim {
                    owner: String::new(),
                    revision,
                },
            );
        }
        let mut taken = BTreeSet::new();
        let mut next = || {
            pod_address(&claims, &ranges, "p", &mut taken).map(|(a, w)| (a.to_string(), w.revision))
        };
        assert_eq!(next(), Some(("10.0.0.4".to_owned(), 6)));
        assert_eq!(next(), Some(("10.0.0.2".to_owned(), 7)));
        assert_eq!(next(), None);
    }

    #[test]
    fn a_service_keeps_its_numbers() {
        let range: IpNet = "10.96.0.0/24".parse().unwrap();
        let mut claims = Claims::new();
        let mut first = service_of(json!(80));
        for (revision, write) in (1..).zip(service(&claims, &range, &mut first, None).unwrap()) {
            take(&mut claims, revision, &write);
        }
        assert_eq!(
            ids(&first),
            (Some(1), BTreeMap::from([("http".to_owned(), 1)]))
        );
        // A port more and one less: the one that stays keeps its number.
        let mut next = service_of(json!(80));
        next.spec.as_mut().unwrap().ports =
            typed(json!([{"name": "admin", "port": 1}, {"name": "http", "port": 80}]));
        let writes = service(&claims, &range, &mut next, Some(&first)).unwrap();
        assert_eq!(
            next.spec.as_ref().unwrap().cluster_ip,
            first.spec.as_ref().unwrap().cluster_ip
        );
        assert_eq!(
            ids(&next).1,
            BTreeMap::from([("admin".to_owned(), 2), ("http".to_owned(), 1)])
        );
        assert_eq!(writes.len(), 1, "{writes:?}");
        for (revision, write) in (9..).zip(writes) {
            take(&mut claims, revision, &write);
        }
        let mut last = service_of(json!(80));
        let writes = service(&claims, &range, &mut last, Some(&next)).unwrap();
        assert_eq!(writes.len(), 1);
        assert_eq!(
            (&writes[0].key, writes[0].owner.as_str()),
            (&ClaimKey::PortId(2), "")
        );
    }

    #[test]
    fn what_a_service_may_not_ask_for() {
        let range: IpNet = "10.96.0.0/24".parse().unwrap();
        let other = ClaimKey::ServiceAddress("10.96.0.9".parse().unwrap());
        let claims = Claims::from([(
            other,
            Claim {
                owner: "other".to_owned(),
                revision: 1,
            },
        )]);
        let rows = [
            ("10.96.0.9", false),
            ("10.96.1.9", false),
            ("10.96.0.0", false),
            ("10.96.0.255", false),
            ("x", false),
            ("10.96.0.10", true),
            ("None", true),
        ];
        for (asked, allowed) in rows {
            let mut asking = service_of(json!(80));
            asking.spec.as_mut().unwrap().cluster_ip = Some(asked.to_owned());
            let got = service(&claims, &range, &mut asking, None);
            assert_eq!(got.is_ok(), allowed, "{asked}: {got:?}");
        }
    }
}
