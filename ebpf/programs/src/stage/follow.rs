//! Forwards a packet by its flow's entry.

use crate::flow::{PacketContext, Verdict};
use crate::maps::{self, ANY};
use crate::packet::{self, Skb};
use crate::stage::{reply_tuple, service};
use ebpf_common::conntrack::{Flow, action, state};
use ebpf_common::drop::Drop;
use ebpf_common::net::protocol;
use ebpf_logic::conntrack::{Step, is_over, next};
use ebpf_logic::generation::route_gen;

/// Forwards a packet by its flow's entry, or refuses it because the backend was removed. Open:
/// there is no entry, or it must be decided anew.
#[inline(always)]
pub(crate) fn follow(skb: &Skb, context: &mut PacketContext) -> Result<Verdict, Drop> {
    let Some(flow) = maps::flow(&context.key) else {
        return Ok(Verdict::OPEN);
    };
    let removed = flow.backend_gen != maps::backend_gen(flow.backend);
    let opens = context.packet.opens();
    if opens && !continues(context, flow, removed) {
        return Ok(Verdict::OPEN);
    }
    if removed {
        return backend_removed(skb, context, flow);
    }
    flow.last_seen = packet::jiffies();
    flow.packets += 1;
    flow.bytes += (skb.len() - 14) as u64;
    let found = current(skb, context, flow)?;
    if found != Verdict::OPEN {
        return Ok(found);
    }
    let unchanged = opens && flow.is_reply();
    if !unchanged && !advance(context) {
        // Another connection has the reply tuple: this one gets another one, as a new one would.
        maps::remove_flow(&context.key);
        return Ok(Verdict::OPEN);
    }
    let protocol = context.packet.protocol as u32;
    Ok(Verdict::from_number(crate::send_packet(
        skb.raw(),
        &context.flow,
        protocol,
    )))
}

/// Whether a SYN belongs to the connection that has the entry. Sent again it does, until the
/// connection is established: it is the same decision. From the other side, forged or late, it
/// is the client's to judge (RFC 5961, 4) as long as the connection is alive, or has not expired
/// if it is translated. All others begin a connection: the entries are those of an earlier one
/// with the same ports.
#[inline(always)]
fn continues(context: &PacketContext, flow: &Flow, removed: bool) -> bool {
    if removed {
        false
    } else if flow.is_reply() {
        reply_tuple::life_of(&context.key, flow).keeps_answers(flow.translates())
    } else {
        flow.state == state::SYN_SENT || flow.state == state::SYN_RECEIVED
    }
}

/// A TCP sender is told at once, UDP goes to another backend.
#[inline(always)]
fn backend_removed(skb: &Skb, context: &mut PacketContext, flow: &Flow) -> Result<Verdict, Drop> {
    let reply = flow.is_reply();
    context.target.backend = flow.backend;
    let tcp = context.packet.protocol == protocol::TCP;
    if reply && !tcp {
        return Err(Drop::BackendGone);
    }
    if reply_tuple::other(&context.key, flow).is_some() {
        maps::remove_flow(&flow.answer_key(&context.key));
    }
    if tcp {
        maps::remove_flow(&context.key);
        return service::refused(skb, context, Drop::BackendGone);
    }
    context.target.backend = 0;
    Ok(Verdict::OPEN)
}

/// Puts the entry into the context, with a route that is current.
#[inline(always)]
fn current(skb: &Skb, context: &mut PacketContext, flow: &mut Flow) -> Result<Verdict, Drop> {
    let now = route_gen(maps::endpoint_gen(flow.peer), maps::node_gen());
    if flow.route_gen != now {
        // The service device needs no route.
        if flow.action & action::MASK != action::SERVICE {
            return reroute(skb, context, flow);
        }
        flow.route_gen = now;
    }
    // Its backend was found to be the same after the epoch was read.
    flow.epoch = context.epoch;
    context.flow = *flow;
    Ok(Verdict::OPEN)
}

/// Finds the route anew when the node's routes or the receiving endpoint changed; backend and
/// translation stay. With another route the entry is replaced whole, so that no other CPU joins
/// an old route to a new generation.
#[inline(always)]
fn reroute(skb: &Skb, context: &mut PacketContext, flow: &mut Flow) -> Result<Verdict, Drop> {
    context.target.dst = flow.dst;
    context.target.backend = flow.backend;
    let found = Verdict::from_number(crate::find_route(skb.raw(), context));
    if found != Verdict::OPEN {
        // The stack takes packets as they are sent only.
        return if flow.translates() {
            Err(Drop::NoRoute)
        } else {
            Ok(found)
        };
    }
    let route = &context.route;
    if flow.action & action::ROUTE == route.action
        && flow.ifindex == route.ifindex
        && flow.nexthop.be == route.nexthop.be
        && flow.peer == route.peer
    {
        flow.route_gen = context.route_gen;
        flow.epoch = context.epoch;
        context.flow = *flow;
        return Ok(Verdict::OPEN);
    }
    context.flow = Flow {
        action: route.action | flow.action & !action::ROUTE,
        ifindex: route.ifindex,
        nexthop: route.nexthop,
        peer: route.peer,
        route_gen: context.route_gen,
        epoch: context.epoch,
        ..*flow
    };
    // Without room for it the old entry stays outdated, and the next packet tries again.
    maps::put_flow(&context.key, &context.flow, ANY);
    Ok(Verdict::OPEN)
}

/// Moves both directions on, and writes the other one again if it was lost; false if it cannot
/// be because another connection has its tuple.
#[inline(always)]
fn advance(context: &mut PacketContext) -> bool {
    let Step { own, other } = next(context.flow.state, context.packet.flags);
    if context.flow.state != own {
        context.flow.state = own;
        // A new route has put another entry in the place of the one that was found.
        if let Some(entry) = maps::flow(&context.key) {
            entry.state = own;
        }
    }
    if let Some(entry) = reply_tuple::other(&context.key, &context.flow) {
        entry.state = other;
        return true;
    }
    if is_over(own) || !reply_tuple::has_other(&context.flow, context.hook()) {
        return true;
    }
    context.other_state = other;
    Verdict::from_number(crate::restore_other(context)) == Verdict::OPEN
}
