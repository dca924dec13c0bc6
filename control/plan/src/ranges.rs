//! What was given out of other ranges than those that are configured now.
//!
//! A range that is changed to one that holds all that was given out is no more than a larger
//! or smaller pool. Any other change takes the routes of nodes and services that exist away.
//! Called by `control-server` at its start.

use std::net::IpAddr;

use crate::claim::ClaimKey;
use crate::object::Name;
use crate::settings::Settings;
use crate::world::World;

/// An object that has what the configuration does not allow any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    /// "Service default/web", "Node n1"
    pub object: String,
    /// Its address or range.
    pub has: String,
    /// Key of the configuration: "service_cidr".
    pub key: &'static str,
}

impl std::fmt::Display for Outside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} has {}", self.object, self.has)
    }
}

/// The key of the configuration that a claim contradicts.
fn contradicted(settings: &Settings, claim: &ClaimKey) -> Option<&'static str> {
    let outside = |ip: &IpAddr| !settings.service_cidr.contains(ip);
    match claim {
        ClaimKey::ServiceAddress(address) => outside(address).then_some("service_cidr"),
        ClaimKey::NodeRange(range) if !settings.pod_cidr.contains(range) => Some("pod_cidr"),
        // Ranges of two sizes would overlap.
        ClaimKey::NodeRange(range) => {
            (range.prefix_len() != settings.node_prefix).then_some("node_prefix")
        }
        // Pods have addresses of their nodes' ranges; node ports outside of the range stay,
        // as in Kubernetes; services get other addresses where their pool is gone.
        ClaimKey::PodAddress(_)
        | ClaimKey::ServiceId(_)
        | ClaimKey::PortId(_)
        | ClaimKey::NodePort(_)
        | ClaimKey::LoadBalancerAddress(_)
        | ClaimKey::Identity(_) => None,
    }
}

/// All objects that are outside, by key of the configuration and name.
pub fn outside(world: &World) -> Vec<Outside> {
    let mut found: Vec<Outside> = (world.claims().iter())
        .filter_map(|(claim, held)| {
            let key = contradicted(&world.settings, claim)?;
            // Released, or about to be.
            if held.owner.is_empty() || !world.indexes.owner_exists(claim, &held.owner) {
                return None;
            }
            let (object, has) = match claim {
                ClaimKey::NodeRange(range) => (format!("Node {}", held.owner), range.to_string()),
                ClaimKey::ServiceAddress(address) => {
                    let service = world.indexes.by_uid.get(&held.owner);
                    let service = service.map_or_else(|| held.owner.clone(), ToString::to_string);
                    (service, address.to_string())
                }
                ClaimKey::PodAddress(_)
                | ClaimKey::ServiceId(_)
                | ClaimKey::PortId(_)
                | ClaimKey::NodePort(_)
                | ClaimKey::LoadBalancerAddress(_)
                | ClaimKey::Identity(_) => return None,
            };
            Some(Outside { object, has, key })
        })
        .collect();
    // Its address is in the server's certificate and in the environment of pods.
    let first = world.settings.service_cidr.hosts().next();
    let api = world.services.get(&Name::new("default", "kubernetes"));
    let address = api.and_then(|s| s.spec.as_ref()?.cluster_ip.as_deref());
    if let Some(address) = address
        && address.parse().ok() != first
    {
        found.push(Outside {
            object: "Service default/kubernetes".to_owned(),
            has: format!("{address}, which must be the first address"),
            key: "service_cidr",
        });
    }
    found.sort_by(|a, b| (a.key, &a.object).cmp(&(b.key, &b.object)));
    found
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::for_tests::{meta, typed, world};
    use crate::registry::Object;

    #[test]
    fn the_api_s_address_stays_the_first_of_the_range() {
        let mut world = world();
        let service = json!({"metadata": meta("kubernetes", &[]),
            "spec": {"clusterIP": "10.96.0.1"}});
        world.put(Object::Service(Arc::new(typed(service))));
        // (range, what is refused)
        for (range, refused) in [
            ("10.96.0.0/16", None),
            ("10.96.0.0/12", None),
            (
                "10.64.0.0/10",
                Some("Service default/kubernetes has 10.96.0.1, which must be the first address"),
            ),
        ] {
            world.settings.service_cidr = range.parse().unwrap();
            let found: Vec<String> = outside(&world).iter().map(ToString::to_string).collect();
            assert_eq!(found.first().map(String::as_str), refused, "{range}");
        }
    }
}
