//! What the service maps shall be: frontends, backends with stable numbers and
//! generations, choice tables.
//!
//! A backend that is only terminating leaves its table and keeps its number and
//! generation, so that its connections drain; a removed one's generation moves, so
//! that each of its flows notices at its next packet. Work is proportional to the
//! service that changed. The kernel's maps are written by `apply.rs` of the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ebpf_common::maps::MAX_BACKENDS;
use ebpf_common::net::{Be16, protocol};
use ebpf_common::service::{ACTIVE, TERMINATING};
use proto::v1;

use crate::action::{Action, Problem};
use crate::choice::{self, Place};
use crate::frontend;
use crate::hostport::Owners;
use crate::maps::{Backend, Frontend, FrontendKey, Maps};
use crate::table;
use crate::world::Desired;

fn protocol_of(text: &str) -> Option<u8> {
    match text {
        "TCP" | "" => Some(protocol::TCP),
        "UDP" => Some(protocol::UDP),
        _ => None,
    }
}

fn port_of(number: u32) -> Option<Be16> {
    u16::try_from(number)
        .ok()
        .filter(|p| *p != 0)
        .map(Be16::new)
}

/// A share that is not said is 1.
fn weight_of(weight: u32) -> u16 {
    u16::try_from(weight).unwrap_or(u16::MAX).max(1)
}

/// A service port as the maps shall have it.
struct Wanted {
    name: String,
    /// `ebpf_common::service::algorithm::*`
    algorithm: u8,
    frontends: BTreeMap<FrontendKey, Frontend>,
    /// Keys of the choice tables: the port's own, and another one if a frontend leads to it.
    tables: Vec<u32>,
    /// (backend, its pod's name)
    backends: Vec<(Backend, String)>,
}

fn wanted(
    service: &v1::Service,
    place: Place<'_>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<u32, Wanted> {
    let name = format!("{}/{}", service.namespace, service.name);
    let mut ports: BTreeMap<u32, Wanted> = BTreeMap::new();
    let no_address = frontend::addresses(&service.cluster_ips).next().is_none();
    if no_address || service.node_local {
        // Headless, IPv6 only, or answered here: nothing for the data plane to translate.
        return ports;
    }
    for port in &service.ports {
        let mut refuse = |reason| {
            problems.push(Problem::ServicePort {
                service: name.clone(),
                port: port.name.clone(),
                reason,
            });
        };
        let Some(protocol) = protocol_of(&port.protocol) else {
            refuse("its protocol is neither TCP nor UDP");
            continue;
        };
        let (Some(number), true) = (port_of(port.port), port.id != 0) else {
            refuse("it has no port number or id");
            continue;
        };
        if ports.contains_key(&port.id) {
            refuse("another port of the service has its id");
            continue;
        }
        let label = if port.name.is_empty() {
            port.port.to_string()
        } else {
            port.name.clone()
        };
        let (tables, mut policies) = frontend::tables(service, port);
        let frontends = frontend::frontends(service, port, (number, protocol), tables);
        // A second table without a frontend would have no use, and nothing to find it by.
        let leads = |table: u32| frontends.values().any(|f| leads_to(f, table));
        policies.retain(|(table, _)| *table == port.id || leads(*table));
        let chosen: Vec<Vec<bool>> = policies
            .iter()
            .map(|(_, policy)| choice::chosen(*policy, &port.backends, place))
            .collect();
        let state_in = |table: usize, index: usize| {
            let chosen = chosen.get(table)?.get(index)?;
            Some(if *chosen { ACTIVE } else { TERMINATING })
        };
        let mut backends = Vec::with_capacity(port.backends.len());
        let mut places = BTreeSet::new();
        for (index, backend) in port.backends.iter().enumerate() {
            let (Ok(address), Some(target)) =
                (backend.address.parse::<Ipv4Addr>(), port_of(backend.port))
            else {
                refuse("a backend has no IPv4 address or no port");
                continue;
            };
            if !places.insert((address, target)) {
                continue;
            }
            let value = Backend {
                addr: address.into(),
                service_port: port.id,
                second_port: policies.get(1).map_or(0, |(table, _)| *table),
                port: target,
                protocol,
                state: state_in(0, index).unwrap_or(TERMINATING),
                weight: weight_of(backend.weight),
                second_state: state_in(1, index).unwrap_or(0),
                pad: 0,
            };
            backends.push((value, backend.pod_name.clone()));
        }
        if backends.len() > table::MOST {
            refuse("it has more backends than a choice table holds");
            backends.truncate(table::MOST);
        }
        let entry = Wanted {
            name: format!("{name}:{label}"),
            algorithm: table::algorithm_of(service.algorithm()),
            frontends,
            tables: policies.into_iter().map(|(table, _)| table).collect(),
            backends,
        };
        ports.insert(port.id, entry);
    }
    ports
}

