//! The entry of the answers, and which connection may have its tuple.
//!
//! The tuple (receiver, sender) may be that of another connection's answers, through another
//! service or directly. `ebpf-logic` judges whether that one is alive; if it is, this one takes
//! another source port, which depends on its tuple alone, so that it is found again.

use crate::family::Family;
use crate::flow::{PacketContext, Verdict};
use crate::maps::{self, Inserted};
use crate::packet;
use crate::stage::create::translate;
use crate::stage::{entry, route};
use ebpf_common::address::Address;
use ebpf_common::conntrack::{Flow, FlowKey, SCOPE_HOST, SCOPE_NETDEV, action};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::{Be16, protocol};
use ebpf_logic::generation::route_gen;
use ebpf_logic::nat::{ATTEMPTS_LATER, OWN, SNAT, pick_port};
use ebpf_logic::reply_tuple::{Life, Moment, is_other, life, same_connection};
use ebpf_logic::service::hash;

/// The other direction's entry, if it is the other direction of this flow.
#[inline(always)]
pub(crate) fn other<A: Family>(key: &FlowKey<A>, flow: &Flow<A>) -> Option<&'static mut Flow<A>> {
    let other_key = flow.answer_key(key);
    let other = maps::flow(&other_key)?;
    if is_other(key, other, &other_key) {
        Some(other)
    } else {
        None
    }
}

/// The same of the flow in the context, whose key `answer_key` is then: a key less on the stack.
#[inline(always)]
pub(crate) fn other_in<A: Family>(context: &mut PacketContext<A>) -> Option<&'static mut Flow<A>> {
    context.answer_key = context.flow.answer_key(&context.key);
    let other = maps::flow(&context.answer_key)?;
    if is_other(&context.key, other, &context.answer_key) {
        Some(other)
    } else {
        None
    }
}

/// Whether the other direction of this flow has an entry for as long as this one has. From the
/// network only those of services have: each direction of another flow makes its own entry.
#[inline(always)]
pub(crate) fn has_other<A: Address>(flow: &Flow<A>, hook: Hook) -> bool {
    flow.is_reply() || flow.backend != 0 || !matches!(hook, Hook::FromNetdev)
}

/// How much the connection of an entry needs its entries.
#[inline(always)]
pub(crate) fn life_of<A: Family>(key: &FlowKey<A>, flow: &Flow<A>) -> Life {
    life_with(flow, other(key, flow))
}

/// The same of the flow in the context.
#[inline(always)]
pub(crate) fn life_in<A: Family>(context: &mut PacketContext<A>) -> Life {
    let other = other_in(context);
    life_with(&context.flow, other)
}

#[inline(always)]
fn life_with<A: Family>(flow: &Flow<A>, other: Option<&'static mut Flow<A>>) -> Life {
    let at = Moment {
        now: packet::jiffies(),
        jiffies_per_second: maps::jiffies_per_second(),
        backend_gen: maps::backend_gen(flow.backend),
    };
    match other {
        Some(other) => life(flow, Some(other), at),
        None => life(flow, None, at),
    }
}

/// Fills in the entry of the answers to the flow in the context, and its key. Field by field: all of
/// them at once would be kept on the stack first.
#[inline(always)]
fn answer<A: Family>(context: &mut PacketContext<A>) {
    // `route::back` knows no route to the network.
    let routed = !matches!(context.hook(), Hook::FromNetdev);
    context.answer_key = context.flow.answer_key(&context.key);
    context.answer.packets = 0;
    context.answer.bytes = 0;
    context.answer.backend = context.flow.backend;
    context.answer.backend_gen = context.flow.backend_gen;
    if routed {
        context.answer.route_gen = route_gen(context.endpoint_gen, context.node_gen);
        context.answer.epoch = context.epoch;
    } else {
        context.answer.route_gen = maps::NEVER;
        context.answer.epoch = context.epoch.wrapping_sub(1);
    }
    context.answer.last_seen = context.flow.last_seen;
    context.answer.ifindex = context.back.ifindex;
    context.answer.nexthop = context.back.nexthop;
    context.answer.src = context.key.dst;
    context.answer.dst = context.key.src;
    context.answer.sport = context.key.dport;
    context.answer.dport = context.key.sport;
    context.answer.peer = context.back.peer;
    context.answer.addr_delta = 0;
    context.answer.port_delta = 0;
    context.answer.action = context.back.action | action::REPLY;
    context.answer.state = context.other_state;
}

