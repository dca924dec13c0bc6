//! Addresses: ranges of nodes, addresses of pods and services, numbers of
//! services and their ports.
//!
//! Everything is held by a claim (`claim.rs`), and picked from a pool (`pool.rs`).
//! Called by `node.rs`, and by control-server when a Service is written.

use std::collections::BTreeMap;
use std::net::IpAddr;

use control_api::service_type::policies_differ;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;

use crate::action::{Plan, Write};
use crate::claim::{ClaimKey, ClaimWrite};
use crate::nodeport;
use crate::pool::{Claims, Draw, Pool};
use crate::service_problem::ServiceProblem;
use crate::settings::Settings;
use crate::world::World;
use crate::{identity, object};

/// Annotation with the number of a Service on the node stream.
pub const SERVICE_ID: &str = "hydrofoil.dev/service-id";
/// Annotation with the numbers of its ports: "http=3,metrics=4"; a port
/// without a name is "=3".
pub const PORT_IDS: &str = "hydrofoil.dev/port-ids";
/// Annotation with the second numbers of its ports, for connections from outside, where
/// these have other endpoints.
pub const EXTERNAL_PORT_IDS: &str = "hydrofoil.dev/external-port-ids";

/// Of one range that a node was made with, so many are claimed at most.
const PARTS: usize = 4096;

/// A range of pod addresses for a node. `None`: the cluster's range is used up.
pub fn node_range(world: &World, node: &str) -> Option<(IpNet, ClaimWrite)> {
    let settings = &world.settings;
    let taken = |range: IpNet, key: ClaimKey, revision: u64| {
        let owner = node.to_owned();
        let claim = ClaimWrite {
            key,
            revision,
            owner,
        };
        Some((range, claim))
    };
    // A node that was removed and comes back has its range still.
    let own = world
        .indexes
        .claims_by_owner
        .get(node)
        .into_iter()
        .flatten();
    for key in own {
        if let (ClaimKey::NodeRange(range), Some(claim)) = (key, world.claims().get(key)) {
            return taken(*range, key.clone(), claim.revision);
        }
    }
    let pool = Pool::NodeRanges(settings.pod_cidr, settings.node_prefix);
    world.claims().draw(pool).find_map(|(key, revision)| {
        let ClaimKey::NodeRange(range) = key else {
            return None;
        };
        // A node that was made with it may have no claim yet.
        let mut others = world
            .nodes
            .values()
            .flat_map(|node| object::pod_cidrs(node));
        let is_others = others.any(|other| other.contains(&range) || range.contains(&other));
        taken(range, key, revision).filter(|_| !is_others)
    })
}

/// The ranges, as nodes are given them, that these of one node take up; those that are
/// outside of the cluster's are not given to any node.
pub(crate) fn parts(
    settings: &Settings,
    ranges: impl Iterator<Item = IpNet>,
) -> impl Iterator<Item = IpNet> {
    let (all, prefix) = (settings.pod_cidr, settings.node_prefix);
    let pieces = move |range: IpNet| {
        let range = range.trunc();
        let within = all.contains(&range);
        let whole = (range.prefix_len() > prefix)
            .then(|| IpNet::new(range.addr(), prefix).ok())
            .flatten();
        let pieces = (range.prefix_len() <= prefix)
            .then(|| range.subnets(prefix).ok())
            .flatten();
        let pieces = pieces.into_iter().flatten().take(PARTS);
        whole
            .map(|whole| whole.trunc())
            .into_iter()
            .chain(pieces)
            .filter(move |_| within)
    };
    ranges.flat_map(pieces)
}

