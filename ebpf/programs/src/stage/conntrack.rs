//! Flows: what is known about a packet's, and writing down what was decided.

use crate::flow::{Case, Verdict};
use crate::maps::{self, ANY, NOEXIST};
use crate::packet::{self, Skb};
use crate::stage::{route, service};
use ebpf_common::config::FLOW_EVENTS;
use ebpf_common::conntrack::{Flow, FlowKey4, SCOPE_NETDEV, action, state};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::event::DECIDED;
use ebpf_common::net::{Be16, protocol};
use ebpf_logic::checksum::{addr_delta, port_delta};
use ebpf_logic::conntrack::{Step, first, is_expired, is_over, next};
use ebpf_logic::nat::{ATTEMPTS, pick_port};
use ebpf_logic::service::hash;

/// A packet of a flow that is written down: forwarded by it, or refused because its backend is
/// gone. Open: it has to be decided.
#[inline(always)]
pub(crate) fn follow(skb: &Skb, case: &mut Case) -> Result<Verdict, Drop> {
    let Some(flow) = maps::flow(&case.key) else {
        return Ok(Verdict::OPEN);
    };
    let gone = flow.backend_gen != maps::backend_gen(flow.backend);
    if case.packet.opens() {
        // A first SYN always decides anew, and writes both directions: the entries may be those
        // of an earlier connection with the same ports. Sent again, it is the same decision.
        if gone || flow.state != state::SYN_SENT || flow.is_reply() {
            return Ok(Verdict::OPEN);
        }
    } else if gone {
        return departed(skb, case, flow);
    }
    if case.packet.protocol == protocol::TCP {
        advance(case, flow);
    }
    reroute(skb, case, flow)?;
    flow.last_seen = packet::jiffies();
    flow.packets += 1;
    flow.bytes += (skb.len() - 14) as u64;
    let protocol = case.packet.protocol as u32;
    Ok(Verdict::from_number(crate::send_packet(
        skb.context(),
        flow,
        protocol,
    )))
}

/// The flow's backend is gone: a TCP sender is told at once, UDP goes to another one.
#[inline(always)]
fn departed(skb: &Skb, case: &mut Case, flow: &Flow) -> Result<Verdict, Drop> {
    let reply = flow.is_reply();
    case.target.backend = flow.backend;
    let tcp = case.packet.protocol == protocol::TCP;
    if reply && !tcp {
        return Err(Drop::BackendGone);
    }
    maps::remove_flow(&flow.answer_key(&case.key));
    if tcp {
        maps::remove_flow(&case.key);
        return service::refused(skb, case, Drop::BackendGone);
    }
    case.target.backend = 0;
    Ok(Verdict::OPEN)
}

/// Moves both directions of a TCP connection on.
#[inline(always)]
fn advance(case: &Case, flow: &mut Flow) {
    let Step { own, other } = next(flow.state, case.packet.flags);
    flow.state = own;
    if let Some(answers) = maps::flow(&flow.answer_key(&case.key)) {
        answers.state = other;
    }
}

/// Finds the way anew when the node's routes or the receiving endpoint changed; backend and
/// translation stay.
#[inline(always)]
fn reroute(skb: &Skb, case: &mut Case, flow: &mut Flow) -> Result<(), Drop> {
    let node_gen = maps::node_gen();
    if flow.node_gen == node_gen && flow.peer_gen == maps::endpoint_gen(flow.peer) {
        return Ok(());
    }
    if flow.action & action::MASK != action::SERVICE {
        case.target.dst = flow.dst;
        case.target.backend = flow.backend;
        if crate::find_way(skb.context(), case) != Verdict::OPEN.number() {
            return Err(Drop::NoRoute);
        }
        flow.action = case.way.action | flow.action & !action::MASK;
        flow.ifindex = case.way.ifindex;
        flow.nexthop = case.way.nexthop;
        flow.peer = case.way.peer;
    }
    flow.peer_gen = maps::endpoint_gen(flow.peer);
    flow.node_gen = node_gen;
    Ok(())
}