fn leads_to(frontend: &Frontend, table: u32) -> bool {
    frontend.service_port == table || frontend.external == table
}

/// What brings the maps to what one service is now on the node at `place`; `None`: it
/// is gone.
///
/// Order: source ranges, new backends, tables, frontends, and only then removals the
/// other way round, so that no table ever names a free number, and no client is let in or
/// kept out meanwhile.
pub fn plan(
    id: u32,
    service: Option<&v1::Service>,
    place: Place<'_>,
    maps: &Maps,
) -> (Vec<Action>, Vec<Problem>) {
    let mut problems = Vec::new();
    let ports = service
        .map(|s| wanted(s, place, &mut problems))
        .unwrap_or_default();
    let mut actions = Vec::new();
    let mut removals = Vec::new();
    let mut vacant = maps.vacant();
    let mut keys = BTreeSet::new();
    let ranges: BTreeSet<_> = match (ports.is_empty(), service) {
        (false, Some(service)) => frontend::source_ranges(service).collect(),
        _ => BTreeSet::new(),
    };
    let known = maps.source_ranges(id);
    let fresh = ranges.difference(known);
    actions.extend(fresh.map(|range| Action::PutSourceRange { range: *range }));
    for (port_id, port) in &ports {
        let mut kept = BTreeSet::new();
        let mut numbered = Vec::with_capacity(port.backends.len());
        for (backend, name) in &port.backends {
            let slot = match maps.number(backend) {
                Some(slot) => slot,
                None => match vacant.next() {
                    Some(slot) => slot,
                    None => {
                        problems.push(Problem::BackendsFull {
                            service: port.name.clone(),
                            capacity: u32::try_from(MAX_BACKENDS - 1).unwrap_or(u32::MAX),
                        });
                        break;
                    }
                },
            };
            kept.insert(slot);
            if maps.backends().get(&slot) != Some(backend) {
                let name = name.clone();
                actions.push(Action::PutBackend {
                    id: slot,
                    backend: *backend,
                    name,
                });
            }
            numbered.push((slot, *backend));
        }
        for key in &port.tables {
            let active = numbered.iter().filter(|(_, one)| one.takes_new(*key));
            let table = table::build(port.algorithm, active.copied().collect());
            if maps.tables().get(key) != Some(&table) {
                actions.push(Action::PutTable {
                    port_id: *key,
                    table,
                });
            }
        }
        for (key, frontend) in &port.frontends {
            keys.insert(*key);
            if maps.frontends().get(key) != Some(frontend) {
                actions.push(Action::PutFrontend {
                    key: *key,
                    frontend: *frontend,
                    name: port.name.clone(),
                });
            }
        }
        removals.extend(
            maps.of_port(*port_id)
                .map(|(_, slot)| slot)
                .filter(|s| !kept.contains(s)),
        );
    }
    for key in maps.of_service(id).filter(|key| !keys.contains(key)) {
        actions.push(Action::DeleteFrontend { key: *key });
    }
    let tables: BTreeSet<u32> = ports.values().flat_map(|p| &p.tables).copied().collect();
    for port_id in maps.tables_of(id).filter(|table| !tables.contains(table)) {
        actions.push(Action::DeleteTable { port_id });
        removals.extend(maps.of_port(port_id).map(|(_, slot)| slot));
    }
    let left = known.difference(&ranges);
    actions.extend(left.map(|range| Action::DeleteSourceRange { range: *range }));
    for slot in removals {
        actions.push(Action::DeleteBackend { id: slot });
    }
    (actions, problems)
}

