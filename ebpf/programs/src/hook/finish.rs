//! The only place where a verdict becomes what the kernel wants, a counter and an event.

use crate::family::Family;
use crate::flow::{PacketContext, Verdict};
use crate::maps;
use crate::packet::{self, Skb};
use ebpf_common::counter;
use ebpf_common::drop::Drop;
use ebpf_common::event::{DROPPED, Event};

/// Reasons that say something about the node, not about the packet: these are also logged.
const UNEXPECTED: [u32; 3] = [
    Drop::NoRoute as u32,
    Drop::NoFlowEntry as u32,
    Drop::RewriteFailed as u32,
];

/// Counts, reports, and gives the return value of the program.
#[inline(always)]
pub(crate) fn finish<A: Family>(skb: &Skb, context: &PacketContext<A>, verdict: Verdict) -> i32 {
    let reason = verdict.reason();
    maps::count(counter::index(reason, context.hook()), skb.len());
    if reason != 0 {
        A::report_event(skb.raw(), context, DROPPED as u32, reason);
        if UNEXPECTED.contains(&reason) {
            A::log_unexpected(skb.raw(), context, reason);
        }
    }
    verdict.act()
}

/// Puts an event into the ring, or counts that it had no place there.
#[inline(always)]
pub(crate) fn report<A: Family>(skb: &Skb, context: &PacketContext<A>, kind: u8, reason: u8) {
    let packet = &context.packet;
    let event = Event {
        time: packet::nanoseconds(),
        src: packet.src.to_addr(),
        dst: packet.dst.to_addr(),
        sport: packet.sport,
        dport: packet.dport,
        ifindex: context.ifindex,
        backend: context.target.backend,
        len: skb.len(),
        kind,
        hook: context.hook,
        reason,
        protocol: packet.protocol,
        tcp_flags: packet.flags,
        pad: [0; 3],
    };
    if !maps::emit(&event) {
        maps::count(
            counter::index(counter::EVENT_SHED, context.hook()),
            event.len,
        );
    }
}
