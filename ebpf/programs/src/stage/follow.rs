//! Forwards a packet by its flow's entry.

use crate::family::Family;
use crate::flow::{PacketContext, Verdict};
use crate::maps;
use crate::packet::{self, Skb};
use crate::stage::{reply_tuple, service};
use ebpf_common::conntrack::{Flow, action, state};
use ebpf_common::drop::Drop;
use ebpf_common::net::protocol;
use ebpf_logic::conntrack::{Step, is_over, next};
use ebpf_logic::generation::{flow_gen, follows_frontend, route_gen};
use ebpf_logic::parse::ETHERNET;

/// Forwards a packet by its flow's entry, or refuses it because the backend was removed. Open:
/// there is no entry, or it must be decided anew.
#[inline(always)]
pub(crate) fn follow<A: Family>(
    skb: &Skb,
    context: &mut PacketContext<A>,
) -> Result<Verdict, Drop> {
    // All is decided from a copy: the entry's memory may become another flow's at any time.
    let Some(entry) = maps::copy_flow(&context.key, &mut context.flow) else {
        return Ok(Verdict::OPEN);
    };
    let removed = context.flow.backend_gen != maps::backend_gen(context.flow.backend);
    let opens = context.packet.opens();
    if opens && !continues(context, removed) {
        return Ok(Verdict::OPEN);
    }
    if removed {
        return backend_removed(skb, context);
    }
    if follows_frontend(&context.flow) && A::has_other_frontend(context) != 0 {
        forget(context);
        return Ok(Verdict::OPEN);
    }
    seen(skb, entry);
    seen(skb, &mut context.flow);
    let found = current(skb, context, entry)?;
    if found != Verdict::OPEN {
        return Ok(found);
    }
    let unchanged = opens && context.flow.is_reply();
    if !unchanged {
        let advanced = advance(context);
        if advanced.reason() == Drop::NoPort as u32 {
            // Another connection has the reply tuple: this one gets another one, as a new one
            // would.
            A::remove_entry(&context.key);
            return Ok(Verdict::OPEN);
        }
        if advanced != Verdict::OPEN {
            return Ok(advanced);
        }
    }
    context.route.action = context.flow.action & action::ROUTE;
    let hop = Verdict::from_number(A::spend_hop(skb.raw(), context));
    if hop != Verdict::OPEN {
        return Ok(hop);
    }
    let protocol = context.packet.protocol as u32;
    Ok(Verdict::from_number(A::send_packet(
        skb.raw(),
        &context.flow,
        protocol,
    )))
}

/// Counts the packet.
#[inline(always)]
fn seen<A: Family>(skb: &Skb, flow: &mut Flow<A>) {
    flow.last_seen = packet::jiffies();
    flow.packets += 1;
    flow.bytes += (skb.len() - ETHERNET as u32) as u64;
}

/// Whether a SYN belongs to the connection that has the entry. Sent again it does, until the
/// connection is established: it is the same decision. From the other side, forged or late, it
/// is the client's to judge (RFC 5961, 4) as long as the connection is alive, or has not expired
/// if it is translated. All others begin a connection: the entries are those of an earlier one
/// with the same ports.
#[inline(always)]
fn continues<A: Family>(context: &mut PacketContext<A>, removed: bool) -> bool {
    let flow = &context.flow;
    if removed {
        false
    } else if flow.is_reply() {
        let translates = flow.translates();
        reply_tuple::life_in(context).keeps_answers(translates)
    } else {
        flow.state == state::SYN_SENT || flow.state == state::SYN_RECEIVED
    }
}

/// Whether the datagrams of the flow would not come to its backend by their frontend any more: it
/// belongs to another service, is closed, or not for this client.
#[inline(always)]
pub(crate) fn has_other_frontend<A: Family>(context: &PacketContext<A>) -> bool {
    let flow = &context.flow;
    let route = route_gen(maps::endpoint_gen(flow.peer), maps::node_gen());
    if flow.route_gen == flow_gen(flow, route, context.frontend_gen) {
        return false;
    }
    let Some(frontend) = service::frontend_of(&context.packet) else {
        return true;
    };
    match (
        service::table_of(context, frontend),
        maps::backend(flow.backend),
    ) {
        (Ok(table), Some(backend)) => !backend.is_of(table),
        (Ok(_) | Err(_), _) => true,
    }
}

/// Removes both entries; the packet begins a flow.
#[inline(always)]
fn forget<A: Family>(context: &mut PacketContext<A>) {
    if reply_tuple::other(&context.key, &context.flow).is_some() {
        A::remove_entry(&context.flow.answer_key(&context.key));
    }
    A::remove_entry(&context.key);
}

