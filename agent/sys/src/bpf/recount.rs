//! Counts the flow entries of each endpoint anew in a pass of the sweep, so that no error in what
//! the programs have counted lasts. Called by `sweep`.

use crate::maps::{Maps, MapsError};
use ebpf_common::address::Address;
use ebpf_common::conntrack::{ALL_FLOWS, Flow, FlowKey, FlowUsage, SCOPE_HOST, SweepHead};
use ebpf_common::endpoint::HOST;
use ebpf_logic::quota::{correction, owner};
use std::collections::BTreeMap;

/// What a pass has seen.
#[derive(Debug, Default)]
pub(super) struct Recount {
    /// By interface, or `SCOPE_HOST`.
    owners: BTreeMap<u32, Seen>,
    all: Seen,
}

#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    id: u32,
    before: FlowUsage,
    entries: u64,
}

impl Seen {
    fn of(maps: &Maps, id: u32) -> Result<Self, MapsError> {
        Ok(Self {
            id,
            before: maps.flow_usage(id)?,
            entries: 0,
        })
    }
}

/// Owners and their index into `flow_usage`.
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
        let mut this = Self {
            owners: BTreeMap::new(),
            all: Seen::of(maps, ALL_FLOWS)?,
        };
        for (ifindex, id) in owners(maps)? {
            this.owners.insert(ifindex, Seen::of(maps, id)?);
        }
        Ok(this)
    }

    /// Counts an entry; true if no pod that was there at the beginning owns it.
    pub(super) fn saw_orphan<A: Address>(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        self.all.entries += 1;
        match self.owners.get_mut(&owner(key, flow).ifindex) {
            Some(seen) => {
                seen.entries += 1;
                false
            }
            None => true,
        }
    }

    /// What has to be added so that the counts are right, after a whole pass.
    pub(super) fn corrections(&self, maps: &Maps) -> Result<Vec<SweepHead>, MapsError> {
        let owners = owners(maps)?;
        // An id that another pod has by now has another count.
        let same = self.owners.iter().filter_map(|(ifindex, seen)| {
            let id = owners.get(ifindex)?;
            (*id == seen.id).then_some(seen)
        });
        let mut heads = Vec::new();
        for seen in same.chain([&self.all]) {
            let now = maps.flow_usage(seen.id)?;
            let by = correction(seen.before, now, seen.entries);
            let amount = u32::try_from(by.unsigned_abs()).unwrap_or(u32::MAX);
            let (made, removed) = if by > 0 { (amount, 0) } else { (0, amount) };
            if by != 0 {
                heads.push(SweepHead {
                    owner: seen.id,
                    made,
                    removed,
                });
            }
        }
        Ok(heads)
    }
}
