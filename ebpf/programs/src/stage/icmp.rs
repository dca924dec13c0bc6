//! ICMP errors belong to the flow that they quote: translated outside and inside, so that path
//! MTU discovery and refused datagrams work through every address.
//!
//! The quotation is a packet that went the other way, so its tuple turned round is the key of a
//! flow of this hook: the one whose packets get the same translation that the error needs.

use crate::family::Family;
use crate::flow::{PacketContext, Verdict};
use crate::maps;
use crate::packet::Skb;
use crate::stage::send;
use ebpf_common::conntrack::{FlowKey, action, scope};
use ebpf_common::drop::Drop;
use ebpf_common::net::Be16;

/// Sends an error as the flow that it is about, translated as that is; an error about no flow is
/// left to the next stage.
#[inline(always)]
pub(crate) fn translate<A: Family>(
    skb: &Skb,
    context: &mut PacketContext<A>,
) -> Result<Verdict, Drop> {
    let packet = &context.packet;
    if packet.protocol != A::ICMP || !A::is_error(packet.icmp_type) {
        return Ok(Verdict::OPEN);
    }
    let Some(quoted) = A::quoted(skb) else {
        return Ok(Verdict::OPEN);
    };
    let key = FlowKey {
        src: quoted.dst,
        dst: quoted.src,
        sport: Be16 {
            be: (quoted.ports >> 16) as u16,
        },
        dport: Be16 {
            be: quoted.ports as u16,
        },
        scope: scope(context.key.from(), quoted.protocol),
    };
    let Some(flow) = maps::flow(&key) else {
        return Ok(Verdict::OPEN);
    };
    if !flow.translates() {
        // Unchanged, but by the flow's route: a router's address says nothing about it.
        let to_its_end = packet.dst.is(flow.dst);
        return Ok(if to_its_end {
            Verdict::goes(send::out(skb, flow))
        } else {
            Verdict::OPEN
        });
    }
    // A router that sent the error keeps its address, the flow's end does not.
    let own = packet.src.is(key.src);
    if !A::rewrite_error(skb, packet, flow, own) {
        return Err(Drop::RewriteFailed);
    }
    if flow.action & action::MASK != action::PASS {
        return Ok(Verdict::goes(send::out(skb, flow)));
    }
    // Not routed yet, or by the stack, which may take the source for forged.
    context.target.src = flow.src;
    context.target.dst = flow.dst;
    context.target.backend = flow.backend;
    send::by_route(skb, context)
}