/// Makes the entry of the packet's own direction.
#[inline(always)]
pub(crate) fn begin(skb: &Skb, case: &mut Case) -> Result<Verdict, Drop> {
    route::back(skb, case);
    let Step { own, other: _ } = first(case.packet.protocol, case.packet.flags);
    case.flow = Flow {
        packets: 1,
        bytes: (skb.len() - 14) as u64,
        backend: case.target.backend,
        backend_gen: case.target.backend_gen,
        peer_gen: maps::endpoint_gen(case.way.peer),
        node_gen: maps::node_gen(),
        last_seen: packet::jiffies(),
        ifindex: case.way.ifindex,
        nexthop: case.way.nexthop,
        src: case.target.src,
        dst: case.target.dst,
        sport: case.key.sport,
        dport: case.target.dport,
        peer: case.way.peer,
        addr_delta: 0,
        port_delta: 0,
        action: case.way.action,
        state: own,
    };
    Ok(Verdict::OPEN)
}

/// Writes the packet's own direction.
#[inline(always)]
pub(crate) fn write(skb: &Skb, case: &mut Case) -> Result<Verdict, Drop> {
    translate(&case.key, &mut case.flow);
    if !maps::put_flow(&case.key, &case.flow, ANY) && case.flow.translates() {
        return Err(Drop::NoFlowEntry);
    }
    if case.target.backend != 0 {
        maps::count_connection(case.target.backend);
    }
    if maps::flags() & FLOW_EVENTS != 0 {
        crate::report_event(skb.context(), case, DECIDED as u32, 0);
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
pub(crate) fn answers(case: &mut Case) -> Result<Verdict, Drop> {
    let mut key = case.flow.answer_key(&case.key);
    let Step { own: _, other } = first(case.packet.protocol, case.packet.flags);
    // From the network nothing is translated here, and the answers decide for themselves: they
    // learn who answers them.
    if matches!(case.hook(), Hook::FromNetdev) {
        if let Some(there) = by_stack(&key) {
            there.ifindex = SCOPE_NETDEV;
        }
        return Ok(Verdict::OPEN);
    }
    if case.flow.action & action::MASK == action::PASS && !case.packet.opens() {
        let scope = FlowKey4::scope(SCOPE_NETDEV, key.protocol());
        if let Some(there) = maps::flow(&FlowKey4 { scope, ..key }) {
            // The answer, by the stack, to what came from the network.
            there.state = other;
            case.flow.ifindex = SCOPE_NETDEV;
            return Ok(Verdict::OPEN);
        }
    }
    let mut answer = Flow {
        packets: 0,
        bytes: 0,
        backend: case.flow.backend,
        backend_gen: case.flow.backend_gen,
        peer_gen: maps::endpoint_gen(case.back.peer),
        node_gen: case.flow.node_gen,
        last_seen: case.flow.last_seen,
        ifindex: case.back.ifindex,
        nexthop: case.back.nexthop,
        src: case.key.dst,
        dst: case.key.src,
        sport: case.key.dport,
        dport: case.key.sport,
        peer: case.back.peer,
        addr_delta: 0,
        port_delta: 0,
        action: case.back.action | action::REPLY,
        state: other,
    };
    translate(&key, &mut answer);
    if maps::put_flow(&key, &answer, NOEXIST) {
        return Ok(Verdict::OPEN);
    }
    if !taken(case, &key) {
        return if maps::put_flow(&key, &answer, ANY) {
            Ok(Verdict::OPEN)
        } else {
            Err(Drop::NoFlowEntry)
        };
    }
    let start = hash(&case.key, case.flow.last_seen);
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        key.dport = Be16::new(pick_port(start, attempt));
        answer.action &= !action::NAT;
        translate(&key, &mut answer);
        if maps::put_flow(&key, &answer, NOEXIST) {
            case.flow.sport = key.dport;
            return Ok(Verdict::OPEN);
        }
        attempt += 1;
    }
    Err(Drop::NoPort)
}

/// The entry of a flow that leaves through the stack.
#[inline(always)]
fn by_stack(key: &FlowKey4) -> Option<&'static mut Flow> {
    maps::flow(key).filter(|flow| flow.action & action::MASK == action::PASS)
}

/// Whether the entry under the answers' key is needed by another flow than this one. What it
/// was of, if it is not needed any more, is removed.
#[inline(always)]
fn taken(case: &Case, answer_key: &FlowKey4) -> bool {
    let Some(there) = maps::flow(answer_key) else {
        return false;
    };
    let owner_key = there.answer_key(answer_key);
    if same(&owner_key, &case.key) {
        return false;
    }
    if !there.translates() && case.flow.backend == 0 && !case.packet.opens() {
        return false;
    }
    let Some(owner) = maps::flow(&owner_key) else {
        return false;
    };
    let alive = !is_over(owner.state)
        && !is_expired(owner, case.flow.last_seen, maps::jiffies_per_second())
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