/// Writes the direction of the answers of a new flow, which may have to take another source
/// port for it.
#[inline(always)]
pub(crate) fn write<A: Family>(context: &mut PacketContext<A>) -> Result<Verdict, Drop> {
    // From the network only connections to services are translated here; the answers to others
    // decide for themselves. Those of an earlier connection with the same ports begin again with
    // this one.
    if matches!(context.hook(), Hook::FromNetdev) && context.flow.backend == 0 {
        if context.packet.opens()
            && let Some(answers) = other(&context.key, &context.flow)
        {
            answers.state = context.other_state;
        }
        return Ok(Verdict::OPEN);
    }
    answer(context);
    translate(&context.answer_key, &mut context.answer);
    let own = context.answer_key.dport;
    // A TCP connection that began earlier must have the port that it had, even if its own is
    // free by now.
    let began_earlier = context.packet.protocol == protocol::TCP && !context.packet.opens();
    // Its own port may be one of the node's sockets'.
    let snat = is_snat(context);
    if !began_earlier && !snat {
        let taken = take(context, Life::PickedUp);
        if !is_no_port(taken) {
            return Ok(taken);
        }
    }
    let port = A::find_port(context);
    if began_earlier && !snat && port & HAD == 0 {
        context.answer_key.dport = own;
        let taken = take(context, Life::PickedUp);
        if !is_no_port(taken) {
            return Ok(taken);
        }
    }
    if port == 0 {
        return Err(if snat { Drop::SnatPorts } else { Drop::NoPort });
    }
    context.answer_key.dport = Be16 { be: port as u16 };
    context.answer.action &= !action::NAT;
    translate(&context.answer_key, &mut context.answer);
    context.flow.sport = context.answer_key.dport;
    Ok(take(context, Life::PickedUp))
}

/// Whether a client outside takes the node's address.
#[inline(always)]
fn is_snat<A: Family>(context: &PacketContext<A>) -> bool {
    matches!(context.hook(), Hook::FromNetdev) && context.flow.src.is(A::node())
}

#[inline(always)]
fn is_no_port(verdict: Verdict) -> bool {
    verdict.reason() == Drop::NoPort as u32
}

/// Set in the result of `find_port` if the connection has the port already.
const HAD: u32 = 1 << 16;

/// The source port (network order) that the connection took before, or else the first one whose
/// tuple no other connection keeps; 0 if there is none. Changes no entry. The port of `answer_key` is
/// lost.
#[inline(always)]
pub(crate) fn find_port<A: Family>(context: &mut PacketContext<A>) -> u32 {
    let snat = is_snat(context);
    let ports = if snat { SNAT } else { OWN };
    let begins = context.packet.protocol != protocol::TCP || context.packet.opens();
    let start = hash(&context.key, maps::seed());
    let mut free = 0;
    let mut attempt = 0;
    let attempts = if begins || !snat {
        ports.attempts
    } else {
        ATTEMPTS_LATER
    };
    while attempt < attempts {
        context.answer_key.dport = Be16::new(pick_port(ports, start, attempt));
        let port = context.answer_key.dport.be as u32;
        let life = A::life_of_owner(context);
        if life == OURS {
            return port | HAD;
        }
        if free == 0 && life < Life::PickedUp as u32 {
            free = port;
            // Each connection comes here, and a new one need not look further.
            if snat && begins {
                return free;
            }
        }
        attempt += 1;
    }
    free
}

#[inline(always)]
fn take<A: Family>(context: &PacketContext<A>, least: Life) -> Verdict {
    Verdict::from_number(A::take_tuple(context, least as u32))
}

