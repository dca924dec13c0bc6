//! Node ports of a Service: which are taken, which are given, which are given back.
//!
//! Kubernetes' pkg/registry/core/service (initNodePorts, updateNodePorts): one number
//! belongs to one service, which may use it for several protocols. Called by `ipam.rs`.

use std::collections::{BTreeMap, BTreeSet};

use control_api::service_type::{allocates_node_ports, needs_health_check};
use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use crate::claim::{ClaimKey, ClaimWrite};
use crate::object;
use crate::pool::{Claims, Draw, Pool, PortRange};
use crate::service_problem::{ServiceProblem, Use};

/// The ports that a Service names.
fn named(spec: &ServiceSpec) -> impl Iterator<Item = u16> + '_ {
    let ports = spec.ports.iter().flatten().filter_map(|p| p.node_port);
    let all = ports.chain(spec.health_check_node_port);
    all.filter_map(|port| u16::try_from(port).ok().filter(|port| *port != 0))
}

/// One service, while its ports are picked.
struct Picking<'a> {
    claims: &'a Claims,
    range: PortRange,
    owner: &'a str,
    free: Draw<'a>,
    /// Ports that it has or takes.
    kept: BTreeSet<u16>,
    writes: Vec<ClaimWrite>,
}

impl Picking<'_> {
    /// Takes a port that the service names.
    fn take(&mut self, port: i32, of: Use) -> Result<(), ServiceProblem> {
        let range = self.range;
        let outside = ServiceProblem::PortOutOfRange { of, port, range };
        let Ok(number) = u16::try_from(port) else {
            return Err(outside);
        };
        if self.kept.contains(&number) {
            // For another protocol; admission has refused it for the same one.
            return Ok(());
        }
        let key = ClaimKey::NodePort(number);
        let revision = match self.claims.get(&key) {
            Some(claim) if claim.owner == self.owner => {
                self.kept.insert(number);
                return Ok(());
            }
            Some(claim) if !claim.owner.is_empty() => {
                return Err(ServiceProblem::PortTaken { of, port });
            }
            Some(claim) => claim.revision,
            None => 0,
        };
        if !range.contains(number) {
            return Err(outside);
        }
        self.claim(key, number, revision);
        Ok(())
    }

    /// Takes any port.
    fn any(&mut self) -> Result<i32, ServiceProblem> {
        loop {
            let used_up = ServiceProblem::UsedUp { what: "node ports" };
            let (key, revision) = self.free.next().ok_or(used_up)?;
            let ClaimKey::NodePort(number) = key else {
                continue;
            };
            if !self.kept.contains(&number) {
                self.claim(key, number, revision);
                return Ok(i32::from(number));
            }
        }
    }

    fn claim(&mut self, key: ClaimKey, number: u16, revision: u64) {
        self.kept.insert(number);
        self.writes.push(ClaimWrite {
            key,
            revision,
            owner: self.owner.to_owned(),
        });
    }
}

/// Gives a Service the node ports that its type has, and takes back those that it had
/// and names no more.
pub(crate) fn assign(
    claims: &Claims,
    range: PortRange,
    service: &mut Service,
    old: Option<&Service>,
) -> Result<Vec<ClaimWrite>, ServiceProblem> {
    let owner = object::uid(&service.metadata).to_owned();
    let mut picking = Picking {
        claims,
        range,
        owner: &owner,
        free: claims.draw(Pool::NodePorts(range)),
        kept: BTreeSet::new(),
        writes: Vec::new(),
    };
    if let Some(spec) = &mut service.spec {
        pick(spec, &mut picking)?;
    }
    let Picking {
        kept, mut writes, ..
    } = picking;
    let before = old.and_then(|old| old.spec.as_ref());
    let before: BTreeSet<u16> = before.into_iter().flat_map(named).collect();
    for number in before.difference(&kept) {
        let key = ClaimKey::NodePort(*number);
        if let Some(claim) = claims.get(&key).filter(|claim| claim.owner == owner) {
            writes.push(ClaimWrite {
                key,
                revision: claim.revision,
                owner: String::new(),
            });
        }
    }
    Ok(writes)
}

