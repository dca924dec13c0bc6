//! The hop that a packet loses which comes from the network and goes back into it, as at any
//! router (RFC 1812, 5.3.1): a loop through several nodes ends.

use crate::family::Family;
use crate::flow::{PacketContext, Verdict};
use crate::packet::Skb;
use crate::stage::service;
use ebpf_common::conntrack::action;
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;

/// Whether a packet of this hook is forwarded by this action.
#[inline(always)]
pub(crate) const fn is_forwarded(hook: Hook, action: u8) -> bool {
    matches!(hook, Hook::FromNetdev) && action & action::MASK == action::NEIGH
}

/// Takes a hop from a packet that is forwarded by `route.action`; the sender is told if it had
/// only one left.
#[inline(always)]
pub(crate) fn take<A: Family>(skb: &Skb, context: &mut PacketContext<A>) -> Result<Verdict, Drop> {
    if !is_forwarded(context.hook(), context.route.action) || A::take_hop(skb) {
        return Ok(Verdict::OPEN);
    }
    // Of the node, as the destination may be an address of services.
    if !A::node().is(A::UNSPECIFIED) {
        context.packet.dst = A::node();
    }
    service::refused(skb, context, Drop::HopLimit)
}
