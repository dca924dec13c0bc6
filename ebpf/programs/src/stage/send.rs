//! Sends a packet where its flow says.

use crate::family::Family;
use crate::flow::{NEXT, PacketContext, Verdict};
use crate::maps;
use crate::packet::Skb;
use crate::stage::nat;
use ebpf_common::config::TRANSLATED_MARK;
use ebpf_common::conntrack::{Flow, action};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;

/// The packet as it is, by the flow's action.
#[inline(always)]
pub(crate) fn out<A: Family>(skb: &Skb, flow: &Flow<A>) -> i32 {
    match flow.action & action::MASK {
        action::PEER => skb.redirect_peer(flow.ifindex),
        action::NEIGH => skb.redirect_neigh(flow.ifindex, flow.nexthop),
        action::POD_NEIGH => {
            // The pod's own hook must not take the translated packet for another flow.
            skb.set_mark(TRANSLATED_MARK);
            skb.redirect_neigh(flow.ifindex, flow.nexthop)
        }
        action::SERVICE => into_host::<A>(skb, flow.ifindex),
        _ => NEXT,
    }
}

/// Translates if the flow says so, then sends.
#[inline(always)]
pub(crate) fn translated<A: Family>(
    skb: &Skb,
    flow: &Flow<A>,
    protocol: u8,
) -> Result<Verdict, Drop> {
    if flow.translates() {
        nat::rewrite(skb, flow, protocol)?;
    }
    Ok(Verdict::goes(out(skb, flow)))
}

/// Sends the packet by the route to `target.dst`, without a flow.
#[inline(always)]
pub(crate) fn by_route<A: Family>(
    skb: &Skb,
    context: &mut PacketContext<A>,
) -> Result<Verdict, Drop> {
    let found = Verdict::from_number(A::find_route(skb.raw(), context));
    if found != Verdict::OPEN {
        return Ok(found);
    }
    context.flow.action = context.route.action;
    context.flow.ifindex = context.route.ifindex;
    context.flow.nexthop = context.route.nexthop;
    Ok(Verdict::goes(out(skb, &context.flow)))
}

/// Back to the sender: the host, the pod behind the interface, or by it to the network.
#[inline(always)]
pub(crate) fn back<A: Family>(skb: &Skb, hook: Hook) -> i32 {
    match hook {
        Hook::ToNetdev => into_host::<A>(skb, skb.ifindex()),
        Hook::FromNetdev => skb.redirect_neigh(skb.ifindex(), A::UNSPECIFIED),
        Hook::FromPod | Hook::ToPod => skb.redirect_peer(skb.ifindex()),
    }
}

/// Into the host's stack through the service device, which the answers to service addresses
/// must come in by (strict reverse path filtering); its address is what the packet is for.
#[inline(always)]
fn into_host<A: Family>(skb: &Skb, ifindex: u32) -> i32 {
    if let Some(head) = skb.headers::<A, 0>() {
        let [first, second, third] = maps::service_mac();
        head.set_u16::<0>(first);
        head.set_u16::<2>(second);
        head.set_u16::<4>(third);
    }
    skb.redirect_ingress(ifindex)
}
