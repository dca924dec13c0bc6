//! Addresses: ranges of nodes, addresses of pods and services, numbers of
//! services and their ports.
//!
//! Everything is held by a claim (`claim.rs`), and picked from a pool (`pool.rs`).
//! Called by `node.rs`, and by control-server when a Service is written.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort};

use crate::action::{Plan, Write};
use crate::claim::{ClaimKey, ClaimWrite};
use crate::pool::{Claims, Draw, Pool};
use crate::world::World;
use crate::{identity, object};

/// Annotation with the number of a Service on the node stream.
pub const SERVICE_ID: &str = "hydrofoil.dev/service-id";
/// Annotation with the numbers of its ports: "http=3,metrics=4"; a port
/// without a name is "=3".
pub const PORT_IDS: &str = "hydrofoil.dev/port-ids";
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
    let (key, revision) = world.claims().draw(pool).next()?;
    let ClaimKey::NodeRange(range) = key else {
        return None;
    };
    taken(range, key, revision)
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
    let ports = spec.ports.clone().unwrap_or_default();
    number(claims, service, &ports, old, &owner, &mut writes)?;
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
    }
    let Some(old) = old else { return Vec::new() };
    let (id, ports) = ids(old);
    let spec = old.spec.as_ref();
    let addresses = spec.and_then(|s| s.cluster_ips.clone()).unwrap_or_default();
    let addresses = addresses.iter().filter_map(|a| a.parse().ok());
    let keys = addresses.map(ClaimKey::ServiceAddress);
    let keys = keys.chain(id.map(ClaimKey::ServiceId));
    let keys = keys.chain(ports.into_values().map(ClaimKey::PortId));
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
    ports: &[ServicePort],
    old: Option<&Service>,
    owner: &str,
    writes: &mut Vec<ClaimWrite>,
) -> Result<(), ServiceProblem> {
    let (old_id, old_ports) = old.map(ids).unwrap_or_default();
    let mut next = |draw: &mut Draw<'_>, what| {
        let used_up = ServiceProblem::UsedUp { what };
        let (key, revision) = draw.next().ok_or(used_up)?;
        let number = match key {
            ClaimKey::ServiceId(n) | ClaimKey::PortId(n) => n,
            ClaimKey::PodAddress(_)
            | ClaimKey::ServiceAddress(_)
            | ClaimKey::NodeRange(_)
            | ClaimKey::Identity(_) => 0,
        };
        writes.push(ClaimWrite {
            key,
            revision,
            owner: owner.to_owned(),
        });
        Ok(number)
    };
    let id = match old_id {
        Some(id) => id,
        None => next(&mut claims.draw(Pool::ServiceIds), "service numbers")?,
    };
    let mut numbers = Vec::new();
    let mut free = claims.draw(Pool::PortIds);
    for port in ports {
        let name = port.name.clone().unwrap_or_default();
        let number = match old_ports.get(&name) {
            Some(number) => *number,
            None => next(&mut free, "port numbers")?,
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
    use crate::claim::Claim;
    use crate::for_tests::{service as service_of, typed};

    fn take(claims: &mut Claims, revision: u64, write: &ClaimWrite) {
        let owner = write.owner.clone();
        claims.put(&write.key, Some(Claim { owner, revision }));
    }

    #[test]
    fn a_service_keeps_its_numbers() {
        let range: IpNet = "10.96.0.0/24".parse().unwrap();
        let mut claims = Claims::default();
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
            let got = service(&claims, &range, &mut asking, None);
            assert_eq!(got.is_ok(), allowed, "{asked}: {got:?}");
        }
    }
}
