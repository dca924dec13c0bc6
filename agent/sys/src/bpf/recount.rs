//! Counts the flow entries of each endpoint anew in a pass of the sweep, so that no error in what
//! the programs have counted lasts. Called by `sweep`.

use crate::maps::{Maps, MapsError};
use ebpf_common::address::Address;
use ebpf_common::conntrack::{ALL_FLOWS, Flow, FlowKey, FlowUsage, SCOPE_HOST, SweepHead};
use ebpf_common::endpoint::HOST;
use ebpf_logic::quota::{correction, owner};
use std::collections::{BTreeMap, BTreeSet};

/// What a pass has seen.
#[derive(Debug, Default)]
pub(super) struct Recount {
    /// Endpoint ids by interface, or `SCOPE_HOST`.
    owners: BTreeMap<u32, u32>,
    /// By index into `flow_usage`.
    seen: BTreeMap<u32, Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Endpoint id, or `ALL_FLOWS`.
    id: u32,
    before: FlowUsage,
    entries: u64,
}

/// Owners and their ids.
fn owners(maps: &Maps) -> Result<BTreeMap<u32, u32>, MapsError> {
    let endpoints = maps.endpoints()?.into_iter();
    let mut owners: BTreeMap<_, _> = endpoints
        .map(|endpoint| (endpoint.ifindex, endpoint.id.into()))
        .collect();
    owners.insert(SCOPE_HOST, HOST.into());
    Ok(owners)
}

impl Recount {
    /// Notes what is counted before the pass.
    pub(super) fn begin(maps: &Maps) -> Result<Self, MapsError> {
        let owners = owners(maps)?;
        let mut seen = BTreeMap::new();
        for (family, _) in maps.flow_families() {
            for id in owners.values().copied().chain([ALL_FLOWS]) {
                let index = family + id;
                let before = maps.flow_usage(index)?;
                let entries = 0;
                seen.insert(
                    index,
                    Seen {
                        id,
                        before,
                        entries,
                    },
                );
            }
        }
        Ok(Self { owners, seen })
    }

    /// Counts an entry; true if no pod that was there at the beginning owns it.
    pub(super) fn saw_orphan<A: Address>(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        let id = self.owners.get(&owner(key, flow).ifindex).copied();
        for id in id.into_iter().chain([ALL_FLOWS]) {
            if let Some(seen) = self.seen.get_mut(&(A::USAGE + id)) {
                seen.entries += 1;
            }
        }
        id.is_none()
    }

    /// What has to be added so that the counts are right, after a whole pass.
    pub(super) fn corrections(&self, maps: &Maps) -> Result<Vec<SweepHead>, MapsError> {
        let owners = owners(maps)?;
        // An id that another pod has by now has another count.
        let same: BTreeSet<u32> = self
            .owners
            .iter()
            .filter(|(ifindex, id)| owners.get(ifindex) == Some(id))
            .map(|(_, id)| *id)
            .chain([ALL_FLOWS])
            .collect();
        let mut heads = Vec::new();
        for (index, seen) in &self.seen {
            if !same.contains(&seen.id) {
                continue;
            }
            let now = maps.flow_usage(*index)?;
            let by = correction(seen.before, now, seen.entries);
            let amount = u32::try_from(by.unsigned_abs()).unwrap_or(u32::MAX);
            let (made, removed) = if by > 0 { (amount, 0) } else { (0, amount) };
            if by != 0 {
                heads.push(SweepHead {
                    owner: *index,
                    made,
                    removed,
                });
            }
        }
        Ok(heads)
    }
}
