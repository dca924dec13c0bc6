//! Flow entries: forwarding by one, and writing those of a new flow.

use crate::flow::{PacketContext, Verdict};
use crate::maps::{self, ANY, NOEXIST};
use crate::packet::{self, Skb};
use crate::stage::{route, service};
use ebpf_common::config::FLOW_EVENTS;
use ebpf_common::conntrack::{Flow, FlowKey4, action, state};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::event::DECIDED;
use ebpf_common::net::{Be16, protocol};
use ebpf_logic::checksum::{addr_delta, port_delta};
use ebpf_logic::conntrack::{Step, first, is_expired, is_over, next};
use ebpf_logic::nat::{ATTEMPTS, pick_port};
use ebpf_logic::service::hash;

/// Forwards a packet by its flow's entry, or refuses it because the backend was removed. Open:
/// there is no entry, or it must be decided anew.
#[inline(always)]
pub(crate) fn follow(skb: &Skb, context: &mut PacketContext) -> Result<Verdict, Drop> {
    let Some(flow) = maps::flow(&context.key) else {
        return Ok(Verdict::OPEN);
    };
    let removed = flow.backend_gen != maps::backend_gen(flow.backend);
    if context.packet.opens() {
        // A first SYN always decides anew, and writes both directions: the entries may be those
        // of an earlier connection with the same ports. Sent again, it is the same decision.
        if removed || flow.state != state::SYN_SENT || flow.is_reply() {
            return Ok(Verdict::OPEN);
        }
    } else if removed {
        return backend_removed(skb, context, flow);
    }
    if context.packet.protocol == protocol::TCP {
        advance(context, flow);
    }
    flow.last_seen = packet::jiffies();
    flow.packets += 1;
    flow.bytes += (skb.len() - 14) as u64;
    let protocol = context.packet.protocol as u32;
    let node_gen = maps::node_gen();
    let peer_gen = maps::endpoint_gen(flow.peer);
    if flow.node_gen == node_gen && flow.peer_gen == peer_gen {
        return Ok(send(skb, flow, protocol));
    }
    // The service device needs no route.
    if flow.action & action::MASK == action::SERVICE {
        flow.node_gen = node_gen;
        flow.peer_gen = peer_gen;
        return Ok(send(skb, flow, protocol));
    }
    let found = reroute(skb, context, flow)?;
    if found != Verdict::OPEN {
        return Ok(found);
    }
    Ok(send(skb, &context.flow, protocol))
}

#[inline(always)]
fn send(skb: &Skb, flow: &Flow, protocol: u32) -> Verdict {
    Verdict::from_number(crate::send_packet(skb.raw(), flow, protocol))
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
    maps::remove_flow(&flow.answer_key(&context.key));
    if tcp {
        maps::remove_flow(&context.key);
        return service::refused(skb, context, Drop::BackendGone);
    }
    context.target.backend = 0;
    Ok(Verdict::OPEN)
}

/// Moves both directions of a TCP connection on.
#[inline(always)]
fn advance(context: &PacketContext, flow: &mut Flow) {
    let Step { own, other } = next(flow.state, context.packet.flags);
    flow.state = own;
    if let Some(answers) = maps::flow(&flow.answer_key(&context.key)) {
        answers.state = other;
    }
}

/// Finds the route anew when the node's routes or the receiving endpoint changed; backend and
/// translation stay. The entry is replaced whole, so that no other CPU joins an old route to a
/// new generation; the new one is in the context.
#[inline(always)]
fn reroute(skb: &Skb, context: &mut PacketContext, flow: &Flow) -> Result<Verdict, Drop> {
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
    context.flow = Flow {
        action: context.route.action | flow.action & !action::MASK,
        ifindex: context.route.ifindex,
        nexthop: context.route.nexthop,
        peer: context.route.peer,
        peer_gen: context.flow.peer_gen,
        node_gen: context.flow.node_gen,
        ..*flow
    };
    // Without room for it the old entry stays outdated, and the next packet tries again.
    maps::put_flow(&context.key, &context.flow, ANY);
    Ok(Verdict::OPEN)
}

/// Makes the entry of the packet's own direction.
#[inline(always)]
pub(crate) fn begin(skb: &Skb, context: &mut PacketContext) -> Result<Verdict, Drop> {
    route::back(skb, context);
    let Step { own, other: _ } = first(context.packet.protocol, context.packet.flags);
    context.flow = Flow {
        packets: 1,
        bytes: (skb.len() - 14) as u64,
        backend: context.target.backend,
        backend_gen: context.target.backend_gen,
        peer_gen: context.flow.peer_gen,
        node_gen: context.flow.node_gen,
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
    };
    Ok(Verdict::OPEN)
}

