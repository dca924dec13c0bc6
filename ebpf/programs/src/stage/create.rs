//! Makes the entry of a new flow: its own direction. That of the answers is `reply_tuple`'s.

use crate::family::Family;
use crate::flow::{NEXT, PacketContext, Verdict};
use crate::maps;
use crate::packet::{self, Skb};
use crate::stage::{entry, route};
use ebpf_common::config::FLOW_EVENTS;
use ebpf_common::conntrack::{Flow, FlowKey, FlowPad, action};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::event::DECIDED;
use ebpf_logic::checksum::{addr_delta, port_delta};
use ebpf_logic::conntrack::{Step, first};
use ebpf_logic::generation::flow_gen;
use ebpf_logic::quota::Share;

/// Makes the entry of the packet's own direction.
#[inline(always)]
pub(crate) fn begin<A: Family>(skb: &Skb, context: &mut PacketContext<A>) -> Result<Verdict, Drop> {
    route::back(context);
    let Step { own, other } = first(context.packet.protocol, context.packet.flags);
    context.other_state = other;
    context.flow = Flow {
        packets: 1,
        bytes: (skb.len() - 14) as u64,
        backend: context.target.backend,
        backend_gen: context.target.backend_gen,
        route_gen: context.route_gen,
        epoch: context.epoch,
        last_seen: packet::jiffies(),
        ifindex: context.route.ifindex,
        nexthop: context.route.nexthop,
        src: context.target.src,
        dst: context.target.dst,
        sport: context.key.sport,
        dport: context.target.dport,
        peer: context.route.peer,
        addr_delta: 0,
        port_delta: 0,
        action: context.route.action,
        state: own,
        pad: FlowPad::default(),
    };
    context.flow.route_gen = flow_gen(&context.flow, context.route_gen, context.frontend_gen);
    match entry::share(&context.key, &context.flow) {
        Share::All => Ok(Verdict::OPEN),
        Share::Needed | Share::None if needs_no_entry(context) => Ok(Verdict::goes(NEXT)),
        // A flood from outside must not end the pod's own connections.
        Share::Needed if is_from_outside(context) => Err(Drop::FlowQuota),
        Share::Needed => Ok(Verdict::OPEN),
        Share::None => Err(Drop::FlowQuota),
    }
}

/// Whether it is a connection from the network to a service.
#[inline(always)]
fn is_from_outside<A: Family>(context: &PacketContext<A>) -> bool {
    matches!(context.hook(), Hook::FromNetdev) && context.flow.backend != 0
}

/// Whether the packet, and its answers, go through the host's stack as they are: so the node still
/// reaches a pod that has used up its entries. Not if the answers are those of another connection.
#[inline(always)]
pub(crate) fn needs_no_entry<A: Family>(context: &PacketContext<A>) -> bool {
    let (key, flow) = (&context.key, &context.flow);
    flow.action & action::MASK == action::PASS
        && flow.src.is(key.src)
        && flow.dst.is(key.dst)
        && flow.dport.be == key.dport.be
        && maps::flow(&flow.answer_key(key)).is_none()
}

/// Writes the packet's own direction.
#[inline(always)]
pub(crate) fn write<A: Family>(skb: &Skb, context: &mut PacketContext<A>) -> Result<Verdict, Drop> {
    translate(&context.key, &mut context.flow);
    let made = A::put_entry(&context.key, &context.flow) != 0;
    if !made && context.flow.translates() {
        return Err(Drop::NoFlowEntry);
    }
    if context.target.backend != 0 && context.target.counted == 0 {
        maps::count_connection(context.target.backend);
    }
    if maps::flags() & FLOW_EVENTS != 0 {
        A::report_event(skb.raw(), context, DECIDED as u32, 0);
    }
    Ok(Verdict::OPEN)
}

/// Differences of a translation; none if nothing changes.
#[inline(always)]
pub(crate) fn translate<A: Family>(key: &FlowKey<A>, flow: &mut Flow<A>) {
    if !flow.src.is(key.src)
        || !flow.dst.is(key.dst)
        || flow.sport.be != key.sport.be
        || flow.dport.be != key.dport.be
    {
        flow.action |= action::NAT;
        flow.addr_delta = addr_delta(key, flow);
        flow.port_delta = port_delta(key, flow);
    }
}
