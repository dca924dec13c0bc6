//! The nodes as one pass of the scheduler sees them: what each has left after the
//! bindings that were made before in the pass.
//!
//! A node is looked at when a pod asks for it, so that a pass over few pods does not
//! cost the whole cluster. Called by `schedule.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::hostport::HostPorts;
use crate::pool::{Draw, Pool};
use crate::usage::Usage;
use crate::world::World;
use crate::{object, readiness};

/// A node during one pass.
pub(crate) struct Place<'a> {
    pub(crate) node: &'a Arc<Node>,
    pub(crate) name: &'a str,
    pub(crate) offered: Usage,
    pub(crate) used: Usage,
    /// Its free pod addresses, and how many there are.
    pub(crate) free: Vec<Draw<'a>>,
    pub(crate) addresses: u64,
    pub(crate) ready: bool,
    /// Pods of each owner bound in this pass.
    pub(crate) bound: BTreeMap<String, u32>,
    /// Ports of the host that its pods have, before this pass and in it.
    pub(crate) host_ports: Option<&'a HostPorts>,
    pub(crate) new_ports: HostPorts,
}

/// All nodes, in the order of their names.
pub(crate) struct Places<'a> {
    world: &'a World,
    nodes: Vec<(&'a str, &'a Arc<Node>)>,
    made: Vec<Option<Box<Place<'a>>>>,
    /// How often a node was asked for.
    pub(crate) looks: usize,
}

impl<'a> Places<'a> {
    pub(crate) fn of(world: &'a World) -> Self {
        let nodes = world.nodes.iter().map(|(name, node)| (name.as_str(), node));
        let nodes: Vec<_> = nodes.collect();
        let mut made = Vec::new();
        made.resize_with(nodes.len(), || None);
        Self {
            world,
            nodes,
            made,
            looks: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Index of the node of this name.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.nodes.binary_search_by(|(n, _)| (*n).cmp(name)).ok()
    }

    /// A node; the index must be one of theirs.
    pub(crate) fn get(&mut self, at: usize) -> &mut Place<'a> {
        self.looks += 1;
        let (name, node) = self.nodes[at];
        let make = || Box::new(Place::of(self.world, name, node));
        self.made[at].get_or_insert_with(make)
    }

    /// How many nodes were looked at.
    #[cfg(test)]
    pub(crate) fn looked_at(&self) -> usize {
        self.made.iter().flatten().count()
    }
}

impl<'a> Place<'a> {
    fn of(world: &'a World, name: &'a str, node: &'a Arc<Node>) -> Self {
        let pools: Vec<Pool> = object::pod_cidrs(node).map(Pool::PodAddresses).collect();
        let offer = world.indexes.nodes.get(name);
        Self {
            node,
            name,
            offered: offer.map(|o| o.allocatable).unwrap_or_default(),
            used: world.indexes.usage.get(name).copied().unwrap_or_default(),
            addresses: pools.iter().map(|pool| world.claims().left(*pool)).sum(),
            free: pools
                .iter()
                .map(|pool| world.claims().draw(*pool))
                .collect(),
            ready: readiness::is_ready(node),
            bound: BTreeMap::new(),
            host_ports: world.indexes.host_ports.get(name),
            new_ports: HostPorts::default(),
        }
    }
}
