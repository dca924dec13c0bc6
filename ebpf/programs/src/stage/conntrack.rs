//! Flows: what is known about a packet's, and writing down what was decided.

use crate::flow::{Origin, Target, Verdict, Way};
use crate::hook::finish::report;
use crate::maps::{self, ANY, NOEXIST};
use crate::packet::{self, Skb};
use crate::stage::{route, send, service};
use ebpf_common::config::FLOW_EVENTS;
use ebpf_common::conntrack::{Flow, FlowKey4, action, state};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::event::DECIDED;
use ebpf_common::net::{Be16, protocol};
use ebpf_logic::checksum::{addr_delta, port_delta};
use ebpf_logic::conntrack::{Step, first, is_expired, is_over, next};
use ebpf_logic::nat::{ATTEMPTS, pick_port};
use ebpf_logic::parse::Packet;
use ebpf_logic::service::hash;

/// A packet of a flow that is written down: forwarded by it, or refused because its backend is
/// gone. `None`: it has to be decided.
#[inline(always)]
pub(crate) fn known(
    skb: &Skb,
    origin: &Origin,
    packet: &Packet,
    key: &FlowKey4,
) -> Result<Option<Verdict>, Drop> {
    let Some(flow) = maps::flow(key) else {
        return Ok(None);
    };
    let gone = flow.backend_gen != maps::backend_gen(flow.backend);
    if packet.opens() {
        // A first SYN always decides anew, and writes both directions: the entries may be those
        // of an earlier connection with the same ports. Sent again, it is the same decision.
        if gone || flow.state != state::SYN_SENT || flow.is_reply() {
            return Ok(None);
        }
    } else if gone {
        return departed(skb, origin, packet, key, flow);
    }
    if packet.protocol == protocol::TCP {
        advance(key, flow, packet.flags);
    }
    reroute(skb, origin, packet, flow)?;
    flow.last_seen = packet::jiffies();
    flow.packets += 1;
    flow.bytes += (skb.len() - 14) as u64;
    Ok(Some(send::translated(skb, key, flow)?))
}

/// The flow's backend is gone: a TCP sender is told at once, UDP goes to another one.
#[inline(always)]
fn departed(
    skb: &Skb,
    origin: &Origin,
    packet: &Packet,
    key: &FlowKey4,
    flow: &Flow,
) -> Result<Option<Verdict>, Drop> {
    let answers = flow.answer_key(key);
    let reply = flow.is_reply();
    if packet.protocol == protocol::TCP {
        maps::remove_flow(&answers);
        maps::remove_flow(key);
        return service::refuse(skb, origin, packet, Drop::BackendGone).map(Some);
    }
    if reply {
        return Err(Drop::BackendGone);
    }
    maps::remove_flow(&answers);
    Ok(None)
}

/// Moves both directions of a TCP connection on.
#[inline(always)]
fn advance(key: &FlowKey4, flow: &mut Flow, flags: u8) {
    let Step { own, other } = next(flow.state, flags);
    flow.state = own;
    if let Some(answers) = maps::flow(&flow.answer_key(key)) {
        answers.state = other;
    }
}

/// Finds the way anew when the node's routes or the receiving endpoint changed; backend and
/// translation stay.
#[inline(always)]
fn reroute(skb: &Skb, origin: &Origin, packet: &Packet, flow: &mut Flow) -> Result<(), Drop> {
    let node_gen = maps::node_gen();
    if flow.node_gen == node_gen && flow.peer_gen == maps::endpoint_gen(flow.peer) {
        return Ok(());
    }
    if flow.action & action::MASK != action::SERVICE {
        let target = Target {
            src: flow.src,
            dst: flow.dst,
            dport: flow.dport,
            backend: flow.backend,
            backend_gen: flow.backend_gen,
        };
        let way = route::to(skb, origin, packet.src, &target)?;
        flow.action = way.action | flow.action & !action::MASK;
        flow.ifindex = way.ifindex;
        flow.nexthop = way.nexthop;
        flow.peer = way.peer;
    }
    flow.peer_gen = maps::endpoint_gen(flow.peer);
    flow.node_gen = node_gen;
    Ok(())
}

