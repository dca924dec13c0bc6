//! The fast path: a packet of a flow that is decided costs one hash lookup.
//!
//! Asks only whether the packet is the plain case: no options or fragments, TCP
//! with ACK and without SYN, FIN or RST, or UDP, of a flow whose decision stands. All else, malformed
//! packets included, is the slow path's.

use crate::family::Family;
use crate::flow::NEXT;
use crate::maps;
use crate::packet::{self, Skb};
use crate::stage::{hop, nat, origin, reply_tuple, route, send, service};
use ebpf_common::conntrack::{FlowKey, scope, state};
use ebpf_common::counter::Hook;
use ebpf_common::net::{Addr, Be32, protocol};
use ebpf_logic::conntrack::{elapsed, is_quiet};
use ebpf_logic::generation::stands;
use ebpf_logic::parse::{ETHERNET, TCP, UDP, flag};

/// TCP flags that move a connection, and ACK, in the byte behind the data offset, as loaded.
const FLAGS: u16 = ((flag::SYN | flag::FIN | flag::RST | flag::ACK) as u16).to_be();
/// What is set of them in all other packets.
const ACK: u16 = (flag::ACK as u16).to_be();

/// Forwards the packet, or hands it to the slow path.
#[inline(always)]
pub(crate) fn forward(skb: &Skb, from: u32, hook: Hook) -> i32 {
    if let Some(act) = known::<Be32>(skb, from, hook) {
        return act;
    }
    if maps::has_ipv6() {
        let act = crate::established6(skb.raw(), from, hook as u32);
        if act != UNKNOWN {
            return act;
        }
    }
    crate::slow_path(skb.raw(), hook as u32)
}

/// No return value of a program.
const UNKNOWN: i32 = i32::MIN;

/// The fast path of IPv6, or `UNKNOWN`. A function of the program: what it needs of the stack, the
/// slow path of neither family has below it.
#[inline(always)]
pub(crate) fn known6(skb: &Skb, from: u32, hook: u32) -> i32 {
    let Some(hook) = Hook::from_u8(hook as u8) else {
        return UNKNOWN;
    };
    known::<Addr>(skb, from, hook).unwrap_or(UNKNOWN)
}

#[inline(always)]
fn known<A: Family>(skb: &Skb, from: u32, hook: Hook) -> Option<i32> {
    let head = skb.headers::<A, UDP>()?;
    let len = skb.len();
    if head.u16::<12>() != A::ETHER_TYPE {
        return None;
    }
    let (protocol, total) = A::plain(&head)?;
    if total + ETHERNET as u32 > len {
        return None;
    }
    let header = A::IP_HEADER as u32;
    if protocol == protocol::TCP {
        let head = skb.headers::<A, TCP>()?;
        let offset_flags = head.l4_u16::<12>();
        let offset = (offset_flags.to_ne_bytes()[0] >> 4) as u32 * 4;
        if offset_flags & FLAGS != ACK || offset < 20 || offset + header > total {
            return None;
        }
    } else if protocol == protocol::UDP {
        let length = u16::from_be(head.l4_u16::<4>()) as u32;
        if length < 8 || length + header > total {
            return None;
        }
    } else {
        return None;
    }
    let key = A::key(&head, scope(from, protocol));
    let Some(flow) = maps::flow(&key) else {
        let passes = matches!(hook, Hook::FromNetdev) && has_no_flow(&key);
        return passes.then_some(NEXT);
    };
    if flow.state & state::FAST == 0 || !stands(flow, &maps::Now) {
        return None;
    }
    let now = packet::jiffies();
    if elapsed(now, flow.last_seen) >= maps::jiffies_per_second() {
        let quiet = is_quiet(now, flow.last_seen);
        flow.last_seen = now;
        // The other direction needs its entry, which may have been lost.
        if quiet && reply_tuple::has_other(flow, hook) && reply_tuple::other(&key, flow).is_none() {
            return None;
        }
    }
    if hop::is_forwarded(hook, flow.action) && !A::take_hop(skb) {
        return None;
    }
    flow.packets += 1;
    flow.bytes += (len - ETHERNET as u32) as u64;
    if flow.translates() && nat::rewrite(skb, flow, protocol).is_err() {
        // Half rewritten at worst: what arrives has a wrong checksum and is sent again.
        return None;
    }
    Some(send::out(skb, flow))
}

/// Whether a packet from the network is the stack's alone: for the host itself, or from outside
/// of the cluster to a pod.
#[inline(always)]
fn has_no_flow<A: Family>(key: &FlowKey<A>) -> bool {
    if A::node().is(key.dst) {
        return service::frontend(key.dst, key.dport, key.protocol(), || true).is_none()
            && origin::spoofed(key.src).is_none();
    }
    maps::local(key.dst).is_some() && !route::is_pod(key.src) && origin::spoofed(key.src).is_none()
}
