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
use ebpf_common::conntrack::{Flow, FlowKey, FlowPad, SCOPE_HOST, SCOPE_NETDEV, action};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::{Be16, protocol};
use ebpf_logic::generation::route_gen;
use ebpf_logic::nat::{OWN, SNAT, pick_port};
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

/// Whether the other direction of this flow has an entry for as long as this one has. From the
/// network only those of services have: each direction of another flow makes its own entry.
#[inline(always)]
pub(crate) fn has_other<A: Address>(flow: &Flow<A>, hook: Hook) -> bool {
    flow.is_reply() || flow.backend != 0 || !matches!(hook, Hook::FromNetdev)
}

/// How much the connection of an entry needs its entries.
#[inline(always)]
pub(crate) fn life_of<A: Family>(key: &FlowKey<A>, flow: &Flow<A>) -> Life {
    let at = Moment {
        now: packet::jiffies(),
        jiffies_per_second: maps::jiffies_per_second(),
        backend_gen: maps::backend_gen(flow.backend),
    };
    match other(key, flow) {
        Some(other) => life(flow, Some(other), at),
        None => life(flow, None, at),
    }
}

/// The entry of the answers to the flow in the context.
#[inline(always)]
fn answer_of<A: Family>(context: &PacketContext<A>) -> Flow<A> {
    // `route::back` knows no route to the network.
    let routed = !matches!(context.hook(), Hook::FromNetdev);
    let (epoch, route_gen) = if routed {
        let generation = route_gen(context.endpoint_gen, context.node_gen);
        (context.epoch, generation)
    } else {
        (context.epoch.wrapping_sub(1), maps::NEVER)
    };
    Flow {
        packets: 0,
        bytes: 0,
        backend: context.flow.backend,
        backend_gen: context.flow.backend_gen,
        route_gen,
        epoch,
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
        state: context.other_state,
        pad: FlowPad::default(),
    }
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
    let mut key = context.flow.answer_key(&context.key);
    let mut answer = answer_of(context);
    translate(&key, &mut answer);
    let own = key.dport;
    // A TCP connection that began earlier must have the port that it had, even if its own is
    // free by now.
    let began_earlier = context.packet.protocol == protocol::TCP && !context.packet.opens();
    // Its own port may be one of the node's sockets'.
    let snat = is_snat(context);
    if !began_earlier && !snat {
        let taken = take(context, &key, &answer, Life::PickedUp);
        if !is_no_port(taken) {
            return Ok(taken);
        }
    }
    let port = A::find_port(context, &mut key);
    if began_earlier && !snat && port & HAD == 0 {
        key.dport = own;
        let taken = take(context, &key, &answer, Life::PickedUp);
        if !is_no_port(taken) {
            return Ok(taken);
        }
    }
    if port == 0 {
        return Err(if snat { Drop::SnatPorts } else { Drop::NoPort });
    }
    key.dport = Be16 { be: port as u16 };
    answer.action &= !action::NAT;
    translate(&key, &mut answer);
    context.flow.sport = key.dport;
    Ok(take(context, &key, &answer, Life::PickedUp))
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
/// tuple no other connection keeps; 0 if there is none. Changes no entry. `key` is the tuple, whose
/// port is lost.
#[inline(always)]
pub(crate) fn find_port<A: Family>(context: &PacketContext<A>, key: &mut FlowKey<A>) -> u32 {
    let snat = is_snat(context);
    let ports = if snat { SNAT } else { OWN };
    let begins = context.packet.protocol != protocol::TCP || context.packet.opens();
    let start = hash(&context.key, maps::seed());
    let mut free = 0;
    let mut attempt = 0;
    while attempt < ports.attempts {
        key.dport = Be16::new(pick_port(ports, start, attempt));
        let port = key.dport.be as u32;
        let life = A::life_of_owner(context, key);
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
fn take<A: Family>(
    context: &PacketContext<A>,
    key: &FlowKey<A>,
    answer: &Flow<A>,
    least: Life,
) -> Verdict {
    Verdict::from_number(A::take_tuple(context, key, answer, least as u32))
}

/// Writes the entry of the answers, unless another connection that needs the tuple `least` or
/// more has it: `NoPort`. Of one that does not, both entries are removed.
#[inline(always)]
pub(crate) fn take_tuple<A: Family>(
    context: &PacketContext<A>,
    key: &FlowKey<A>,
    answer: &Flow<A>,
    least: u32,
) -> Result<Verdict, Drop> {
    match entry::insert(key, answer) {
        Inserted::Made => return Ok(Verdict::OPEN),
        Inserted::Full => return Err(Drop::NoFlowEntry),
        Inserted::Exists => {}
    }
    let life = A::life_of_owner(context, key);
    if life == OURS {
        remove_former(context, key);
    } else if life >= least {
        return Err(Drop::NoPort);
    } else if life < Life::PickedUp as u32 {
        if let Some(there) = maps::flow(key)
            && other(key, there).is_some()
        {
            A::remove_entry(&there.answer_key(key));
        }
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

/// Removes the entry of the same connection from an interface that its pod had before.
#[inline(always)]
fn remove_former<A: Family>(context: &PacketContext<A>, key: &FlowKey<A>) {
    if let Some(there) = maps::flow(key) {
        let former = there.answer_key(key);
        if same_connection(&former, &context.key) && former.scope != context.key.scope {
            A::remove_entry(&former);
        }
    }
}

/// Writes the entry of the other direction of a known flow again, because it was lost. Not if
/// another connection has its tuple: `NoPort`.
#[inline(always)]
pub(crate) fn restore<A: Family>(context: &mut PacketContext<A>) -> Result<Verdict, Drop> {
    context.node_gen = maps::node_gen();
    context.route.action = context.flow.action & action::ROUTE;
    route::back(context);
    let key = context.flow.answer_key(&context.key);
    let mut other = answer_of(context);
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
        translate(&key, &mut other);
        return match entry::insert(&key, &other) {
            // Or another decision of the client's has come first.
            Inserted::Made | Inserted::Exists => Ok(Verdict::OPEN),
            Inserted::Full => Err(Drop::NoFlowEntry),
        };
    }
    translate(&key, &mut other);
    Ok(take(context, &key, &other, Life::Alive))
}

/// `owner`: the connection itself has the tuple.
const OURS: u32 = 1 << 8;

/// How much another connection that has the tuple needs it, as a number (`Life`; `Expired` if none
/// has it), or `OURS`. Changes nothing.
#[inline(always)]
pub(crate) fn owner<A: Family>(context: &PacketContext<A>, key: &FlowKey<A>) -> u32 {
    let Some(there) = maps::flow(key) else {
        return Life::Expired as u32;
    };
    if same_connection(&there.answer_key(key), &context.key) {
        return OURS;
    }
    life_of(key, there) as u32
}
