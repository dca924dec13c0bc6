//! The changes of many services as one batch of writes, in the order in which they
//! are made.
//!
//! New backends stand before the tables that name them, tables before the frontends
//! that lead to them, and removals come last, the other way round: a packet never
//! finds a number without its backend. Tables of several services are one write:
//! the kernel ends each only when no program reads the tables before it.
//! Called by the daemon's `services.rs`.

use std::collections::{BTreeMap, BTreeSet};

use crate::action::{Action, Problem};
use crate::choice::Place;
use crate::hostport::Owners;
use crate::maps::{FrontendKey, Table};
use crate::outcome::Outcome;
use crate::service;
use crate::settings::Settings;
use crate::time::Moment;
use crate::world::{Desired, Observed};

/// One write into the maps.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// One entry.
    One(Action),
    /// Choice tables by service port.
    PutTables(Vec<(u32, Table)>),
    /// Choice tables of these service ports are removed.
    DeleteTables(Vec<u32>),
}

/// Actions of services, sorted by what they do.
#[derive(Debug, Default)]
struct Sorted {
    backends: Vec<Action>,
    tables: BTreeMap<u32, Table>,
    frontends: Vec<Action>,
    /// Frontends that are put, also where another service gives up the same address.
    put: BTreeSet<FrontendKey>,
    old_frontends: Vec<Action>,
    old_tables: BTreeSet<u32>,
    old_backends: Vec<Action>,
    /// Of something else than services: written first, in their own order.
    others: Vec<Action>,
}

impl Sorted {
    fn add(&mut self, action: Action) {
        match action {
            Action::PutSourceRange { .. } | Action::PutBackend { .. } => self.backends.push(action),
            Action::PutTable { port_id, table } => {
                self.old_tables.remove(&port_id);
                self.tables.insert(port_id, table);
            }
            Action::PutFrontend { key, .. } => {
                self.put.insert(key);
                self.frontends.push(action);
            }
            Action::DeleteFrontend { .. } => self.old_frontends.push(action),
            Action::DeleteTable { port_id } => {
                self.old_tables.insert(port_id);
            }
            Action::DeleteSourceRange { .. } | Action::DeleteBackend { .. } => {
                self.old_backends.push(action);
            }
            Action::Take { .. }
            | Action::Stop { .. }
            | Action::Finish { .. }
            | Action::Restart { .. }
            | Action::Pass { .. }
            | Action::BeginKill { .. }
            | Action::RefuseImage { .. }
            | Action::RefuseConfig { .. }
            | Action::ReportHostPorts { .. }
            | Action::Record { .. }
            | Action::PinNamespaces { .. }
            | Action::CreateLink { .. }
            | Action::AttachPrograms { .. }
            | Action::PutEndpoint { .. }
            | Action::DeleteEndpoint { .. }
            | Action::CreateCgroup { .. }
            | Action::StartShim { .. }
            | Action::AskShim { .. }
            | Action::MakeVolumes { .. }
            | Action::FindImage { .. }
            | Action::PullImage { .. }
            | Action::CancelPull { .. }
            | Action::CreateContainer { .. }
            | Action::StartContainer { .. }
            | Action::Signal { .. }
            | Action::DeleteContainer { .. }
            | Action::RunHook { .. }
            | Action::Probe { .. }
            | Action::RemoveSandbox { .. }
            | Action::RemoveLeftovers { .. }
            | Action::RemoveFolders { .. }
            | Action::RemoveStray { .. }
            | Action::ReportGone { .. }
            | Action::Forget { .. }
            | Action::DeleteLink { .. }
            | Action::DetachPrograms { .. }
            | Action::PutRoute { .. }
            | Action::DeleteRoute { .. }
            | Action::PutNetwork { .. }
            | Action::DeleteNetwork { .. }
            | Action::PutServiceLink { .. }
            | Action::AttachDevice { .. } => self.others.push(action),
        }
    }

    fn writes(self) -> Vec<Write> {
        let Sorted {
            backends,
            tables,
            frontends,
            put,
            old_frontends,
            old_tables,
            old_backends,
            others,
        } = self;
        let moved =
            |action: &Action| matches!(action, Action::DeleteFrontend { key } if put.contains(key));
        let mut writes: Vec<Write> = others.into_iter().map(Write::One).collect();
        writes.extend(backends.into_iter().map(Write::One));
        if !tables.is_empty() {
            writes.push(Write::PutTables(tables.into_iter().collect()));
        }
        writes.extend(frontends.into_iter().map(Write::One));
        let old = old_frontends.into_iter().filter(|action| !moved(action));
        writes.extend(old.map(Write::One));
        if !old_tables.is_empty() {
            writes.push(Write::DeleteTables(old_tables.into_iter().collect()));
        }
        writes.extend(old_backends.into_iter().map(Write::One));
        writes
    }
}

/// The services that changed, when an id that one gave up may be another's by now.
pub fn named(
    mut changed: BTreeMap<u32, Option<String>>,
    desired: &Desired,
) -> BTreeMap<u32, Option<String>> {
    if changed.values().any(Option::is_none) {
        for (name, service) in &desired.services {
            if let Some(owner @ None) = changed.get_mut(&service.id) {
                *owner = Some(name.clone());
            }
        }
    }
    changed
}