/// Releases what belonged to objects that are gone, and forgets identities that
/// no pod has any more.
pub fn release(world: &World) -> Plan {
    let writes: Vec<ClaimWrite> = (world.indexes.orphan_claims.iter())
        .filter_map(|key| {
            let claim = world.claims().get(key)?;
            // A claim and its owner come with one write, the claim first.
            if claim.owner.is_empty() || world.indexes.owner_exists(key, &claim.owner) {
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

/// Gives a Service its addresses, node ports and numbers, and takes the claims that go
/// with them. What `old` has, it keeps. Headless and ExternalName services get none.
pub fn service(
    claims: &Claims,
    settings: &Settings,
    service: &mut Service,
    old: Option<&Service>,
) -> Result<Vec<ClaimWrite>, ServiceProblem> {
    let mut writes = numbered(claims, &settings.service_cidr, service, old)?;
    writes.extend(nodeport::assign(claims, settings.node_ports, service, old)?);
    Ok(writes)
}

fn numbered(
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
    if external {
        return Ok(give_up(claims, service, old, &owner));
    }
    if asked.first().is_some_and(|a| a == "None") {
        return Ok(writes);
    }
    if asked.is_empty() {
        let used_up = ServiceProblem::UsedUp { what: "addresses" };
        let mut draw = claims.draw(Pool::ServiceAddresses(*range));
        let (key, revision) = draw.next().ok_or(used_up)?;
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
    number(claims, service, old, &owner, &mut writes)?;
    Ok(writes)
}

/// Takes from a Service that now stands for a name what it had with an address.
fn give_up(
    claims: &Claims,
    service: &mut Service,
    old: Option<&Service>,
    owner: &str,
) -> Vec<ClaimWrite> {
    if let Some(annotations) = &mut service.metadata.annotations {
        annotations.remove(SERVICE_ID);
        annotations.remove(PORT_IDS);
        annotations.remove(EXTERNAL_PORT_IDS);
    }
    let Some(old) = old else { return Vec::new() };
    let Numbers {
        service: id,
        ports,
        external,
    } = ids(old);
    let spec = old.spec.as_ref();
    let addresses = spec.and_then(|s| s.cluster_ips.clone()).unwrap_or_default();
    let addresses = addresses.iter().filter_map(|a| a.parse().ok());
    let keys = addresses.map(ClaimKey::ServiceAddress);
    let keys = keys.chain(id.map(ClaimKey::ServiceId));
    let ports = ports.into_values().chain(external.into_values());
    let keys = keys.chain(ports.map(ClaimKey::PortId));
    let held = keys.filter_map(|key| {
        let claim = claims.get(&key).filter(|claim| claim.owner == owner)?;
        Some(ClaimWrite {
            revision: claim.revision,
            owner: String::new(),
            key,
        })
    });
    held.collect()
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
    old: Option<&Service>,
    owner: &str,
    writes: &mut Vec<ClaimWrite>,
) -> Result<(), ServiceProblem> {
    let before = old.map(ids).unwrap_or_default();
    let mut next = |draw: &mut Draw<'_>, what| {
        let used_up = ServiceProblem::UsedUp { what };
        let (key, revision) = draw.next().ok_or(used_up)?;
        let number = match key {
            ClaimKey::ServiceId(n) | ClaimKey::PortId(n) => n,
            ClaimKey::PodAddress(_)
            | ClaimKey::ServiceAddress(_)
            | ClaimKey::NodeRange(_)
            | ClaimKey::NodePort(_)
            | ClaimKey::LoadBalancerAddress(_)
            | ClaimKey::Identity(_) => 0,
        };
        writes.push(ClaimWrite {
            key,
            revision,
            owner: owner.to_owned(),
        });
        Ok(number)
    };
    let id = match before.service {
        Some(id) => id,
        None => next(&mut claims.draw(Pool::ServiceIds), "service numbers")?,
    };
    let spec = service.spec.as_ref();
    let names = spec.into_iter().flat_map(|s| s.ports.iter().flatten());
    let names: Vec<String> = names.map(|p| p.name.clone().unwrap_or_default()).collect();
    let twice = spec.is_some_and(policies_differ);
    let mut free = claims.draw(Pool::PortIds);
    let mut given = |names: &[String], before: &BTreeMap<String, u32>| {
        let mut numbers = Vec::new();
        for name in names {
            let number = match before.get(name) {
                Some(number) => *number,
                None => next(&mut free, "port numbers")?,
            };
            numbers.push(format!("{name}={number}"));
        }
        Ok(numbers.join(","))
    };
    let ports = given(&names, &before.ports)?;
    let outside: &[String] = if twice { &names } else { &[] };
    let external = given(outside, &before.external)?;
    // Ports that are gone give their numbers back.
    let gone = before
        .ports
        .iter()
        .filter(|(name, _)| !names.contains(name));
    let unused = before.external.iter();
    let unused = unused.filter(|(name, _)| !outside.contains(name));
    for (_, number) in gone.chain(unused) {
        let key = ClaimKey::PortId(*number);
        if let Some(claim) = claims.get(&key).filter(|c| c.owner == owner) {
            writes.push(ClaimWrite {
                key,
                revision: claim.revision,
                owner: String::new(),
            });
        }
    }
    let annotations = service.metadata.annotations.get_or_insert_default();
    annotations.insert(SERVICE_ID.to_owned(), id.to_string());
    annotations.insert(PORT_IDS.to_owned(), ports);
    if external.is_empty() {
        annotations.remove(EXTERNAL_PORT_IDS);
    } else {
        annotations.insert(EXTERNAL_PORT_IDS.to_owned(), external);
    }
    Ok(())
}

/// Numbers of a Service on the node stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Its own; `None` for one without an address.
    pub service: Option<u32>,
    /// Of its ports, by name.
    pub ports: BTreeMap<String, u32>,
    /// The second ones of its ports, by name: see [`EXTERNAL_PORT_IDS`].
    pub external: BTreeMap<String, u32>,
}

/// The numbers that a Service has.
pub fn ids(service: &Service) -> Numbers {
    let text = |name| object::annotation(&service.metadata, name);
    let ports = |name| {
        let pairs = text(name).unwrap_or("").split(',');
        let pairs = pairs.filter_map(|pair| pair.rsplit_once('='));
        pairs
            .filter_map(|(name, id)| Some((name.to_owned(), id.parse().ok()?)))
            .collect()
    };
    Numbers {
        service: text(SERVICE_ID).and_then(|id| id.parse().ok()),
        ports: ports(PORT_IDS),
        external: ports(EXTERNAL_PORT_IDS),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::claim::Claim;
    use crate::for_tests::{service as service_of, typed};

    fn take(claims: &mut Claims, revision: u64, write: &ClaimWrite) {
        let owner = write.owner.clone();
        claims.put(&write.key, Some(Claim { owner, revision }));
    }

    #[test]
    fn a_service_keeps_its_numbers() {
        let settings = crate::for_tests::settings();
        let mut claims = Claims::default();
        let mut first = service_of(json!(80));
        for (revision, write) in (1..).zip(service(&claims, &settings, &mut first, None).unwrap()) {
            take(&mut claims, revision, &write);
        }
        let numbers = Numbers {
            service: Some(1),
            ports: BTreeMap::from([("http".to_owned(), 1)]),
            external: BTreeMap::new(),
        };
        assert_eq!(ids(&first), numbers);
        // A port more and one less: the one that stays keeps its number.
        let mut next = service_of(json!(80));
        next.spec.as_mut().unwrap().ports =
            typed(json!([{"name": "admin", "port": 1}, {"name": "http", "port": 80}]));
        let writes = service(&claims, &settings, &mut next, Some(&first)).unwrap();
        assert_eq!(
            next.spec.as_ref().unwrap().cluster_ip,
            first.spec.as_ref().unwrap().cluster_ip
        );
        assert_eq!(
            ids(&next).ports,
            BTreeMap::from([("admin".to_owned(), 2), ("http".to_owned(), 1)])
        );
        assert_eq!(writes.len(), 1, "{writes:?}");
        for (revision, write) in (9..).zip(writes) {
            take(&mut claims, revision, &write);
        }
        let mut last = service_of(json!(80));
        let writes = service(&claims, &settings, &mut last, Some(&next)).unwrap();
        assert_eq!(writes.len(), 1);
        assert_eq!(
            (&writes[0].key, writes[0].owner.as_str()),
            (&ClaimKey::PortId(2), "")
        );
    }

    #[test]
    fn what_a_service_may_not_ask_for() {
        let settings = crate::for_tests::settings();
        let other = ClaimKey::ServiceAddress("10.96.0.9".parse().unwrap());
        let mut claims = Claims::default();
        let owner = "other".to_owned();
        claims.put(&other, Some(Claim { owner, revision: 1 }));
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
            let got = service(&claims, &settings, &mut asking, None);
            assert_eq!(got.is_ok(), allowed, "{asked}: {got:?}");
        }
    }
}
