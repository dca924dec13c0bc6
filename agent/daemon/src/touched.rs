//! What an update of the desired state touches, and so has to be planned.
//!
//! Filled by `pushed.rs` for each change, read by the loop (`node.rs`) and the name
//! server (`dns.rs`).

use std::collections::{BTreeMap, BTreeSet};

use agent_plan::world::Desired;
use proto::v1;
use proto::v1::change::Change;

use crate::pushed_file;

/// What an update touches, and so has to be planned.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// uids.
    pub(crate) pods: BTreeSet<String>,
    /// Services by id: their name if they are wanted.
    pub(crate) services: BTreeMap<u32, Option<String>>,
    /// Services by name, "namespace/name", those without an id as well.
    pub(crate) names: BTreeSet<String>,
    /// Facts of the cluster.
    pub(crate) config: bool,
    /// Links and routes.
    pub(crate) network: bool,
    /// It is a whole new state: what is not in it is wanted no more.
    pub(crate) all: bool,
}

impl Touched {
    /// Adds what a change of this state touches. To be called before the change is made.
    pub(crate) fn add(&mut self, change: &Change, desired: &Desired) {
        match change {
            Change::Config(config) => {
                if config.zone != desired.config.zone {
                    let all = desired.services.iter();
                    let zoned = all.filter(|(_, service)| has_hints(service));
                    let zoned = zoned.map(|(name, service)| (service.id, Some(name.clone())));
                    self.services.extend(zoned);
                }
                self.network = true;
                self.config = true;
            }
            Change::Route(_) | Change::RouteRemoved(_) => self.network = true,
            Change::Pod(spec) => {
                self.pods.insert(spec.uid.clone());
            }
            Change::PodRemoved(uid) => {
                self.pods.insert(uid.clone());
            }
            Change::Service(service) => {
                let name = pushed_file::name(&service.namespace, &service.name);
                self.names.insert(name.clone());
                // Deleted and made again under the same name: another id.
                if let Some(before) = desired.services.get(&name)
                    && before.id != service.id
                {
                    self.services.insert(before.id, None);
                }
                self.services.insert(service.id, Some(name));
            }
            Change::ServiceChange(change) => {
                let name = pushed_file::name(&change.namespace, &change.name);
                self.names.insert(name.clone());
                if let Some(service) = desired.services.get(&name) {
                    self.services.insert(service.id, Some(name));
                }
            }
            Change::ServiceRemoved(name) => {
                self.names.insert(name.clone());
                if let Some(before) = desired.services.get(name) {
                    self.services.insert(before.id, None);
                }
            }
        }
    }
}

/// True when the backends that a node uses may depend on its zone.
fn has_hints(service: &v1::Service) -> bool {
    let mut backends = service.ports.iter().flat_map(|port| &port.backends);
    backends.any(|backend| !backend.for_zones.is_empty())
}

/// All services of a state: id and name.
pub(crate) fn services(desired: &Desired) -> impl Iterator<Item = (u32, Option<String>)> {
    let named = desired.services.iter();
    named.map(|(name, service)| (service.id, Some(name.clone())))
}