fn pick(spec: &mut ServiceSpec, picking: &mut Picking<'_>) -> Result<(), ServiceProblem> {
    let allocates = allocates_node_ports(spec);
    let checked = needs_health_check(spec);
    let ports = spec.ports.as_deref_mut().unwrap_or_default();
    let is_set = |port: &Option<i32>| port.filter(|port| *port != 0);
    // Of one number that is named for several protocols, the first.
    let mut of_number: BTreeMap<i32, i32> = BTreeMap::new();
    for (index, port) in ports.iter().enumerate() {
        if let Some(node_port) = is_set(&port.node_port) {
            picking.take(node_port, Use::Port(index))?;
            of_number.entry(port.port).or_insert(node_port);
        }
    }
    if checked && let Some(port) = is_set(&spec.health_check_node_port) {
        picking.take(port, Use::HealthCheck)?;
    }
    for port in ports.iter_mut().filter(|p| is_set(&p.node_port).is_none()) {
        if !allocates {
            continue;
        }
        let node_port = match of_number.get(&port.port) {
            Some(same) => *same,
            None => picking.any()?,
        };
        of_number.insert(port.port, node_port);
        port.node_port = Some(node_port);
    }
    if checked && is_set(&spec.health_check_node_port).is_none() {
        spec.health_check_node_port = Some(picking.any()?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::claim::Claim;
    use crate::for_tests::{settings, typed};
    use crate::ipam;

    /// Claims, and services by name.
    struct Store {
        claims: Claims,
        services: BTreeMap<&'static str, Service>,
        revision: u64,
    }

    impl Store {
        /// Writes a service: (node ports, health check port), or why not.
        fn write(
            &mut self,
            name: &'static str,
            spec: serde_json::Value,
        ) -> Result<(Vec<i32>, i32), ServiceProblem> {
            let mut service: Service =
                typed(json!({"metadata": crate::for_tests::meta(name, &[]), "spec": spec}));
            let old = self.services.get(name);
            let writes = ipam::service(&self.claims, &settings(), &mut service, old)?;
            for write in writes {
                self.revision += 1;
                let (owner, revision) = (write.owner, self.revision);
                self.claims.put(&write.key, Some(Claim { owner, revision }));
            }
            let spec = service.spec.clone().unwrap();
            self.services.insert(name, service);
            let ports = spec.ports.into_iter().flatten();
            let ports = ports.map(|p| p.node_port.unwrap_or_default()).collect();
            Ok((ports, spec.health_check_node_port.unwrap_or_default()))
        }

        fn taken(&self) -> Vec<u16> {
            let held = self
                .claims
                .iter()
                .filter(|(_, claim)| !claim.owner.is_empty());
            let ports = held.filter_map(|(key, _)| {
                if let ClaimKey::NodePort(port) = key {
                    Some(*port)
                } else {
                    None
                }
            });
            ports.collect()
        }
    }

    fn store() -> Store {
        let mut claims = Claims::default();
        claims.register(Pool::NodePorts(settings().node_ports));
        let services = BTreeMap::new();
        Store {
            claims,
            services,
            revision: 0,
        }
    }

    #[test]
    fn ports_are_given_kept_and_given_back() {
        let mut store = store();
        let ports = json!([{"name": "a", "port": 80, "protocol": "TCP"},
            {"name": "b", "port": 53, "protocol": "TCP"}, {"name": "c", "port": 53, "protocol": "UDP"}]);
        let (given, _) = store
            .write("s", json!({"type": "NodePort", "ports": ports}))
            .unwrap();
        assert_eq!(
            given,
            [30_000, 30_001, 30_001],
            "one number for both protocols"
        );
        // One port less, another one named: the others stay.
        let ports = json!([{"name": "b", "port": 53, "protocol": "TCP", "nodePort": 30_001},
            {"name": "d", "port": 1, "protocol": "TCP", "nodePort": 30_005}]);
        store
            .write("s", json!({"type": "NodePort", "ports": ports}))
            .unwrap();
        assert_eq!(store.taken(), [30_001, 30_005]);
        // Asked for: taken, out of the range.
        let asks =
            |port: i32| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
        let of = Use::Port(0);
        let taken = ServiceProblem::PortTaken { of, port: 30_005 };
        assert_eq!(store.write("t", asks(30_005)), Err(taken));
        for port in [29_999, 30_010, 70_000] {
            let range = settings().node_ports;
            let outside = ServiceProblem::PortOutOfRange { of, port, range };
            assert_eq!(store.write("t", asks(port)), Err(outside));
        }
        assert_eq!(store.write("t", asks(30_009)), Ok((vec![30_009], 0)));
        // The type changes: all are free again.
        store
            .write("s", json!({"type": "ClusterIP", "ports": [{"port": 80}]}))
            .unwrap();
        assert_eq!(store.taken(), [30_009]);
        let alias = json!({"type": "ExternalName", "externalName": "a.example"});
        store.write("t", alias).unwrap();
        assert_eq!(store.taken(), [0_u16; 0]);
    }

    #[test]
    fn load_balancers_may_decline_and_are_checked() {
        let mut store = store();
        let spec = |allocates: bool, policy: &str, port: i32| {
            json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": allocates,
                "externalTrafficPolicy": policy, "ports": [{"port": 80, "nodePort": port}]})
        };
        assert_eq!(
            store.write("s", spec(false, "Cluster", 0)),
            Ok((vec![0], 0))
        );
        assert_eq!(
            store.write("s", spec(false, "Cluster", 30_007)),
            Ok((vec![30_007], 0))
        );
        let (ports, check) = store.write("s", spec(true, "Local", 30_007)).unwrap();
        assert_eq!((ports.as_slice(), check), ([30_007].as_slice(), 30_000));
        // A number of its own for each port, for connections from outside.
        let numbers = ipam::ids(&store.services["s"]);
        assert_eq!((&numbers.ports[""], &numbers.external[""]), (&1, &2));
        store.write("s", spec(true, "Cluster", 30_007)).unwrap();
        assert_eq!(store.taken(), [30_007]);
        assert!(ipam::ids(&store.services["s"]).external.is_empty());
    }

    #[test]
    fn the_range_may_be_used_up() {
        let mut store = store();
        let ports: Vec<_> = (1..=10)
            .map(|n| json!({"name": n.to_string(), "port": n}))
            .collect();
        store
            .write("s", json!({"type": "NodePort", "ports": ports}))
            .unwrap();
        let more = json!({"type": "NodePort", "ports": [{"port": 80}]});
        let used_up = ServiceProblem::UsedUp { what: "node ports" };
        assert_eq!(store.write("t", more), Err(used_up));
        assert_eq!(store.taken().len(), 10);
    }
}
