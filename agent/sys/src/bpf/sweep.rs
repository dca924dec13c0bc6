//! The walk over the flow map that finds expired entries, and those of pods that do not exist any
//! more, in bounded pieces.
//!
//! The kernel copies some entries at a time into one buffer (a batch lookup, which resumes where
//! the last one ended and holds no softirq). Keys of those that seem expired go to the program
//! `flow_sweep`, which judges again and removes.
//! A pass also counts the entries of each pod (`recount`). Called by `Datapath::sweep`.

use super::recount::Recount;
use super::syscall::{self, Cursor, Portion};
use super::{BpfError, Program, Ran};
use crate::clock;
use crate::maps::{Maps, MapsError};
use ebpf_common::abi::MapType as _;
use ebpf_common::address::Address;
use ebpf_common::conntrack::{
    Flow, Flow4, Flow6, FlowKey, FlowKey4, FlowKey6, PASS_IS_OVER, SweepHead,
};
use ebpf_common::maps::name;
use ebpf_common::net::{Addr, Be32};
use ebpf_logic::conntrack::{is_expired, is_over};
use ebpf_logic::parse::ETHERNET;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Entries of one batch lookup.
const BATCH: usize = 512;
/// Batch lookups of one call.
const BATCHES: usize = 16;
/// Keys of one run of the program: each costs it up to a microsecond, with softirqs held.
const KEYS: usize = 128;

/// What one call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// Entries that were looked at.
    pub seen: u32,
    /// Entries that were removed.
    pub removed: u32,
    /// CPU time of the longest system call: packets of this CPU wait for it at most.
    pub longest: Duration,
    /// The pass has come to the end of the map, of IPv6's as well if that is in use.
    pub complete: bool,
}

impl Swept {
    fn took(&mut self, began: Duration) {
        let now = clock::thread_cpu();
        self.longest = self.longest.max(now.saturating_sub(began));
    }
}

/// A family whose flow map is walked over.
trait Walked: Address {
    /// What judges its entries.
    const PROGRAM: Program;
    /// Name of the map.
    const MAP: &'static str;

    /// The buffer for its entries.
    fn portion(sweep: &mut Sweep) -> &mut Portion;
}

impl Walked for Be32 {
    const PROGRAM: Program = Program::FlowSweep;
    const MAP: &'static str = name::FLOWS;

    fn portion(sweep: &mut Sweep) -> &mut Portion {
        &mut sweep.portion
    }
}

impl Walked for Addr {
    const PROGRAM: Program = Program::FlowSweep6;
    const MAP: &'static str = name::FLOWS6;

    fn portion(sweep: &mut Sweep) -> &mut Portion {
        &mut sweep.portion6
    }
}

/// Where a pass goes on; it walks over the map of IPv4 first.
#[derive(Debug, Default)]
enum Place {
    #[default]
    Begin,
    V4(Cursor),
    /// `None`: at its beginning.
    V6(Option<Cursor>),
}

/// Where the pass is, and its buffers.
#[derive(Debug)]
pub(super) struct Sweep {
    jiffies_per_second: u32,
    place: Place,
    recount: Recount,
    portion: Portion,
    portion6: Portion,
    packet: Vec<u8>,
    /// Open connections that the pass has met so far, by backend and its generation.
    open: BTreeMap<(u32, u32), u64>,
    /// Backends that had some in the pass before; `None` before the first.
    had: Option<BTreeSet<u32>>,
}

impl Sweep {
    pub(super) fn new(jiffies_per_second: u32) -> Self {
        Self {
            jiffies_per_second,
            place: Place::Begin,
            recount: Recount::default(),
            portion: Portion::new(BATCH, size_of::<FlowKey4>(), size_of::<Flow4>()),
            portion6: Portion::new(BATCH, size_of::<FlowKey6>(), size_of::<Flow6>()),
            packet: Vec::with_capacity(ETHERNET + KEYS * size_of::<FlowKey6>()),
            open: BTreeMap::new(),
            had: None,
        }
    }

