//! Whether a decision that was written down still stands.
//!
//! Each thing that a flow depends on has a generation, and any change moves the epoch behind
//! it: the entry first, then its generation, then the epoch. So a flow that has the epoch needs
//! one comparison; any other one compares its generations and is stamped with the epoch that
//! was read before them. Called by `stage/established.rs` and `stage/follow.rs`.
//!
//! The tests walk all interleavings of one writer with the packets of two CPUs, as if memory had
//! one order: a flow that is decided, one that is found to stand, and one that gets another route.
//! Not in the model: an entry whose memory is given to another flow (`conntrack::is_copy_of`), and
//! the order in which a CPU's stores reach another one, which is that of the program on x86.

use ebpf_common::address::Address;
use ebpf_common::conntrack::{Flow, state};

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
    /// Of all frontends together.
    fn frontend_gen(&self) -> u32;
}

/// All that a route depends on as one number. Generations only go up, so their sum is the same
/// only as long as all of them are.
#[inline(always)]
pub const fn route_gen(endpoint_gen: u32, node_gen: u32) -> u32 {
    endpoint_gen.wrapping_add(node_gen)
}

/// Whether the flow's frontend is looked up again when one has changed: datagrams to a service,
/// which have no end by which they would leave it. A TCP connection stays where it is.
#[inline(always)]
pub const fn follows_frontend<A: Address>(flow: &Flow<A>) -> bool {
    flow.state == state::STATELESS && flow.backend != 0 && !flow.is_reply()
}

/// What `Flow::route_gen` is of a flow whose route depends on `route_gen`.
#[inline(always)]
pub const fn flow_gen<A: Address>(flow: &Flow<A>, route_gen: u32, frontend_gen: u32) -> u32 {
    if follows_frontend(flow) {
        route_gen.wrapping_add(frontend_gen)
    } else {
        route_gen
    }
}

