//! What the stages hand on to each other about one packet.
//!
//! No map and no packet access; filled by the stages in order.

use ebpf_common::conntrack::FlowKey4;
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::{Be16, Be32};
use ebpf_logic::parse::Packet;

/// What becomes of a packet. Every exit of the slow path is one of these; `hook::finish` turns
/// it into what the kernel wants, a counter and an event.
#[must_use]
#[derive(Clone, Copy)]
pub(crate) enum Verdict {
    /// On through the stack.
    Pass,
    /// A redirect is set up; the value is what the helper returned.
    Redirected(i32),
    /// Gone.
    Dropped(Drop),
    /// The sender is told: the packet was replaced by the answer, which is redirected.
    Refused(Drop, i32),
}

/// Where the packet came in, and whose it is.
#[derive(Clone, Copy)]
pub(crate) struct Origin {
    /// Hook.
    pub(crate) hook: Hook,
    /// `FlowKey4::from` of its flow.
    pub(crate) from: u32,
    /// Endpoint id of the sender, 0 for none.
    pub(crate) endpoint: u16,
}

/// Where the packet shall go, in terms of addresses.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    /// Source address after translation.
    pub(crate) src: Be32,
    /// Destination address after translation.
    pub(crate) dst: Be32,
    /// Destination port after translation.
    pub(crate) dport: Be16,
    /// Backend, 0 for none.
    pub(crate) backend: u32,
    /// Its generation, read before the backend itself.
    pub(crate) backend_gen: u32,
}

/// Where the packet shall go, in terms of interfaces.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    /// `action::*`
    pub(crate) action: u8,
    /// Interface of the action.
    pub(crate) ifindex: u32,
    /// Next hop.
    pub(crate) nexthop: Be32,
    /// Endpoint id of the receiver, 0 for none.
    pub(crate) peer: u16,
}

/// Key of the flow that the packet is of.
#[inline(always)]
pub(crate) fn key_of(packet: &Packet, from: u32) -> FlowKey4 {
    FlowKey4 {
        src: packet.src,
        dst: packet.dst,
        sport: packet.sport,
        dport: packet.dport,
        scope: FlowKey4::scope(from, packet.protocol),
    }
}