/// What is in the maps and belongs to no service that is wanted: left by an agent
/// that died between two writes, or by a cluster that the node was in before. `owners`:
/// pods with numbers of the node's own.
pub fn sweep(desired: &Desired, owners: &Owners, maps: &Maps) -> Vec<Action> {
    let services: BTreeSet<u32> = desired.services.values().map(|s| s.id).collect();
    let ports = || desired.services.values().flat_map(|s| &s.ports);
    let first: BTreeSet<u32> = ports().map(|p| p.id).collect();
    let second: BTreeSet<u32> = ports().map(|p| p.external_id).collect();
    let is_first = |id: &u32| first.contains(id) || owners.have_table(*id);
    let mut actions = Vec::new();
    let is_stray = |f: &Frontend| {
        let tables = [f.service_port, f.external];
        let mut tables = tables.iter().filter(|id| **id != 0);
        !(services.contains(&f.service) || owners.have_service(f.service))
            || tables.any(|id| !is_first(id) && !second.contains(id))
    };
    let mut named = BTreeSet::new();
    for (key, frontend) in maps.frontends() {
        if is_stray(frontend) {
            actions.push(Action::DeleteFrontend { key: *key });
        } else {
            named.extend([frontend.service_port, frontend.external]);
        }
    }
    // Another service may have taken all addresses of a port, which keeps its own table.
    let keeps = |table| is_first(table) || (second.contains(table) && named.contains(table));
    for port_id in maps.tables().keys().filter(|table| !keeps(table)) {
        actions.push(Action::DeleteTable { port_id: *port_id });
    }
    for (id, _) in maps
        .backends()
        .iter()
        .filter(|(_, b)| !is_first(&b.service_port))
    {
        actions.push(Action::DeleteBackend { id: *id });
    }
    let ranges = maps.all_source_ranges();
    for range in ranges.filter(|r| !services.contains(&r.range.service)) {
        actions.push(Action::DeleteSourceRange { range: *range });
    }
    actions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate;
    use crate::time::Moment;
    use crate::world::Observed;
    use ebpf_common::net::Addr;
    use proptest::prelude::*;

    fn backend(last: u8, state: v1::backend::State) -> v1::Backend {
        v1::Backend {
            address: format!("10.244.1.{last}"),
            port: 8080,
            state: state.into(),
            pod_name: format!("default/p{last}"),
            ..Default::default()
        }
    }

    fn service(id: u32, backends: Vec<v1::Backend>) -> v1::Service {
        v1::Service {
            namespace: "default".into(),
            name: format!("s{id}"),
            id,
            cluster_ips: vec![format!("10.96.0.{id}")],
            ports: vec![v1::ServicePort {
                protocol: "TCP".into(),
                port: 80,
                id: id * 10,
                backends,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn active(last: u8) -> v1::Backend {
        backend(last, v1::backend::State::Active)
    }

    fn apply(observed: &mut Observed, id: u32, service: Option<&v1::Service>) -> Vec<Action> {
        let (actions, problems) = plan(id, service, Place::default(), &observed.maps);
        assert!(problems.is_empty(), "{problems:?}");
        for action in &actions {
            simulate::simulate(observed, action, Moment::default());
        }
        assert_eq!(
            plan(id, service, Place::default(), &observed.maps).0,
            [],
            "planning again yields nothing"
        );
        actions
    }

    fn slots(observed: &Observed, port_id: u32) -> Vec<u32> {
        observed.maps.tables()[&port_id].entries.clone()
    }

    #[test]
    fn numbers_are_stable_and_reused_once_free() {
        let mut observed = Observed::default();
        apply(
            &mut observed,
            1,
            Some(&service(1, vec![active(1), active(2), active(3)])),
        );
        assert_eq!(slots(&observed, 10), [1, 2, 3]);
        apply(
            &mut observed,
            1,
            Some(&service(1, vec![active(3), active(1)])),
        );
        assert_eq!(slots(&observed, 10), [1, 3]);
        assert!(!observed.maps.backends().contains_key(&2));
        apply(
            &mut observed,
            1,
            Some(&service(1, vec![active(3), active(1), active(9)])),
        );
        assert_eq!(slots(&observed, 10), [1, 2, 3]);
        assert_eq!(
            observed.maps.backends()[&2].addr,
            Addr::from(Ipv4Addr::new(10, 244, 1, 9))
        );
    }

    #[test]
    fn terminating_leaves_the_table_and_keeps_its_number() {
        let mut observed = Observed::default();
        apply(
            &mut observed,
            1,
            Some(&service(1, vec![active(1), active(2)])),
        );
        let ending = backend(2, v1::backend::State::Terminating);
        let actions = apply(&mut observed, 1, Some(&service(1, vec![active(1), ending])));
        assert_eq!(actions.len(), 2, "{actions:?}");
        assert_eq!(slots(&observed, 10), [1]);
        assert!(
            !actions
                .iter()
                .any(|a| matches!(a, Action::DeleteBackend { .. }))
        );
        assert_eq!(observed.maps.backends()[&2].state, TERMINATING);
    }

    /// Algorithm, weights and affinity are in the maps; another weight is the same backend.
    #[test]
    fn how_a_backend_is_chosen_is_in_the_maps() {
        let mut observed = Observed::default();
        let mut wanted = service(1, vec![active(1), active(2)]);
        apply(&mut observed, 1, Some(&wanted));
        assert_eq!(slots(&observed, 10), [1, 2]);
        wanted.ports[0].backends[1].weight = 3;
        wanted.affinity_timeout_s = 60;
        wanted.set_algorithm(v1::Algorithm::LeastConnections);
        let actions = apply(&mut observed, 1, Some(&wanted));
        assert_eq!(actions.len(), 3, "{actions:?}");
        assert_eq!(slots(&observed, 10), [1, 2, 2, 2]);
        let weight = |slot| observed.maps.backends()[&slot].weight;
        assert_eq!((weight(1), weight(2)), (1, 3));
        let affinity = observed
            .maps
            .frontends()
            .values()
            .next()
            .map(|f| f.affinity);
        assert_eq!(affinity, Some(60));
        wanted.set_algorithm(v1::Algorithm::Maglev);
        let actions = apply(&mut observed, 1, Some(&wanted));
        assert_eq!(actions.len(), 1, "{actions:?}");
        assert_eq!(slots(&observed, 10).len(), 251);
    }

    #[test]
    fn a_removed_service_leaves_nothing() {
        let mut observed = Observed::default();
        apply(&mut observed, 1, Some(&service(1, vec![active(1)])));
        apply(&mut observed, 2, Some(&service(2, vec![active(1)])));
        apply(&mut observed, 1, None);
        assert_eq!(observed.maps.frontends().len(), 1);
        assert_eq!(observed.maps.tables().keys().collect::<Vec<_>>(), [&20]);
        assert_eq!(observed.maps.backends().keys().collect::<Vec<_>>(), [&2]);
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "three of many are looked at"
    )]
    #[test]
    fn backends_are_written_before_and_freed_after_the_table() {
        let mut observed = Observed::default();
        apply(&mut observed, 1, Some(&service(1, vec![active(1)])));
        let actions = apply(&mut observed, 1, Some(&service(1, vec![active(2)])));
        let kinds: Vec<_> = actions
            .iter()
            .map(|a| match a {
                Action::PutBackend { .. } => "put",
                Action::PutTable { .. } => "table",
                Action::DeleteBackend { .. } => "free",
                _ => "other",
            })
            .collect();
        assert_eq!(kinds, ["put", "table", "free"]);
    }

    #[test]
    fn a_port_that_cannot_be_is_a_problem_and_the_others_go_on() {
        let mut bad = service(1, vec![active(1)]);
        bad.ports.push(v1::ServicePort {
            protocol: "SCTP".into(),
            port: 5,
            id: 11,
            ..Default::default()
        });
        let (actions, problems) = plan(1, Some(&bad), Place::default(), &Maps::default());
        assert_eq!(problems.len(), 1);
        assert_eq!(actions.len(), 3);
    }

    /// What is planned for service 1, and the maps after it.
    fn step(observed: &mut Observed, wanted: Option<&v1::Service>) -> Vec<Action> {
        let place = Place {
            node: "here",
            ..Place::default()
        };
        let (actions, problems) = plan(1, wanted, place, &observed.maps);
        assert_eq!(problems, []);
        for action in &actions {
            simulate::simulate(observed, action, Moment::default());
        }
        assert_eq!(plan(1, wanted, place, &observed.maps).0, []);
        actions
    }

    /// Service 1 with a pod on this node and one on another, for clients outside by those of the
    /// node alone.
    fn local_outside() -> v1::Service {
        let mut outside = service(1, vec![active(1), active(2)]);
        outside.ports[0].node_port = 30_080;
        outside.ports[0].external_id = 19;
        outside.ports[0].backends[0].node = "here".into();
        outside.set_external_traffic_policy(v1::TrafficPolicy::Local);
        outside
    }

    fn tables(observed: &Observed) -> Vec<(u32, Vec<u32>)> {
        let all = observed.maps.tables().iter();
        all.map(|(id, table)| (*id, table.entries.clone()))
            .collect()
    }

    /// A service that is reached from outside by backends of its node alone has a table for each
    /// policy, of the same backends; when it is not any more, only the first.
    #[test]
    fn policies_that_differ_have_a_table_each() {
        let mut observed = Observed::default();
        let mut outside = local_outside();
        outside.load_balancer_ips = vec!["198.51.100.1".into()];
        outside.source_ranges = vec!["203.0.113.0/24".into()];
        let counts = |observed: &Observed| {
            let maps = &observed.maps;
            (maps.frontends().len(), maps.all_source_ranges().count())
        };
        step(&mut observed, Some(&outside));
        assert_eq!(tables(&observed), [(10, vec![1, 2]), (19, vec![1])]);
        assert_eq!(counts(&observed), (3, 1));
        let takes = |slot, table| observed.maps.backends()[&slot].takes_new(table);
        assert_eq!([takes(1, 10), takes(2, 10)], [true, true]);
        assert_eq!([takes(1, 19), takes(2, 19)], [true, false]);
        outside.ports[0].external_id = 0;
        outside.set_external_traffic_policy(v1::TrafficPolicy::Cluster);
        outside.source_ranges.clear();
        step(&mut observed, Some(&outside));
        assert_eq!(tables(&observed), [(10, vec![1, 2])]);
        assert_eq!(counts(&observed), (3, 0));
        step(&mut observed, None);
        assert_eq!(tables(&observed), []);
        assert_eq!(counts(&observed), (0, 0));
        assert!(observed.maps.backends().is_empty());
    }

    /// A traffic policy is for new connections: no backend of a pod that stays is given up.
    #[test]
    fn another_policy_ends_no_connection() {
        use v1::TrafficPolicy::{Cluster, Local};
        let mut observed = Observed::default();
        for (internal, external) in [
            (Cluster, Cluster),
            (Cluster, Local),
            (Cluster, Cluster),
            (Local, Cluster),
            (Cluster, Local),
            (Local, Local),
            (Cluster, Cluster),
        ] {
            let mut wanted = local_outside();
            wanted.set_internal_traffic_policy(internal);
            wanted.set_external_traffic_policy(external);
            if internal == Cluster && external == Cluster {
                wanted.ports[0].external_id = 0;
            }
            let actions = step(&mut observed, Some(&wanted));
            let freed = actions
                .iter()
                .any(|action| matches!(action, Action::DeleteBackend { .. }));
            assert!(!freed, "{internal:?} {external:?}: {actions:?}");
            assert_eq!(observed.maps.backends().len(), 2);
        }
    }

    /// No client is led to the second table of a load balancer that has no address and no node
    /// port: it is there only when there is one, and leaves with it.
    #[test]
    fn a_table_without_a_frontend_is_not_kept() {
        let mut observed = Observed::default();
        let mut wanted = local_outside();
        wanted.ports[0].node_port = 0;
        step(&mut observed, Some(&wanted));
        assert_eq!(tables(&observed), [(10, vec![1, 2])]);
        wanted.load_balancer_ips = vec!["198.51.100.1".into()];
        step(&mut observed, Some(&wanted));
        assert_eq!(tables(&observed), [(10, vec![1, 2]), (19, vec![1])]);
        wanted.load_balancer_ips.clear();
        step(&mut observed, Some(&wanted));
        assert_eq!(tables(&observed), [(10, vec![1, 2])]);
        wanted.load_balancer_ips = vec!["198.51.100.1".into()];
        step(&mut observed, Some(&wanted));
        // Another service has taken the address.
        let key = *observed
            .maps
            .of_service(1)
            .find(|key| {
                key.port == Be16::new(80) && key.addr != Addr::from(Ipv4Addr::new(10, 96, 0, 1))
            })
            .unwrap();
        let other = Frontend {
            service_port: 20,
            external: 0,
            service: 2,
            affinity: 0,
            flags: 0,
        };
        observed.maps.put_frontend(key, other);
        step(&mut observed, None);
        assert_eq!(tables(&observed), []);
        assert!(observed.maps.backends().is_empty());
    }

    #[test]
    fn strays_of_a_crash_are_swept() {
        let mut observed = Observed::default();
        apply(&mut observed, 1, Some(&service(1, vec![active(1)])));
        apply(&mut observed, 2, Some(&service(2, vec![active(2)])));
        let key = *observed.maps.frontends().keys().next().unwrap();
        observed.maps.delete_frontend(&key);
        let mut desired = Desired {
            complete: true,
            ..Default::default()
        };
        desired
            .services
            .insert("default/s2".into(), service(2, vec![active(2)]));
        for action in sweep(&desired, &Owners::default(), &observed.maps) {
            simulate::simulate(&mut observed, &action, Moment::default());
        }
        assert_eq!(sweep(&desired, &Owners::default(), &observed.maps), []);
        assert_eq!(observed.maps.backends().len(), 1);
        assert_eq!(observed.maps.tables().len(), 1);
    }

    fn any_service(id: u32) -> impl Strategy<Value = Option<v1::Service>> {
        let backends = proptest::collection::btree_map(1_u8..9, any::<bool>(), 0..6);
        proptest::option::of(backends.prop_map(move |set| {
            let list = set.into_iter().map(|(last, ending)| {
                let state = if ending {
                    v1::backend::State::Terminating
                } else {
                    v1::backend::State::Active
                };
                backend(last, state)
            });
            service(id, list.collect())
        }))
    }

    proptest! {
        /// Any sequence of states of three services: applied, it is as wanted, no
        /// table names a number that is free or another's, no number changes.
        #[test]
        fn sequences_converge(steps in proptest::collection::vec((1_u32..4).prop_flat_map(|id| (Just(id), any_service(id))), 1..20)) {
            let mut observed = Observed::default();
            for (id, wanted) in steps {
                let before: BTreeMap<_, _> = observed.maps.numbers.clone();
                apply(&mut observed, id, wanted.as_ref());
                for (port_id, table) in observed.maps.tables() {
                    for slot in &table.entries {
                        let backend = observed.maps.backends()[slot];
                        prop_assert_eq!(backend.service_port, *port_id);
                        prop_assert_eq!(backend.state, ACTIVE);
                    }
                }
                for (key, slot) in &observed.maps.numbers {
                    if let Some(old) = before.get(key) {
                        prop_assert_eq!(old, slot);
                    }
                }
                let active = wanted.as_ref().map(|s| {
                    s.ports[0].backends.iter().filter(|b| b.state() == v1::backend::State::Active).count()
                });
                let table = observed.maps.tables().get(&(id * 10)).map(|t| t.entries.len());
                prop_assert_eq!(table, active);
            }
        }
    }
}