/// Plans the services that changed (id, and name if it is wanted), and with `sweep`
/// all that is in the maps and belongs to no service. `observed` is then as it will
/// be once all is written; after a write that failed it has to be read again.
pub fn plan(
    changed: BTreeMap<u32, Option<String>>,
    sweep: bool,
    desired: &Desired,
    observed: &mut Observed,
    settings: &Settings,
) -> (Vec<Write>, Vec<Problem>) {
    let (mut sorted, mut problems) = (Sorted::default(), Vec::new());
    let place = Place::of(settings, desired);
    let mut freed = Vec::new();
    let mut assume = |actions: Vec<Action>, observed: &mut Observed| {
        for action in actions {
            if matches!(action, Action::DeleteBackend { .. }) {
                freed.push(action);
            } else {
                written(observed, &action, settings);
                sorted.add(action);
            }
        }
    };
    for (id, name) in changed {
        let wanted = name.and_then(|name| desired.services.get(&name));
        let (actions, bad) = service::plan(id, wanted, place, &observed.maps);
        problems.extend(bad);
        assume(actions, observed);
    }
    if sweep {
        let actions = service::sweep(desired, &Owners::of(observed), &observed.maps);
        assume(actions, observed);
    }
    // Only now: a number that one service frees is not given to another one in the
    // same batch, because it is written before it is freed.
    for action in freed {
        written(observed, &action, settings);
        sorted.add(action);
    }
    (sorted.writes(), problems)
}

fn written(observed: &mut Observed, action: &Action, settings: &Settings) {
    let action = Box::new(action.clone());
    // Nothing is told of a map, and no time is noted.
    observed.take(Outcome::Written { action }, settings, Moment::default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::Frontend;
    use crate::simulate::settings;
    use proto::v1;

    #[test]
    fn an_address_that_moves_between_services_is_not_deleted() {
        let key = FrontendKey {
            addr: std::net::Ipv4Addr::new(10, 96, 0, 1).into(),
            port: ebpf_common::net::Be16::new(80),
            protocol: 6,
            pad: 0,
        };
        let frontend = Frontend {
            service_port: 2,
            external: 0,
            service: 2,
            affinity: 0,
            flags: 0,
        };
        let put = Action::PutFrontend {
            key,
            frontend,
            name: "n/s:80".into(),
        };
        let free = Action::DeleteBackend { id: 1 };
        let mut sorted = Sorted::default();
        for action in [
            free.clone(),
            Action::DeleteFrontend { key },
            put.clone(),
            Action::PutTable {
                port_id: 2,
                table: Table::default(),
            },
        ] {
            sorted.add(action);
        }
        let tables = Write::PutTables(vec![(2, Table::default())]);
        assert_eq!(sorted.writes(), [tables, Write::One(put), Write::One(free)]);
    }

    #[test]
    fn an_id_that_another_service_has_by_now_is_its_own() {
        let (own, gone) = (service(1, 1), 2);
        let mut desired = Desired::default();
        desired.services.insert("n/s1".into(), own);
        let changed = BTreeMap::from([(1, None), (gone, None)]);
        let expected = BTreeMap::from([(1, Some("n/s1".to_owned())), (gone, None)]);
        assert_eq!(named(changed, &desired), expected);
    }

    fn service(id: u32, last: u8) -> v1::Service {
        v1::Service {
            namespace: "n".into(),
            name: format!("s{id}"),
            id,
            cluster_ips: vec![format!("10.96.0.{id}")],
            ports: vec![v1::ServicePort {
                protocol: "TCP".into(),
                port: 80,
                id: id * 10,
                backends: vec![v1::Backend {
                    address: format!("10.244.1.{last}"),
                    port: 8080,
                    state: v1::backend::State::Active.into(),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn table(backend: u32) -> Table {
        Table {
            entries: vec![backend],
            ..Table::default()
        }
    }

    #[test]
    fn tables_of_all_services_are_one_write_and_a_freed_number_is_not_taken_in_it() {
        let (mut desired, mut observed) = (Desired::default(), Observed::default());
        let name = |id| format!("n/s{id}");
        for id in [1, 2] {
            desired.services.insert(name(id), service(id, 1));
        }
        let changed = [(1, Some(name(1))), (2, Some(name(2)))].into();
        let (writes, problems) = plan(changed, false, &desired, &mut observed, &settings());
        assert_eq!(problems, []);
        let tables = vec![(10, table(1)), (20, table(2))];
        assert!(writes.contains(&Write::PutTables(tables)), "{writes:?}");
        // One goes and another one comes: its backend gets a number of its own.
        desired.services.remove(&name(1));
        desired.services.insert(name(3), service(3, 9));
        let changed = [(1, None), (3, Some(name(3)))].into();
        let (writes, _) = plan(changed, false, &desired, &mut observed, &settings());
        let last = writes.last().unwrap();
        assert_eq!(*last, Write::One(Action::DeleteBackend { id: 1 }));
        assert!(
            writes.contains(&Write::PutTables(vec![(30, table(3))])),
            "{writes:?}"
        );
        assert!(
            writes.contains(&Write::DeleteTables(vec![10])),
            "{writes:?}"
        );
        assert_eq!(
            observed.maps.backends().keys().copied().collect::<Vec<_>>(),
            [2, 3]
        );
    }
}
