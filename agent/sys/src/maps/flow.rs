//! Flows, and how many of them each endpoint has.

use super::table::Table;
use super::{Maps, MapsError};
use crate::bpf::syscall;
use ebpf_common::address::Address as _;
use ebpf_common::conntrack::{ALL_FLOWS, Flow4, Flow6, FlowKey4, FlowKey6, FlowUsage};
use ebpf_common::endpoint::HOST;
use ebpf_common::name;
use ebpf_common::net::{Addr, Be32};
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

/// Entries that are nearly used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NearlyUsed {
    /// "IPv4" or "IPv6".
    pub family: &'static str,
    /// The endpoint that has them; `None`: all of the family.
    pub owner: Option<u16>,
    /// How many.
    pub share: FlowShare,
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

    /// That of IPv6, while it is in use.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flow_entries6(&self) -> Result<Option<u32>, MapsError> {
        let Some(flows) = &self.flows6 else {
            return Ok(None);
        };
        let numbers = syscall::map_numbers(flows.fd()).map_err(flows.failed("ask"))?;
        Ok(Some(numbers.entries))
    }

    /// The flow map, to be walked over.
    pub(crate) fn flow_table(&self) -> BorrowedFd<'_> {
        self.flows.fd()
    }

    /// That of IPv6, while it is in use.
    pub(crate) fn flow_table6(&self) -> Option<BorrowedFd<'_>> {
        self.flows6.as_ref().map(Table::fd)
    }

    /// Flows of IPv6, both directions of each.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flows6(&self) -> Result<Vec<(FlowKey6, Flow6)>, MapsError> {
        self.flows6.as_ref().map_or(Ok(Vec::new()), Table::list)
    }

    /// One flow of IPv6.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flow6(&self, key: &FlowKey6) -> Result<Option<Flow6>, MapsError> {
        let flows = self.flows6.as_ref();
        flows.map_or(Ok(None), |flows| flows.get(key))
    }

    /// As `put_flows`, of IPv6; nothing while it is not in use.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put_flows6(&self, flows: &[(FlowKey6, Flow6)]) -> Result<(), MapsError> {
        let table = self.flows6.as_ref();
        table.map_or(Ok(()), |table| table.put_all(flows))
    }

    /// As `delete_flow`, of IPv6.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_flow6(&self, key: &FlowKey6) -> Result<(), MapsError> {
        let flows = self.flows6.as_ref();
        flows.map_or(Ok(()), |flows| flows.delete(key))
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

    /// What is added to an index into `flow_usage`, and the name, of each family in use.
    pub(crate) fn flow_families(&self) -> impl Iterator<Item = (u32, &'static str)> {
        let six = self.flows6.is_some().then_some((Addr::USAGE, Addr::NAME));
        std::iter::once((Be32::USAGE, Be32::NAME)).chain(six)
    }

    /// Entries of the flow map that are counted for an endpoint id, or for `ALL_FLOWS`; those of
    /// IPv6 with `Address::USAGE` added.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flow_usage(&self, index: u32) -> Result<FlowUsage, MapsError> {
        Ok(self.flow_usage.get(&index)?.unwrap_or_default())
    }

    /// Which entries are nearly used up, four fifths of what there may be: those of a whole map, and
    /// those of endpoints.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flows_nearly_used(&self) -> Result<Vec<NearlyUsed>, MapsError> {
        let size = self.flow_entries()?;
        let pods = self.endpoints()?.into_iter().map(|endpoint| endpoint.id);
        let owners: Vec<u16> = pods.chain([HOST]).collect();
        let mut near = Vec::new();
        for (index, family) in self.flow_families() {
            let all = self.flow_usage(index + ALL_FLOWS)?.entries();
            let mut add = |owner, used, most| {
                let share = FlowShare { used, most };
                near.push(NearlyUsed {
                    family,
                    owner,
                    share,
                });
            };
            if is_nearly_full(all, size) {
                add(None, all, size.into());
            }
            for id in &owners {
                let used = self.flow_usage(index + u32::from(*id))?.entries();
                if is_near(used, all, size) {
                    add(Some(*id), used, free(all, size));
                }
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
        for usage in [Be32::USAGE, Addr::USAGE] {
            let index = usage + u32::from(id);
            self.flow_usage.put(&index, &FlowUsage::default())?;
        }
        Ok(())
    }
}