/// Whether nothing has changed since the flow was decided. Stamps it.
#[inline(always)]
pub fn stands<A: Address>(flow: &mut Flow<A>, now: &impl Current) -> bool {
    let epoch = now.epoch();
    if flow.epoch == epoch {
        return true;
    }
    let stands = flow.backend_gen == now.backend_gen(flow.backend) && {
        let route = route_gen(now.endpoint_gen(flow.peer), now.node_gen());
        flow.route_gen == flow_gen(flow, route, now.frontend_gen())
    };
    if stands {
        flow.epoch = epoch;
    }
    stands
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use core::cell::Cell;
    use ebpf_common::abi::MapType as _;
    use ebpf_common::conntrack::{Flow4, action};
    use proptest::prelude::*;
    use std::vec::Vec;

    /// What the agent writes, one step after the other.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Write {
        /// What the flow was decided from.
        Entry(Of),
        /// The generation of it.
        Generation(Of),
        Epoch,
    }
    use Write::{Entry, Epoch, Generation};

    /// What changes, and has a generation.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Of {
        Backend,
        Endpoint,
        Node,
        Frontend,
    }
    const ALL: [Of; 4] = [Of::Backend, Of::Endpoint, Of::Node, Of::Frontend];

    /// As `Maps` changes an entry.
    const fn change(of: Of) -> [Write; 5] {
        [Generation(of), Epoch, Entry(of), Generation(of), Epoch]
    }

    /// Memory that is changed between two reads: before read `n`, `schedule[n]` writes are done.
    struct Memory<'a> {
        writes: &'a [Write],
        schedule: &'a [usize],
        reads: Cell<usize>,
    }

    impl<'a> Memory<'a> {
        fn new(writes: &'a [Write], schedule: &'a [usize]) -> Self {
            Self {
                writes,
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

        /// A route, from what says where the endpoint is and from the node's routes.
        fn route(&self) -> u32 {
            self.read(Entry(Of::Endpoint)) << 8 | self.read(Entry(Of::Node))
        }
    }

    impl Current for Memory<'_> {
        fn epoch(&self) -> u32 {
            self.read(Epoch)
        }
        fn backend_gen(&self, _: u32) -> u32 {
            self.read(Generation(Of::Backend))
        }
        fn endpoint_gen(&self, _: u16) -> u32 {
            self.read(Generation(Of::Endpoint))
        }
        fn node_gen(&self) -> u32 {
            self.read(Generation(Of::Node))
        }
        fn frontend_gen(&self) -> u32 {
            self.read(Generation(Of::Frontend))
        }
    }

    /// Most reads of one packet.
    const READS: usize = 10;

    /// All ways in which `reads` reads can fall between the writes.
    fn schedules(reads: usize, writes: usize, each: &mut impl FnMut(&[usize])) {
        fn extend(
            so_far: &mut [usize; READS],
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
        extend(&mut [0; READS], 0, reads, writes, each);
    }

    /// The first packet of a flow, as `stage/service.rs` and `stage/route.rs` decide it; the
    /// frontend that it found is `src`, the backend `dst`, the route `nexthop`.
    fn decide(memory: &Memory<'_>) -> Flow4 {
        let mut flow = Flow4::zeroed();
        (flow.state, flow.backend) = (state::STATELESS, 1);
        flow.epoch = memory.epoch();
        let frontend_gen = memory.frontend_gen();
        flow.src.be = memory.read(Entry(Of::Frontend));
        flow.backend_gen = memory.backend_gen(0);
        flow.dst.be = memory.read(Entry(Of::Backend));
        find_route(&mut flow, frontend_gen, memory);
        flow
    }

    fn find_route(flow: &mut Flow4, frontend_gen: u32, memory: &Memory<'_>) {
        let node_gen = memory.node_gen();
        let route = route_gen(memory.endpoint_gen(0), node_gen);
        flow.route_gen = flow_gen(flow, route, frontend_gen);
        flow.nexthop.be = memory.route();
    }

    /// A later packet on the slow path, as in `stage/follow.rs`; false if its backend was removed,
    /// or it has another frontend.
    fn follow(flow: &mut Flow4, memory: &Memory<'_>) -> bool {
        let epoch = memory.epoch();
        let frontend_gen = memory.frontend_gen();
        if flow.backend_gen != memory.backend_gen(0) {
            return false;
        }
        let route = route_gen(memory.endpoint_gen(0), memory.node_gen());
        if flow.route_gen != flow_gen(flow, route, frontend_gen) {
            if flow.src.be != memory.read(Entry(Of::Frontend)) {
                return false;
            }
            find_route(flow, frontend_gen, memory);
        }
        flow.epoch = epoch;
        true
    }
    const DECIDE_READS: usize = 9;
    const FOLLOW_READS: usize = 10;
    const STANDS_READS: usize = 5;

    /// Every flow that can be there when all is written: decided at any moment, and then seen by
    /// `packet` at any moment. The packets of two CPUs may have read an entry before the other one
    /// has stamped it, and either stamp may be the last, so that of one packet is all there is to
    /// see.
    fn outcomes(writes: &[Write], reads: usize, packet: fn(&mut Flow4, &Memory<'_>)) -> Vec<Flow4> {
        let mut decided: Vec<Flow4> = Vec::new();
        schedules(DECIDE_READS, writes.len(), &mut |schedule| {
            let flow = decide(&Memory::new(writes, schedule));
            if !decided.contains(&flow) {
                decided.push(flow);
            }
        });
        let mut found = decided.clone();
        for flow in decided {
            schedules(reads, writes.len(), &mut |schedule| {
                let mut flow = flow;
                packet(&mut flow, &Memory::new(writes, schedule));
                if !found.contains(&flow) {
                    found.push(flow);
                }
            });
        }
        found
    }

    /// Whether some interleaving leaves a flow with an old decision that passes when all is
    /// written.
    fn stale_flow_passes(writes: &[Write]) -> bool {
        let end = [writes.len(); READS];
        let all = Memory::new(writes, &end);
        let (backend, route) = (all.read(Entry(Of::Backend)), all.route());
        let frontend = all.read(Entry(Of::Frontend));
        let fast = outcomes(writes, STANDS_READS, |flow, memory| {
            let _stands = stands(flow, memory);
        });
        let slow = outcomes(writes, FOLLOW_READS, |flow, memory| {
            let _followed = follow(flow, memory);
        });
        fast.into_iter().chain(slow).any(|mut flow| {
            let stale =
                flow.src.be != frontend || flow.dst.be != backend || flow.nexthop.be != route;
            stale && stands(&mut flow, &Memory::new(writes, &end))
        })
    }

    #[test]
    fn no_stale_flow_passes_after_the_epoch_has_moved() {
        for of in ALL {
            assert!(!stale_flow_passes(&change(of)), "{of:?}");
            // Routes are the kernel's: only the second half is written.
            assert!(!stale_flow_passes(&change(of)[2..]), "{of:?}");
        }
    }

    /// The agent changes one thing, then another one.
    #[test]
    fn no_stale_flow_passes_after_two_changes() {
        for first in ALL {
            for second in ALL {
                let mut writes = change(first)[2..].to_vec();
                writes.extend(&change(second)[2..]);
                assert!(!stale_flow_passes(&writes), "{first:?} {second:?}");
            }
        }
    }

    /// The model finds what goes wrong in another order.
    #[test]
    fn other_orders_let_stale_flows_pass() {
        for of in ALL {
            for wrong in [
                [Entry(of), Epoch, Generation(of)],
                [Generation(of), Epoch, Entry(of)],
                [Generation(of), Entry(of), Epoch],
            ] {
                assert!(stale_flow_passes(&wrong), "{wrong:?}");
            }
        }
    }

    /// A flow that nothing has changed for is stamped, and passes by one comparison then.
    #[test]
    fn a_flow_that_stands_is_stamped() {
        let writes = [Epoch];
        let mut flow = Flow4::zeroed();
        let schedule = [1; STANDS_READS];
        assert!(stands(&mut flow, &Memory::new(&writes, &schedule)));
        let again = Memory::new(&writes, &schedule);
        assert!(stands(&mut flow, &again));
        assert_eq!(again.reads.get(), 1);
    }

    /// A change of a frontend moves datagrams of services, and nothing else.
    #[test]
    fn frontends_are_of_no_concern_to_connections() {
        let service = Flow4 {
            backend: 3,
            state: state::STATELESS,
            ..Flow4::zeroed()
        };
        for (flow, follows) in [
            (service, true),
            (
                Flow4 {
                    state: state::ESTABLISHED,
                    ..service
                },
                false,
            ),
            (
                Flow4 {
                    backend: 0,
                    ..service
                },
                false,
            ),
            (
                Flow4 {
                    action: action::REPLY,
                    ..service
                },
                false,
            ),
        ] {
            assert_eq!(follows_frontend(&flow), follows, "{flow:?}");
            let now = flow_gen(&flow, 40, 2);
            assert_eq!(now, if follows { 42 } else { 40 });
        }
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
