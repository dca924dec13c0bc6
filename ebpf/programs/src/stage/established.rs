//! The fast path: a packet of a flow that is decided costs one hash lookup.
//!
//! Asks only whether the packet is the plain context: IPv4 without options or fragments, TCP
//! without SYN, FIN or RST, or UDP, of a flow whose generations stand. All else, malformed
//! packets included, is the slow path's.

use crate::flow::NEXT;
use crate::maps;
use crate::packet::{self, Skb};
use crate::stage::{nat, origin, send};
use ebpf_common::conntrack::{FlowKey4, state};
use ebpf_common::counter::Hook;
use ebpf_common::net::{Be16, Be32, protocol};
use ebpf_logic::conntrack::elapsed;
use ebpf_logic::parse::{ETHERNET, flag};

/// EtherType of IPv4 as it is loaded.
const IPV4: u16 = 0x0800u16.to_be();
/// Everything but "do not fragment".
const FRAGMENT: u16 = 0xbfffu16.to_be();
/// TCP flags that move a connection, in the byte behind the data offset, as loaded.
const MOVES: u16 = ((flag::SYN | flag::FIN | flag::RST) as u16).to_be();

/// Forwards the packet, or hands it to the slow path.
#[inline(always)]
pub(crate) fn forward(skb: &Skb, from: u32, hook: Hook) -> i32 {
    match known(skb, from, hook) {
        Some(act) => act,
        None => crate::slow_path(skb.raw(), hook as u32),
    }
}

#[inline(always)]
fn known(skb: &Skb, from: u32, hook: Hook) -> Option<i32> {
    let head = skb.headers::<42>()?;
    let len = skb.len();
    if head.u16::<12>() != IPV4 || head.u8::<14>() != 0x45 || head.u16::<20>() & FRAGMENT != 0 {
        return None;
    }
    let total = u16::from_be(head.u16::<16>()) as u32;
    if total + ETHERNET as u32 > len {
        return None;
    }
    let protocol = head.u8::<23>();
    if protocol == protocol::TCP {
        let head = skb.headers::<54>()?;
        let offset_flags = head.u16::<46>();
        let offset = (offset_flags.to_ne_bytes()[0] >> 4) as u32 * 4;
        if offset_flags & MOVES != 0 || offset < 20 || offset + 20 > total {
            return None;
        }
    } else if protocol == protocol::UDP {
        let length = u16::from_be(head.u16::<38>()) as u32;
        if length < 8 || length + 20 > total {
            return None;
        }
    } else {
        return None;
    }
    let ports = head.u32::<34>();
    let key = FlowKey4 {
        src: Be32 {
            be: head.u32::<26>(),
        },
        dst: Be32 {
            be: head.u32::<30>(),
        },
        sport: Be16 { be: ports as u16 },
        dport: Be16 {
            be: (ports >> 16) as u16,
        },
        scope: FlowKey4::scope(from, protocol),
    };
    let Some(flow) = maps::flow(&key) else {
        // The host's own connections: the stack's, without asking further.
        let host = matches!(hook, Hook::FromNetdev)
            && maps::node_v4().be == key.dst.be
            && origin::spoofed(key.src).is_none();
        return host.then_some(NEXT);
    };
    if flow.state & state::FAST == 0
        || flow.backend_gen != maps::backend_gen(flow.backend)
        || flow.peer_gen != maps::endpoint_gen(flow.peer)
        || flow.node_gen != maps::node_gen()
    {
        return None;
    }
    let now = packet::jiffies();
    if elapsed(now, flow.last_seen) >= maps::jiffies_per_second() {
        flow.last_seen = now;
    }
    flow.packets += 1;
    flow.bytes += (len - ETHERNET as u32) as u64;
    if flow.translates() && nat::rewrite(skb, flow, protocol).is_err() {
        // Half rewritten at worst: what arrives has a wrong checksum and is sent again.
        return None;
    }
    Some(send::out(skb, flow))
}