/// Writes the packet's own direction.
#[inline(always)]
pub(crate) fn write(skb: &Skb, context: &mut PacketContext) -> Result<Verdict, Drop> {
    translate(&context.key, &mut context.flow);
    if !maps::put_flow(&context.key, &context.flow, ANY) && context.flow.translates() {
        return Err(Drop::NoFlowEntry);
    }
    if context.target.backend != 0 {
        maps::count_connection(context.target.backend);
    }
    if maps::flags() & FLOW_EVENTS != 0 {
        crate::report_event(skb.raw(), context, DECIDED as u32, 0);
    }
    Ok(Verdict::OPEN)
}

/// Differences of a translation; none if nothing changes.
#[inline(always)]
fn translate(key: &FlowKey4, flow: &mut Flow) {
    if flow.src.be != key.src.be
        || flow.dst.be != key.dst.be
        || flow.sport.be != key.sport.be
        || flow.dport.be != key.dport.be
    {
        flow.action |= action::NAT;
        flow.addr_delta = addr_delta(key, flow);
        flow.port_delta = port_delta(key, flow);
    }
}

/// Writes the direction of the answers. Their tuple (receiver, sender) may be that of another
/// flow's answers, through another service or directly: if that one is alive, this flow takes
/// another source port.
#[inline(always)]
pub(crate) fn answers(context: &mut PacketContext) -> Result<Verdict, Drop> {
    let mut key = context.flow.answer_key(&context.key);
    let Step { own: _, other } = first(context.packet.protocol, context.packet.flags);
    // From the network nothing is translated here, and the answers decide for themselves.
    if matches!(context.hook(), Hook::FromNetdev) {
        return Ok(Verdict::OPEN);
    }
    let mut answer = Flow {
        packets: 0,
        bytes: 0,
        backend: context.flow.backend,
        backend_gen: context.flow.backend_gen,
        peer_gen: context.endpoint_gen,
        node_gen: context.flow.node_gen,
        last_seen: context.flow.last_seen,
        ifindex: context.back.ifindex,
        nexthop: context.back.nexthop,
        src: context.key.dst,
        dst: context.key.src,
        sport: context.key.dport,
        dport: context.key.sport,
        peer: context.back.peer,
        addr_delta: 0,
        port_delta: 0,
        action: context.back.action | action::REPLY,
        state: other,
    };
    translate(&key, &mut answer);
    if maps::put_flow(&key, &answer, NOEXIST) {
        return Ok(Verdict::OPEN);
    }
    if !in_use(context, &key) {
        return if maps::put_flow(&key, &answer, ANY) {
            Ok(Verdict::OPEN)
        } else {
            Err(Drop::NoFlowEntry)
        };
    }
    let start = hash(&context.key, context.flow.last_seen);
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        key.dport = Be16::new(pick_port(start, attempt));
        answer.action &= !action::NAT;
        translate(&key, &mut answer);
        if maps::put_flow(&key, &answer, NOEXIST) {
            context.flow.sport = key.dport;
            return Ok(Verdict::OPEN);
        }
        attempt += 1;
    }
    Err(Drop::NoPort)
}

/// Whether the entry under the answers' key is in use by another flow. An entry that belongs to
/// a flow that is over is removed.
#[inline(always)]
fn in_use(context: &PacketContext, answer_key: &FlowKey4) -> bool {
    let Some(there) = maps::flow(answer_key) else {
        return false;
    };
    let owner_key = there.answer_key(answer_key);
    if same(&owner_key, &context.key) {
        return false;
    }
    if !there.translates() && context.flow.backend == 0 && !context.packet.opens() {
        return false;
    }
    let Some(owner) = maps::flow(&owner_key) else {
        return false;
    };
    let alive = !is_over(owner.state)
        && !is_expired(owner, context.flow.last_seen, maps::jiffies_per_second())
        && owner.backend_gen == maps::backend_gen(owner.backend)
        && same(&owner.answer_key(&owner_key), answer_key);
    if !alive {
        maps::remove_flow(&owner_key);
    }
    alive
}

/// Equality field by field; of whole structs it would be a call of memcmp.
#[inline(always)]
fn same(a: &FlowKey4, b: &FlowKey4) -> bool {
    a.src.be == b.src.be
        && a.dst.be == b.dst.be
        && a.sport.be == b.sport.be
        && a.dport.be == b.dport.be
        && a.scope == b.scope
}
