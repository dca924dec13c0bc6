//! What the stages hand on to each other about one packet.
//!
//! No map and no packet access; `PacketContext` is filled by the stages in order. The stages are
//! functions of the program of their own, with one number each as result: so the verifier walks
//! each of them once, and no stack frame holds what another one needs.

use ebpf_common::address::Address;
use ebpf_common::conntrack::{Flow, FlowKey, scope};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::{Addr, Be16, Be32};
use ebpf_logic::parse::Packet;
use ebpf_logic::refuse::UNREACHABLE6;

/// `TCX_NEXT`: the next program, or the stack.
pub(crate) const NEXT: i32 = -1;
/// `TCX_DROP`
pub(crate) const SHOT: i32 = 2;

/// What becomes of a packet. Every exit of the slow path is one of these; `hook::finish` turns
/// it into what the kernel wants, a counter and an event.
///
/// One number (the reason, then what the kernel wants), not an enum: an enum's unused payload
/// becomes a register that was never written, and the verifier refuses to see it copied.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict(u32);

impl Verdict {
    /// None yet: the next stage decides.
    pub(crate) const OPEN: Self = Self(u32::MAX);

    /// On: what a redirect helper returned, or `NEXT` for the stack.
    #[inline(always)]
    pub(crate) const fn goes(act: i32) -> Self {
        Self(act as u16 as u32)
    }

    /// Dropped.
    #[inline(always)]
    pub(crate) const fn dropped(reason: Drop) -> Self {
        Self::refused(reason, SHOT)
    }

    /// The sender is told: the packet was replaced by the answer, which goes.
    #[inline(always)]
    pub(crate) const fn refused(reason: Drop, act: i32) -> Self {
        Self((reason as u32) << 16 | act as u16 as u32)
    }

    /// What a stage's result is as a verdict.
    #[inline(always)]
    pub(crate) const fn of(result: Result<Self, Drop>) -> Self {
        match result {
            Ok(verdict) => verdict,
            Err(reason) => Self::dropped(reason),
        }
    }

    /// Number of the reason, 0 for none.
    #[inline(always)]
    pub(crate) const fn reason(self) -> u32 {
        self.0 >> 16
    }

    /// What the kernel wants.
    #[inline(always)]
    pub(crate) const fn act(self) -> i32 {
        self.0 as u16 as i16 as i32
    }

    /// As a result of a function of the program.
    #[inline(always)]
    pub(crate) const fn number(self) -> u32 {
        self.0
    }

    /// From such a result.
    #[inline(always)]
    pub(crate) const fn from_number(number: u32) -> Self {
        Self(number)
    }
}

/// The addresses that the packet gets. No padding: the verifier reads all of what a function is
/// given.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Target<A> {
    /// Source address after translation.
    pub(crate) src: A,
    /// Destination address after translation.
    pub(crate) dst: A,
    /// Backend, 0 for none.
    pub(crate) backend: u32,
    /// Its generation, read before the backend itself.
    pub(crate) backend_gen: u32,
    /// Destination port after translation.
    pub(crate) dport: Be16,
    /// 1 if the backend's connections have this one already.
    pub(crate) counted: u16,
}

/// The interface that the packet leaves by. No padding, as above.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Route<A> {
    /// `action::*` and `action::ANSWERS_*`
    pub(crate) action: u8,
    /// Named padding.
    pub(crate) pad: u8,
    /// Endpoint id of the receiver, 0 for none.
    pub(crate) peer: u16,
    /// Interface of the action.
    pub(crate) ifindex: u32,
    /// Next hop.
    pub(crate) nexthop: A,
}

/// Bytes of the longest packet that refuses one.
const REFUSAL: usize = UNREACHABLE6;

/// All that is known about a packet so far; made of zeros, and without padding between fields.
#[repr(C)]
pub(crate) struct PacketContext<A: Address> {
    /// The entry that will be written.
    pub(crate) flow: Flow<A>,
    /// The entry of the answers, and its key: not on the stack, of which those of IPv6 would take
    /// too much, as the next.
    pub(crate) answer: Flow<A>,
    /// See `answer`.
    pub(crate) answer_key: FlowKey<A>,
    /// The packet that refuses this one.
    pub(crate) refusal: [u8; REFUSAL],
    /// Its headers.
    pub(crate) packet: Packet<A>,
    /// Key of its flow.
    pub(crate) key: FlowKey<A>,
    /// Addresses that it gets.
    pub(crate) target: Target<A>,
    /// Route of the packet.
    pub(crate) route: Route<A>,
    /// Route of the answers.
    pub(crate) back: Route<A>,
    /// Interface that it was seen on.
    pub(crate) ifindex: u32,
    /// `Hook` as a number.
    pub(crate) hook: u8,
    /// `state::*` of the answers.
    pub(crate) other_state: u8,
    /// Endpoint id of the sender, 0 for none.
    pub(crate) endpoint: u16,
    /// Generation of `endpoint`, read before it was looked up.
    pub(crate) endpoint_gen: u32,
    /// The epoch, read before everything else.
    pub(crate) epoch: u32,
    /// `Flow::route_gen` of `route`, read before the route was looked for, so that a change in
    /// between makes the entry stale.
    pub(crate) route_gen: u32,
    /// Generation of the node's routes, read likewise.
    pub(crate) node_gen: u32,
    /// Generation of the frontends, read before one was looked up.
    pub(crate) frontend_gen: u32,
    /// Named padding.
    pub(crate) pad: u32,
}

const fn has_no_padding<A: Address>() -> bool {
    let parts = 2 * size_of::<Flow<A>>()
        + size_of::<Packet<A>>()
        + 2 * size_of::<FlowKey<A>>()
        + REFUSAL
        + size_of::<Target<A>>()
        + 2 * size_of::<Route<A>>();
    size_of::<PacketContext<A>>() == parts + 32
}
const _: () = assert!(has_no_padding::<Be32>() && has_no_padding::<Addr>());

impl<A: Address> PacketContext<A> {
    /// The hook; a number that is none, which cannot be, reads as the first.
    #[inline(always)]
    pub(crate) const fn hook(&self) -> Hook {
        match Hook::from_u8(self.hook) {
            Some(hook) => hook,
            None => Hook::FromPod,
        }
    }

    /// Sets the key of the flow: who sent the packet, as in `FlowKey::scope`.
    #[inline(always)]
    pub(crate) fn set_key(&mut self, from: u32) {
        self.key = FlowKey {
            src: self.packet.src,
            dst: self.packet.dst,
            sport: self.packet.sport,
            dport: self.packet.dport,
            scope: scope(from, self.packet.protocol),
        };
    }
}