/// Writes the context's entry of the answers, unless another connection that needs the tuple
/// `least` or more has it: `NoPort`. Of one that does not, both entries are removed.
#[inline(always)]
pub(crate) fn take_tuple<A: Family>(
    context: &PacketContext<A>,
    least: u32,
) -> Result<Verdict, Drop> {
    let (key, answer) = (&context.answer_key, &context.answer);
    match entry::insert(key, answer) {
        Inserted::Made => return Ok(Verdict::OPEN),
        Inserted::Full => return Err(Drop::NoFlowEntry),
        Inserted::Exists => {}
    }
    let life = A::life_of_owner(context);
    if life != OURS && life >= least {
        return Err(Drop::NoPort);
    }
    if let Some(there) = maps::flow(key) {
        // Its other direction, if that is still its own, or an earlier one of this connection: from
        // an interface that its pod had before.
        let former = there.answer_key(key);
        let obsolete = if life == OURS {
            former.scope != context.key.scope && same_connection(&former, &context.key)
        } else {
            life < Life::PickedUp as u32 && is_in_place(key, &former)
        };
        if obsolete {
            A::remove_entry(&former);
        }
    }
    if life < Life::PickedUp as u32 {
        // Not replaced: another CPU may be about to take it for its own connection.
        A::remove_entry(key);
        return match entry::insert(key, answer) {
            Inserted::Made => Ok(Verdict::OPEN),
            Inserted::Exists => Err(Drop::NoPort),
            Inserted::Full => Err(Drop::NoFlowEntry),
        };
    }
    // Not removed first: the answers find an entry at any time.
    if A::put_entry(key, answer) != 0 {
        Ok(Verdict::OPEN)
    } else {
        Err(Drop::NoFlowEntry)
    }
}

/// Whether there is an entry under `other_key`, and it is the other direction of the flow with `key`.
#[inline(always)]
fn is_in_place<A: Family>(key: &FlowKey<A>, other_key: &FlowKey<A>) -> bool {
    match maps::flow(other_key) {
        Some(other) => is_other(key, other, other_key),
        None => false,
    }
}

/// Writes the entry of the other direction of a known flow again, because it was lost. Not if
/// another connection has its tuple: `NoPort`.
#[inline(always)]
pub(crate) fn restore<A: Family>(context: &mut PacketContext<A>) -> Result<Verdict, Drop> {
    context.node_gen = maps::node_gen();
    context.route.action = context.flow.action & action::ROUTE;
    route::back(context);
    answer(context);
    let (key, other) = (&context.answer_key, &mut context.answer);
    if context.flow.is_reply() {
        // Its route is found by its own next packet, at its own hook.
        other.action = match context.key.from() {
            SCOPE_NETDEV => action::PASS | action::ANSWERS_NETDEV,
            SCOPE_HOST => action::PASS | action::ANSWERS_HOST,
            _ => action::PASS,
        };
        other.ifindex = context.key.from();
        other.peer = 0;
        other.epoch = context.epoch.wrapping_sub(1);
        other.route_gen = maps::NEVER;
        translate(key, other);
        return match entry::insert(key, other) {
            // Or another decision of the client's has come first.
            Inserted::Made | Inserted::Exists => Ok(Verdict::OPEN),
            Inserted::Full => Err(Drop::NoFlowEntry),
        };
    }
    translate(key, other);
    Ok(take(context, Life::Alive))
}

/// `owner`: the connection itself has the tuple.
const OURS: u32 = 1 << 8;

/// How much another connection that has the tuple needs it, as a number (`Life`; `Expired` if none
/// has it), or `OURS`. Changes nothing.
#[inline(always)]
pub(crate) fn owner<A: Family>(context: &PacketContext<A>) -> u32 {
    let key = &context.answer_key;
    let Some(there) = maps::flow(key) else {
        return Life::Expired as u32;
    };
    if same_connection(&there.answer_key(key), &context.key) {
        return OURS;
    }
    life_of(key, there) as u32
}
