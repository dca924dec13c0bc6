//! The only place where a verdict becomes what the kernel wants, a counter and an event.

use crate::flow::{Case, Verdict};
use crate::maps;
use crate::packet::{self, Skb};
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::warn;
use ebpf_common::counter;
use ebpf_common::drop::Drop;
use ebpf_common::event::{DROPPED, Event};

/// Reasons that say something about the node, not about the packet: these are also logged.
const UNEXPECTED: [u32; 3] = [
    Drop::NoRoute as u32,
    Drop::NoFlowEntry as u32,
    Drop::RewriteFailed as u32,
];

/// Logs what should not happen on a node that is set up right.
#[inline(always)]
pub(crate) fn log(context: &TcContext, case: &Case, reason: u32) {
    let (src, dst) = (case.packet.src.get(), case.packet.dst.get());
    let port = case.packet.dport.get();
    if reason == Drop::NoRoute as u32 {
        warn!(
            context,
            "no route from {:i} to {:i} port {}", src, dst, port
        );
    } else if reason == Drop::NoFlowEntry as u32 {
        warn!(
            context,
            "flow table refuses {:i} to {:i} port {}", src, dst, port
        );
    } else {
        warn!(
            context,
            "packet of {:i} to {:i} port {} cannot be changed", src, dst, port
        );
    }
}

/// Counts, reports, and gives the return value of the program.
#[inline(always)]
pub(crate) fn finish(skb: &Skb, case: &Case, verdict: Verdict) -> i32 {
    let reason = verdict.reason();
    maps::count(counter::index(reason, case.hook()), skb.len());
    if reason != 0 {
        crate::report_event(skb.context(), case, DROPPED as u32, reason);
        if UNEXPECTED.contains(&reason) {
            crate::log_unexpected(skb.context(), case, reason);
        }
    }
    verdict.act()
}

/// Puts an event into the ring, or counts that it had no place there.
#[inline(always)]
pub(crate) fn report(skb: &Skb, case: &Case, kind: u8, reason: u8) {
    let packet = &case.packet;
    let event = Event {
        time: packet::nanoseconds(),
        src: packet.src,
        dst: packet.dst,
        sport: packet.sport,
        dport: packet.dport,
        ifindex: skb.ifindex(),
        backend: case.target.backend,
        len: skb.len(),
        kind,
        hook: case.hook as u8,
        reason,
        protocol: packet.protocol,
        tcp_flags: packet.flags,
        pad: [0; 3],
    };
    if !maps::emit(&event) {
        maps::count(counter::index(counter::EVENT_SHED, case.hook()), event.len);
    }
}
