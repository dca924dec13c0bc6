//! What the services make of pods that are to stop: whether connections may still come to
//! them. Called by control-server's `drain.rs`.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::Endpoint;

use crate::index::labels;
use crate::object::{self, Name};
use crate::world::World;

/// What services make of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndpointUse {
    /// It is in no slice.
    None,
    /// It terminates, and takes new connections all the same: no endpoint of the
    /// service is ready, or it publishes addresses that are not.
    Last,
    /// It terminates, and new connections go elsewhere.
    Closed,
    /// A slice has it as one that stays.
    Open,
}

/// The uses of pods at one revision of the world. The endpoints of a service are read once,
/// however many of its pods are asked for.
pub struct EndpointUses<'a> {
    world: &'a World,
    /// By service, then uid of the pod.
    services: HashMap<&'a Name, HashMap<&'a str, EndpointUse>>,
}

impl<'a> EndpointUses<'a> {
    /// Reads nothing yet.
    pub fn new(world: &'a World) -> Self {
        Self {
            world,
            services: HashMap::new(),
        }
    }

    /// What the services make of a pod; of several the one that asks for most.
    pub fn of(&mut self, pod: &Pod) -> EndpointUse {
        let (world, services) = (self.world, &mut self.services);
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        let uid = object::uid(&pod.metadata);
        let labels = labels(namespace, &pod.metadata);
        let selecting = labels.flat_map(|label| {
            let services = world.indexes.services_by_label.get(&label);
            services.into_iter().flatten()
        });
        let uses = selecting.filter_map(|service| {
            let uses = services.entry(service);
            let uses = uses.or_insert_with(|| read(world, service));
            uses.get(uid).copied()
        });
        uses.max().unwrap_or(EndpointUse::None)
    }
}

fn read<'a>(world: &'a World, service: &Name) -> HashMap<&'a str, EndpointUse> {
    let endpoints = || world.slices_of(service).flat_map(|s| &s.endpoints);
    let is = |value: Option<bool>| value == Some(true);
    let ready = |e: &Endpoint| e.conditions.as_ref().is_none_or(|c| c.ready != Some(false));
    let any_ready = endpoints().any(ready);
    let mut uses = HashMap::new();
    for endpoint in endpoints() {
        let target = endpoint.target_ref.as_ref();
        let Some(uid) = target.and_then(|r| r.uid.as_deref()) else {
            continue;
        };
        let conditions = endpoint.conditions.as_ref();
        let serving = is(conditions.and_then(|c| c.serving));
        let used = if !is(conditions.and_then(|c| c.terminating)) {
            EndpointUse::Open
        } else if ready(endpoint) || (serving && !any_ready) {
            EndpointUse::Last
        } else {
            EndpointUse::Closed
        };
        let most = uses.entry(uid).or_insert(used);
        *most = used.max(*most);
    }
    uses
}