/// Writes down a decision in both directions and returns the packet's own.
#[inline(always)]
pub(crate) fn begin(
    skb: &Skb,
    origin: &Origin,
    packet: &Packet,
    key: &FlowKey4,
    target: &Target,
    way: &Way,
) -> Result<Flow, Drop> {
    let Step { own, other } = first(packet.protocol, packet.flags);
    let mut flow = Flow {
        packets: 1,
        bytes: (skb.len() - 14) as u64,
        backend: target.backend,
        backend_gen: target.backend_gen,
        peer_gen: maps::endpoint_gen(way.peer),
        node_gen: maps::node_gen(),
        last_seen: packet::jiffies(),
        ifindex: way.ifindex,
        nexthop: way.nexthop,
        src: target.src,
        dst: target.dst,
        sport: key.sport,
        dport: target.dport,
        peer: way.peer,
        addr_delta: 0,
        port_delta: 0,
        action: way.action,
        state: own,
    };
    // From the network nothing is translated here, and the answers decide for themselves.
    if !matches!(origin.hook, Hook::FromNetdev) {
        let back = route::back(skb, origin, way);
        answers(packet, key, &mut flow, &back, other)?;
    }
    translate(key, &mut flow);
    if !maps::put_flow(key, &flow, ANY) && flow.translates() {
        return Err(Drop::NoFlowEntry);
    }
    if target.backend != 0 {
        maps::count_connection(target.backend);
    }
    if maps::config().flags & FLOW_EVENTS != 0 {
        report(
            skb,
            origin.hook,
            Some(packet),
            DECIDED,
            0,
            target.backend,
            skb.len(),
        );
    }
    Ok(flow)
}

/// Differences of a translation; none if nothing changes.
#[inline(always)]
fn translate(key: &FlowKey4, flow: &mut Flow) {
    if flow.src != key.src
        || flow.dst != key.dst
        || flow.sport != key.sport
        || flow.dport != key.dport
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
fn answers(
    packet: &Packet,
    key: &FlowKey4,
    flow: &mut Flow,
    back: &Way,
    state: u8,
) -> Result<(), Drop> {
    let mut answer_key = flow.answer_key(key);
    let mut answer = Flow {
        packets: 0,
        bytes: 0,
        backend: flow.backend,
        backend_gen: flow.backend_gen,
        peer_gen: maps::endpoint_gen(back.peer),
        node_gen: flow.node_gen,
        last_seen: flow.last_seen,
        ifindex: back.ifindex,
        nexthop: back.nexthop,
        src: key.dst,
        dst: key.src,
        sport: key.dport,
        dport: key.sport,
        peer: back.peer,
        addr_delta: 0,
        port_delta: 0,
        action: back.action | action::REPLY,
        state,
    };
    translate(&answer_key, &mut answer);
    if maps::put_flow(&answer_key, &answer, NOEXIST) {
        return Ok(());
    }
    if !taken(packet, key, flow, &answer_key) {
        return if maps::put_flow(&answer_key, &answer, ANY) {
            Ok(())
        } else {
            Err(Drop::NoFlowEntry)
        };
    }
    let start = hash(key, flow.last_seen);
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        flow.sport = Be16::new(pick_port(start, attempt));
        answer_key.dport = flow.sport;
        answer.action &= !action::NAT;
        translate(&answer_key, &mut answer);
        if maps::put_flow(&answer_key, &answer, NOEXIST) {
            return Ok(());
        }
        attempt += 1;
    }
    Err(Drop::NoPort)
}

/// Whether the entry under `answer_key` is needed by a flow other than the one of `key`.
/// What it was of, if it is not needed any more, is removed.
#[inline(always)]
fn taken(packet: &Packet, key: &FlowKey4, flow: &Flow, answer_key: &FlowKey4) -> bool {
    let Some(there) = maps::flow(answer_key) else {
        return false;
    };
    let owner_key = there.answer_key(answer_key);
    if owner_key == *key {
        return false;
    }
    if !there.translates() && flow.backend == 0 && !packet.opens() {
        return false;
    }
    let Some(owner) = maps::flow(&owner_key) else {
        return false;
    };
    let second = maps::config().jiffies_per_second;
    let alive = !is_over(owner.state)
        && !is_expired(owner, flow.last_seen, second)
        && owner.backend_gen == maps::backend_gen(owner.backend)
        && owner.answer_key(&owner_key) == *answer_key;
    if !alive {
        maps::remove_flow(&owner_key);
    }
    alive
}
