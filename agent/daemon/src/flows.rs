//! Removes expired flows, piece by piece, so that neither packets nor pods wait for it.
//!
//! At the end of each pass what the programs dropped is logged, and pods that are about to use up
//! their entries of the flow map are named in events. Called by `node`.

use std::collections::BTreeMap;

use agent_plan::pressure::NodeNote;
use agent_plan::time::Monotonic;
use agent_sys::bpf::Datapath;
use agent_sys::maps::{FlowShare, Maps, MapsError};
use ebpf_common::maps::{FLOW_BYTES, FLOW_BYTES6};

use crate::drops;

/// A pass over the flows begins so often, milliseconds.
const PASS_MS: i64 = 10_000;
/// Pause between two pieces of a pass, milliseconds.
const PIECE_MS: i64 = 10;
/// Entries of the flow map unless the memory is small: 500,000 connections.
const MOST_ENTRIES: u64 = 1_000_000;
/// Entries that the flow map has however small the memory is.
const LEAST_ENTRIES: u64 = 65_536;
/// Part of the node's memory that the flow map may take.
const PART_OF_MEMORY: u64 = 32;

/// Size of the flow map, of that of each family if IPv6 is in use, of a node with this much memory,
/// in bytes.
pub(crate) fn entries_for(memory: u64, ipv6: bool) -> u32 {
    let each = FLOW_BYTES + if ipv6 { FLOW_BYTES6 } else { 0 };
    let entries = memory / PART_OF_MEMORY / each;
    entries.clamp(LEAST_ENTRIES, MOST_ENTRIES) as u32
}

/// Family, and name of who has the entries; the whole map has none.
type Near = (&'static str, String);

/// When the next piece is due, and what was said about the last pass.
#[derive(Debug)]
pub(crate) struct Flows {
    due: Monotonic,
    near: BTreeMap<Near, FlowShare>,
}

impl Flows {
    /// The first pass is due after the usual time.
    pub(crate) fn new(now: Monotonic) -> Self {
        Self {
            due: now + PASS_MS,
            near: BTreeMap::new(),
        }
    }

    /// When `sweep_if_due` has work again.
    pub(crate) fn due(&self) -> Monotonic {
        self.due
    }

    /// One piece of a pass; at its end events about what is nearly used up.
    pub(crate) fn sweep_if_due(&mut self, datapath: &Datapath, now: Monotonic) -> Vec<NodeNote> {
        if now < self.due {
            return Vec::new();
        }
        match datapath.sweep() {
            Ok(swept) if !swept.complete => {
                tracing::trace!(?swept, "a piece of the flows");
                self.due = now + PIECE_MS;
                return Vec::new();
            }
            Ok(swept) => tracing::trace!(?swept, "all flows"),
            Err(error) => tracing::error!(%error, "cannot remove expired flows"),
        }
        self.due = now + PASS_MS;
        if let Err(error) = drops::report(datapath.maps()) {
            tracing::error!(%error, "cannot read events of dropped packets");
        }
        agent_sys::heap::trim();
        match near(datapath.maps()) {
            Ok(near) => self.said(near),
            Err(error) => {
                tracing::error!(%error, "cannot read how many flow entries there are");
                Vec::new()
            }
        }
    }

    /// Events about those that were not near their limit after the pass before.
    fn said(&mut self, near: BTreeMap<Near, FlowShare>) -> Vec<NodeNote> {
        let new = near
            .iter()
            .filter(|(name, _)| !self.near.contains_key(*name));
        let notes = new.map(|(near, share)| note(near, *share)).collect();
        self.near = near;
        notes
    }
}

fn note((family, name): &Near, share: FlowShare) -> NodeNote {
    let FlowShare { used, most } = share;
    NodeNote {
        reason: "FlowTablePressure",
        warning: true,
        message: if name.is_empty() {
            format!(
                "{used} of {most} {family} flow entries are in use; flow_entries is the size of the \
                 map"
            )
        } else {
            format!(
                "{name} has {used} {family} flow entries of {most} that it may have now; connections \
                 above that are refused (FLOW_QUOTA)"
            )
        },
    }
}

/// What is nearly used up.
fn near(maps: &Maps) -> Result<BTreeMap<Near, FlowShare>, MapsError> {
    let mut near = BTreeMap::new();
    for one in maps.flows_nearly_used()? {
        let name = one.owner.map(|id| maps.endpoint_name(id)).transpose()?;
        near.insert((one.family, name.unwrap_or_default()), one.share);
    }
    Ok(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flow_map_is_a_part_of_the_memory() {
        const GI: u64 = 1 << 30;
        for (memory, entries) in [
            (0, 65_536),
            (GI, 233_016),
            (4 * GI, 932_067),
            (8 * GI, 1_000_000),
            (1024 * GI, 1_000_000),
        ] {
            assert_eq!(entries_for(memory, false), entries, "{memory}");
        }
        // Both maps together.
        let entries = u64::from(entries_for(GI, true));
        let bytes = entries * (FLOW_BYTES + FLOW_BYTES6);
        assert!(
            bytes <= GI / PART_OF_MEMORY && entries > 233_016 / 3,
            "{entries}"
        );
    }

    /// A pod that stays near its limit is one event, until it was below it.
    #[test]
    fn pressure_is_said_when_it_begins() {
        let mut flows = Flows::new(Monotonic::default());
        let share = FlowShare { used: 8, most: 10 };
        let near = |names: &[&str]| {
            let names = names.iter().map(|name| (("IPv4", name.to_string()), share));
            names.collect::<BTreeMap<_, _>>()
        };
        for (names, events) in [
            (&["a/b"][..], 1),
            (&["a/b"], 0),
            (&["", "a/b"], 1),
            (&[], 0),
            (&["", "a/b"], 2),
        ] {
            assert_eq!(flows.said(near(names)).len(), events, "{names:?}");
        }
        let note = note(&("IPv6", "a/b".to_owned()), share);
        assert!(
            note.message
                .starts_with("a/b has 8 IPv6 flow entries of 10"),
            "{note:?}"
        );
    }
}
