//! The only place where a verdict becomes what the kernel wants, a counter and an event.

use crate::flow::Verdict;
use crate::maps;
use crate::packet::{self, NEXT, SHOT, Skb};
use ebpf_common::counter::{self, Hook};
use ebpf_common::event::{DROPPED, Event};
use ebpf_common::net::{Be16, Be32};
use ebpf_logic::parse::Packet;

/// Counts, reports, and gives the return value of the program.
#[inline(always)]
pub(crate) fn finish(skb: &Skb, hook: Hook, packet: Option<&Packet>, verdict: Verdict) -> i32 {
    let len = skb.len();
    let (reason, act) = match verdict {
        Verdict::Pass => (None, NEXT),
        Verdict::Redirected(act) => (None, act),
        Verdict::Dropped(reason) => (Some(reason), SHOT),
        Verdict::Refused(reason, act) => (Some(reason), act),
    };
    match reason {
        None => maps::count(counter::index(0, hook), len),
        Some(reason) => {
            maps::count(counter::index(reason as u32, hook), len);
            report(skb, hook, packet, DROPPED, reason as u8, 0, len);
        }
    }
    act
}

/// Puts an event into the ring, or counts that it had no place there.
#[inline(always)]
pub(crate) fn report(
    skb: &Skb,
    hook: Hook,
    packet: Option<&Packet>,
    kind: u8,
    reason: u8,
    backend: u32,
    len: u32,
) {
    let mut event = Event {
        time: packet::nanoseconds(),
        src: Be32 { be: 0 },
        dst: Be32 { be: 0 },
        sport: Be16 { be: 0 },
        dport: Be16 { be: 0 },
        ifindex: skb.ifindex(),
        backend,
        len,
        kind,
        hook: hook as u8,
        reason,
        protocol: 0,
        tcp_flags: 0,
        pad: [0; 3],
    };
    if let Some(packet) = packet {
        event.src = packet.src;
        event.dst = packet.dst;
        event.sport = packet.sport;
        event.dport = packet.dport;
        event.protocol = packet.protocol;
        event.tcp_flags = packet.flags;
    }
    if !maps::emit(&event) {
        maps::count(counter::index(counter::EVENT_SHED, hook), len);
    }
}
