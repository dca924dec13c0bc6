//! Whether a decision that was written down still stands.
//!
//! Each thing that a flow depends on has a generation, and any change moves the epoch behind
//! it: the entry first, then its generation, then the epoch. So a flow that has the epoch needs
//! one comparison; any other one compares its generations and is stamped with the epoch that
//! was read before them. Called by `stage/established.rs` and `stage/follow.rs`.

use ebpf_common::conntrack::Flow;

/// The numbers as they are now. Each call is one read of memory that others write.
pub trait Current {
    /// The epoch.
    fn epoch(&self) -> u32;
    /// Of a backend.
    fn backend_gen(&self, id: u32) -> u32;
    /// Of an endpoint of this node.
    fn endpoint_gen(&self, id: u16) -> u32;
    /// Of the node's routes.
    fn node_gen(&self) -> u32;
}

/// All that a route depends on as one number. Generations only go up, so their sum is the same
/// only as long as all of them are.
#[inline(always)]
pub const fn route_gen(endpoint_gen: u32, node_gen: u32) -> u32 {
    endpoint_gen.wrapping_add(node_gen)
}

/// Whether nothing has changed since the flow was decided. Stamps it.
#[inline(always)]
pub fn stands(flow: &mut Flow, now: &impl Current) -> bool {
    let epoch = now.epoch();
    if flow.epoch == epoch {
        return true;
    }
    let stands = flow.backend_gen == now.backend_gen(flow.backend)
        && flow.route_gen == route_gen(now.endpoint_gen(flow.peer), now.node_gen());
    if stands {
        flow.epoch = epoch;
    }
    stands
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;
    use ebpf_common::abi::MapType as _;
    use proptest::prelude::*;

    /// What the agent writes, one step after the other.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Write {
        /// What the flow was decided from.
        Entry,
        /// The generation of it.
        Generation,
        Epoch,
    }
    use Write::{Entry, Epoch, Generation};

    /// As `Maps` changes an entry.
    const CHANGE: [Write; 5] = [Generation, Epoch, Entry, Generation, Epoch];

    /// Which of the three generations moves.
    #[derive(Clone, Copy, Debug)]
    enum Of {
        Backend,
        Endpoint,
        Node,
    }

    /// Memory that is changed between two reads: before read `n`, `schedule[n]` writes are done.
    struct Memory<'a> {
        writes: &'a [Write],
        of: Of,
        schedule: &'a [usize],
        reads: Cell<usize>,
    }

    impl<'a> Memory<'a> {
        fn new(writes: &'a [Write], of: Of, schedule: &'a [usize]) -> Self {
            Self {
                writes,
                of,
                schedule,
                reads: Cell::new(0),
            }
        }

        fn read(&self, what: Write) -> u32 {
            let read = self.reads.get();
            self.reads.set(read + 1);
            let done = &self.writes[..self.schedule[read]];
            done.iter().filter(|write| **write == what).count() as u32
        }
    }

    impl Current for Memory<'_> {
        fn epoch(&self) -> u32 {
            self.read(Epoch)
        }
        fn backend_gen(&self, _: u32) -> u32 {
            let now = self.read(Generation);
            if matches!(self.of, Of::Backend) {
                now
            } else {
                0
            }
        }
        fn endpoint_gen(&self, _: u16) -> u32 {
            let now = self.read(Generation);
            if matches!(self.of, Of::Endpoint) {
                now
            } else {
                0
            }
        }
        fn node_gen(&self) -> u32 {
            let now = self.read(Generation);
            if matches!(self.of, Of::Node) { now } else { 0 }
        }
    }

    /// All ways in which `reads` reads can fall between the writes.
    fn schedules(reads: usize, writes: usize, each: &mut impl FnMut(&[usize])) {
        fn extend(
            so_far: &mut [usize; 8],
            at: usize,
            reads: usize,
            writes: usize,
            each: &mut impl FnMut(&[usize]),
        ) {
            if at == reads {
                each(&so_far[..reads]);
                return;
            }
            let least = if at == 0 { 0 } else { so_far[at - 1] };
            for done in least..=writes {
                so_far[at] = done;
                extend(so_far, at + 1, reads, writes, each);
            }
        }
        extend(&mut [0; 8], 0, reads, writes, each);
    }

    /// A flow that is decided while the agent writes: whether it was decided from the new entry.
    fn decide(memory: &Memory<'_>) -> (Flow, bool) {
        let mut flow = Flow::zeroed();
        flow.epoch = memory.epoch();
        flow.backend_gen = memory.backend_gen(0);
        flow.route_gen = route_gen(memory.endpoint_gen(0), memory.node_gen());
        (flow, memory.read(Entry) == 1)
    }

    /// Whether some interleaving leaves a flow with the old decision that passes when all is
    /// written: it was decided at any moment, and seen by two CPUs since.
    fn stale_flow_passes(writes: &[Write], of: Of) -> bool {
        let mut passes = false;
        schedules(5, writes.len(), &mut |deciding| {
            let (decided, new) = decide(&Memory::new(writes, of, deciding));
            if new {
                return;
            }
            // The packets of two CPUs work on the entry at once: each may have read it before
            // the other one has stamped it, and either stamp may be the last.
            schedules(4, writes.len(), &mut |seen| {
                let mut stamped = decided;
                let _stands = stands(&mut stamped, &Memory::new(writes, of, seen));
                for mut flow in [decided, stamped] {
                    let end = [writes.len(); 4];
                    passes |= stands(&mut flow, &Memory::new(writes, of, &end));
                }
            });
        });
        passes
    }

    #[test]
    fn no_stale_flow_passes_after_the_epoch_has_moved() {
        for of in [Of::Backend, Of::Endpoint, Of::Node] {
            assert!(!stale_flow_passes(&CHANGE, of), "{of:?}");
            // Routes are the kernel's: only the second half is written.
            assert!(!stale_flow_passes(&CHANGE[2..], of), "{of:?}");
        }
    }

    /// The model finds what goes wrong in another order.
    #[test]
    fn other_orders_let_stale_flows_pass() {
        for wrong in [
            [Entry, Epoch, Generation],
            [Generation, Epoch, Entry],
            [Generation, Entry, Epoch],
        ] {
            assert!(stale_flow_passes(&wrong, Of::Node), "{wrong:?}");
        }
    }

    /// A flow that nothing has changed for is stamped, and passes by one comparison then.
    #[test]
    fn a_flow_that_stands_is_stamped() {
        let writes = [Epoch];
        let mut flow = Flow::zeroed();
        assert!(stands(&mut flow, &Memory::new(&writes, Of::Node, &[1; 4])));
        let again = Memory::new(&writes, Of::Node, &[1; 4]);
        assert!(stands(&mut flow, &again));
        assert_eq!(again.reads.get(), 1);
    }

    proptest! {
        /// The sum of generations changes with any of them.
        #[test]
        fn a_sum_shows_each_change(
            endpoint in any::<u32>(),
            node in any::<u32>(),
            moved in (0u32..1 << 30, 0u32..1 << 30),
        ) {
            let after = route_gen(endpoint.wrapping_add(moved.0), node.wrapping_add(moved.1));
            prop_assert_eq!(after == route_gen(endpoint, node), moved == (0, 0));
        }
    }
}