    /// Looks at the next entries; `run` runs `flow_sweep`, or that of IPv6, on a packet.
    pub(super) fn proceed(
        &mut self,
        maps: &Maps,
        run: impl Fn(Program, &[u8]) -> Result<Ran, BpfError>,
    ) -> Result<Swept, BpfError> {
        let mut swept = Swept {
            seen: 0,
            removed: 0,
            longest: Duration::ZERO,
            complete: false,
        };
        let mut place = std::mem::take(&mut self.place);
        if matches!(place, Place::Begin) {
            self.recount = Recount::begin(maps)?;
            self.open.clear();
        }
        place = match place {
            Place::Begin => self.walk4(None, maps, &run, &mut swept)?,
            Place::V4(cursor) => self.walk4(Some(cursor), maps, &run, &mut swept)?,
            Place::V6(cursor) => match maps.flow_table6() {
                Some(flows) => {
                    let cursor = self.pieces::<Addr>(cursor, flows, &run, &mut swept)?;
                    cursor.map_or(Place::Begin, |cursor| Place::V6(Some(cursor)))
                }
                None => Place::Begin,
            },
        };
        swept.complete = matches!(place, Place::Begin);
        if swept.complete {
            for head in self.recount.corrections(maps)? {
                tracing::debug!(?head, "a count of flow entries was wrong");
                self.judge::<Be32>(head, &[], &run, &mut swept)?;
            }
            let over = SweepHead {
                owner: PASS_IS_OVER,
                ..SweepHead::default()
            };
            self.judge::<Be32>(over, &[], &run, &mut swept)?;
        }
        self.place = place;
        Ok(swept)
    }

    fn walk4(
        &mut self,
        from: Option<Cursor>,
        maps: &Maps,
        run: &impl Fn(Program, &[u8]) -> Result<Ran, BpfError>,
        swept: &mut Swept,
    ) -> Result<Place, BpfError> {
        let cursor = self.pieces::<Be32>(from, maps.flow_table(), run, swept)?;
        Ok(match cursor {
            Some(cursor) => Place::V4(cursor),
            None if maps.flow_table6().is_some() => Place::V6(None),
            None => Place::Begin,
        })
    }

    /// At the end of a pass: the open connections of each backend are those that were met.
    pub(super) fn correct_loads(&mut self, maps: &Maps) -> Result<(), MapsError> {
        let mut backends = match self.had.take() {
            Some(had) => had,
            None => maps.loaded_backends()?,
        };
        let found: BTreeSet<u32> = self.open.keys().map(|(id, _)| *id).collect();
        backends.extend(&found);
        maps.correct_loads(&backends, &self.open)?;
        self.had = Some(found);
        Ok(())
    }

    fn pieces<A: Walked>(
        &mut self,
        mut cursor: Option<Cursor>,
        flows: BorrowedFd<'_>,
        run: &impl Fn(Program, &[u8]) -> Result<Ran, BpfError>,
        swept: &mut Swept,
    ) -> Result<Option<Cursor>, BpfError> {
        // Without keys the program only says what time it is.
        let mut now = self.judge::<A>(SweepHead::default(), &[], run, swept)?;
        for _ in 0..BATCHES {
            let began = clock::thread_cpu();
            cursor = syscall::lookup_batch(flows, cursor, A::portion(self)).map_err(|source| {
                MapsError::Access {
                    what: "walk over",
                    map: A::MAP,
                    source,
                }
            })?;
            swept.took(began);
            let mut expired = Vec::new();
            let found: Vec<_> = A::portion(self).pairs::<FlowKey<A>, Flow<A>>().collect();
            for (key, flow) in found {
                swept.seen += 1;
                let orphan = self.recount.saw_orphan(&key, &flow);
                if orphan || is_expired(&flow, now, self.jiffies_per_second) {
                    expired.push(key);
                } else if flow.backend != 0 && !flow.is_reply() && !is_over(flow.state) {
                    let backend = (flow.backend, flow.backend_gen);
                    *self.open.entry(backend).or_default() += 1;
                }
            }
            for keys in expired.chunks(KEYS) {
                now = self.judge(SweepHead::default(), keys, run, swept)?;
            }
            if cursor.is_none() {
                break;
            }
        }
        Ok(cursor)
    }

    /// Runs the program on these keys; returns the time, in jiffies, at which it did.
    fn judge<A: Walked>(
        &mut self,
        head: SweepHead,
        keys: &[FlowKey<A>],
        run: &impl Fn(Program, &[u8]) -> Result<Ran, BpfError>,
        swept: &mut Swept,
    ) -> Result<u32, BpfError> {
        self.packet.clear();
        self.packet.extend_from_slice(head.as_bytes());
        self.packet.resize(ETHERNET, 0);
        for key in keys {
            self.packet.extend_from_slice(key.as_bytes());
        }
        let began = clock::thread_cpu();
        let ran = run(A::PROGRAM, &self.packet)?;
        swept.took(began);
        swept.removed += ran.verdict as u32;
        Ok(ran.mark)
    }
}