/// A TCP sender is told at once, UDP goes to another backend.
#[inline(always)]
fn backend_removed<A: Family>(skb: &Skb, context: &mut PacketContext<A>) -> Result<Verdict, Drop> {
    let flow = &context.flow;
    let reply = flow.is_reply();
    context.target.backend = flow.backend;
    let tcp = context.packet.protocol == protocol::TCP;
    if reply && !tcp {
        return Err(Drop::BackendGone);
    }
    if reply_tuple::other_in(context).is_some() {
        A::remove_entry(&context.answer_key);
    }
    if tcp {
        A::remove_entry(&context.key);
        return service::refused(skb, context, Drop::BackendGone);
    }
    context.target.backend = 0;
    Ok(Verdict::OPEN)
}

/// Makes the route of the flow current, in the context and in the entry.
#[inline(always)]
fn current<A: Family>(
    skb: &Skb,
    context: &mut PacketContext<A>,
    entry: &mut Flow<A>,
) -> Result<Verdict, Drop> {
    let route = route_gen(maps::endpoint_gen(context.flow.peer), maps::node_gen());
    let now = flow_gen(&context.flow, route, context.frontend_gen);
    // The service device needs no route.
    let needs_route = context.flow.action & action::MASK != action::SERVICE;
    if context.flow.route_gen != now && needs_route {
        return reroute(skb, context, entry);
    }
    context.route_gen = route;
    stamp(context, entry);
    Ok(Verdict::OPEN)
}

/// The decision stands, under the generations in the context: its backend was found to be the
/// same after the epoch was read. An entry that has become another flow's, or another decision's,
/// is left alone.
#[inline(always)]
fn stamp<A: Family>(context: &mut PacketContext<A>, entry: &mut Flow<A>) {
    context.flow.route_gen = flow_gen(&context.flow, context.route_gen, context.frontend_gen);
    context.flow.epoch = context.epoch;
    if maps::is_entry(&context.key, entry) {
        entry.route_gen = context.flow.route_gen;
        entry.epoch = context.epoch;
    }
}

/// Finds the route anew when the node's routes or the receiving endpoint changed; backend and
/// translation stay. With another route the entry is replaced whole, so that no other CPU joins
/// an old route to a new generation.
#[inline(always)]
fn reroute<A: Family>(
    skb: &Skb,
    context: &mut PacketContext<A>,
    entry: &mut Flow<A>,
) -> Result<Verdict, Drop> {
    context.target.src = context.flow.src;
    context.target.dst = context.flow.dst;
    context.target.backend = context.flow.backend;
    let found = Verdict::from_number(A::find_route(skb.raw(), context));
    if found != Verdict::OPEN {
        // The stack takes packets as they are sent only.
        return if context.flow.translates() {
            Err(Drop::NoRoute)
        } else {
            Ok(found)
        };
    }
    let route = &context.route;
    let flow = &mut context.flow;
    if flow.action & action::ROUTE == route.action
        && flow.ifindex == route.ifindex
        && flow.nexthop.is(route.nexthop)
        && flow.peer == route.peer
    {
        stamp(context, entry);
        return Ok(Verdict::OPEN);
    }
    flow.action = route.action | flow.action & !action::ROUTE;
    flow.ifindex = route.ifindex;
    flow.nexthop = route.nexthop;
    flow.peer = route.peer;
    flow.route_gen = flow_gen(flow, context.route_gen, context.frontend_gen);
    flow.epoch = context.epoch;
    // If that fails the old entry stays outdated, and the next packet tries again.
    A::put_entry(&context.key, &context.flow);
    Ok(Verdict::OPEN)
}

/// Counts the end of a connection for its backend, or takes it back if the end was not one.
#[inline(always)]
fn count_end<A: Family>(flow: &Flow<A>, state: u8) {
    if flow.backend != 0 && is_over(flow.state) != is_over(state) {
        let by = if is_over(state) { 1 } else { u64::MAX };
        maps::count_end(flow.backend, by);
    }
}

/// Moves both directions on, and writes the other one again if it was lost. `NoPort`: another
/// connection has its tuple. If there is no entry for it, a packet that would be answered
/// untranslated is dropped, and sent again.
#[inline(always)]
fn advance<A: Family>(context: &mut PacketContext<A>) -> Verdict {
    let Step { own, other } = next(context.flow.state, context.packet.flags);
    if context.flow.state != own {
        count_end(&context.flow, own);
        context.flow.state = own;
        // A new route has put another entry in the place of the one that was found.
        if let Some(entry) = maps::flow(&context.key) {
            entry.state = own;
        }
    }
    if let Some(entry) = reply_tuple::other_in(context) {
        entry.state = other;
        return Verdict::OPEN;
    }
    if is_over(own) || !reply_tuple::has_other(&context.flow, context.hook()) {
        return Verdict::OPEN;
    }
    context.other_state = other;
    let restored = Verdict::from_number(A::restore_other(context));
    if restored.reason() == Drop::NoFlowEntry as u32 && !context.flow.translates() {
        return Verdict::OPEN;
    }
    restored
}
