//! Flows, and how many of them each endpoint has.

use super::{Maps, MapsError};
use crate::bpf::syscall;
use ebpf_common::conntrack::{ALL_FLOWS, Flow4, Flow6, FlowKey4, FlowKey6, FlowUsage};
use ebpf_common::endpoint::HOST;
use ebpf_common::name;
use ebpf_logic::quota::{free, is_near, is_nearly_full};
use std::os::fd::BorrowedFd;

/// Flow entries of an endpoint, or all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowShare {
    /// That there are.
    pub used: u64,
    /// That there may be now.
    pub most: u64,
}

impl Maps {
    /// Flows, both directions of each.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flows(&self) -> Result<Vec<(FlowKey4, Flow4)>, MapsError> {
        self.flows.list()
    }

    /// Capacity of the flow map, in entries.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flow_entries(&self) -> Result<u32, MapsError> {
        let numbers = syscall::map_numbers(self.flows.fd()).map_err(self.flows.failed("ask"))?;
        Ok(numbers.entries)
    }

    /// The flow map, to be walked over.
    pub(crate) fn flow_table(&self) -> BorrowedFd<'_> {
        self.flows.fd()
    }

    /// That of IPv6.
    pub(crate) fn flow_table6(&self) -> BorrowedFd<'_> {
        self.flows6.fd()
    }

    /// Flows of IPv6, both directions of each.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flows6(&self) -> Result<Vec<(FlowKey6, Flow6)>, MapsError> {
        self.flows6.list()
    }

    /// One flow of IPv6.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flow6(&self, key: &FlowKey6) -> Result<Option<Flow6>, MapsError> {
        self.flows6.get(key)
    }

    /// As `put_flows`, of IPv6.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put_flows6(&self, flows: &[(FlowKey6, Flow6)]) -> Result<(), MapsError> {
        self.flows6.put_all(flows)
    }

    /// As `delete_flow`, of IPv6.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_flow6(&self, key: &FlowKey6) -> Result<(), MapsError> {
        self.flows6.delete(key)
    }

    /// One flow.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flow(&self, key: &FlowKey4) -> Result<Option<Flow4>, MapsError> {
        self.flows.get(key)
    }

    /// Writes flows as the programs would, but counts them for no pod until the sweep has seen them;
    /// for measuring with more of them than packets can be sent to make.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put_flows(&self, flows: &[(FlowKey4, Flow4)]) -> Result<(), MapsError> {
        self.flows.put_all(flows)
    }

    /// Forgets one direction of a flow, uncounted as above; its next packet is decided anew.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_flow(&self, key: &FlowKey4) -> Result<(), MapsError> {
        self.flows.delete(key)
    }

    /// Entries of the flow map that are counted for an endpoint id; for `ALL_FLOWS` all.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flow_usage(&self, id: u32) -> Result<FlowUsage, MapsError> {
        Ok(self.flow_usage.get(&id)?.unwrap_or_default())
    }

    /// All entries of the flow map, if four fifths of it are in use.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flows_nearly_full(&self) -> Result<Option<FlowShare>, MapsError> {
        let size = self.flow_entries()?;
        let used = self.flow_usage(ALL_FLOWS)?.entries();
        let most = size.into();
        Ok(is_nearly_full(used, size).then_some(FlowShare { used, most }))
    }

    /// Endpoint ids that have four fifths of the entries that they may have.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flow_shares_nearly_used(&self) -> Result<Vec<(u16, FlowShare)>, MapsError> {
        let size = self.flow_entries()?;
        let all = self.flow_usage(ALL_FLOWS)?.entries();
        let pods = self.endpoints()?.into_iter().map(|endpoint| endpoint.id);
        let mut near = Vec::new();
        for id in pods.chain([HOST]) {
            let used = self.flow_usage(id.into())?.entries();
            if is_near(used, all, size) {
                let most = free(all, size);
                near.push((id, FlowShare { used, most }));
            }
        }
        Ok(near)
    }

    /// What people call an endpoint: "namespace/name" of a pod, or the node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn endpoint_name(&self, id: u16) -> Result<String, MapsError> {
        if id == HOST {
            return Ok("the node itself".to_owned());
        }
        let name = self.name(name::ENDPOINT, id.into())?;
        Ok(name.map_or_else(|| format!("endpoint {id}"), |name| name.as_str().to_owned()))
    }

    /// Another pod has the id from now on.
    pub(super) fn reset_flow_usage(&self, id: u16) -> Result<(), MapsError> {
        self.flow_usage.put(&id.into(), &FlowUsage::default())
    }
}
