//! What a packet to a service address becomes, and what its sender is told when there is no
//! backend.

use crate::family::Family;
use crate::flow::{PacketContext, Verdict};
use crate::maps;
use crate::packet::Skb;
use crate::socket::translated;
use crate::stage::{backend, route, send};
use ebpf_common::address::Address;
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::{Be16, protocol};
use ebpf_common::network;
use ebpf_common::service::{Frontend, FrontendKey, SOURCE_RANGES};
use ebpf_logic::parse::{Packet, flag};
use ebpf_logic::refuse::{HOST_UNREACHABLE, PORT_UNREACHABLE, TIME_EXCEEDED};
use ebpf_logic::service::{no_backend, table_for};

/// The frontend that a packet is for: that of its address, else that of its port on any address of
/// the node. `is_node`: whether it is one.
#[inline(always)]
pub(crate) fn frontend<A: Address>(
    dst: A,
    port: Be16,
    protocol: u8,
    is_node: impl FnOnce() -> bool,
) -> Option<&'static Frontend> {
    let mut key = FrontendKey {
        addr: dst.to_addr(),
        port,
        protocol,
        pad: 0,
    };
    if let Some(found) = maps::frontend(&key) {
        return Some(found);
    }
    if !is_node() {
        return None;
    }
    // `ebpf_common::service::NODE_PORTS` of the family.
    key.addr = A::UNSPECIFIED.to_addr();
    maps::frontend(&key)
}

/// The frontend that a packet is for.
#[inline(always)]
pub(crate) fn frontend_of<A: Family>(packet: &Packet<A>) -> Option<&'static Frontend> {
    frontend(packet.dst, packet.dport, packet.protocol, || {
        packet.dst.is(A::node()) || maps::network(packet.dst) == network::NODE
    })
}

/// Where the packet goes: to a backend, or where it says itself.
#[inline(always)]
pub(crate) fn target<A: Family>(
    skb: &Skb,
    context: &mut PacketContext<A>,
) -> Result<Verdict, Drop> {
    match choose(skb, context) {
        Ok(()) => Ok(Verdict::OPEN),
        Err(reason) => refused(skb, context, reason),
    }
}

#[inline(always)]
fn choose<A: Family>(skb: &Skb, context: &mut PacketContext<A>) -> Result<(), Drop> {
    let hook = context.hook();
    let packet = &context.packet;
    let out = &mut context.target;
    out.src = packet.src;
    out.dst = packet.dst;
    out.dport = packet.dport;
    out.backend_gen = maps::backend_gen(0);
    if matches!(hook, Hook::ToPod) {
        return Ok(());
    }
    let Some(frontend) = frontend_of(packet) else {
        let kind = maps::network(packet.dst);
        let nowhere = matches!(hook, Hook::ToNetdev)
            || kind == network::SERVICES
            || kind == network::EXTERNAL
            // It answers its own pods only.
            || (kind == network::LOCAL && matches!(hook, Hook::FromNetdev));
        return if nowhere {
            Err(Drop::NoFrontend)
        } else {
            connected(skb, context)
        };
    };
    let table = table_of(context, frontend)?;
    let packet = &context.packet;
    let out = &mut context.target;
    let Some(picked) = backend::pick(table, frontend.affinity, &context.key) else {
        return Err(no_backend(frontend, table));
    };
    // A pod that is its own backend would answer itself and never come past here.
    if picked.addr.is(packet.src) {
        out.src = A::hairpin();
    }
    out.dst = picked.addr;
    out.dport = picked.port;
    out.backend = picked.id;
    out.backend_gen = picked.generation;
    Ok(())
}

/// The choice table that the packet's sender gets at a frontend.
#[inline(always)]
pub(crate) fn table_of<A: Family>(
    context: &PacketContext<A>,
    frontend: &Frontend,
) -> Result<u32, Drop> {
    let src = context.packet.src;
    let from_network = matches!(context.hook(), Hook::FromNetdev);
    let from_pod = from_network && route::is_pod(src);
    let table = table_for(frontend, from_network, from_pod);
    if table == 0 {
        Err(Drop::ExternalService)
    } else if frontend.flags & SOURCE_RANGES != 0 && !maps::in_source_ranges(frontend.service, src)
    {
        Err(Drop::SourceRange)
    } else {
        Ok(table)
    }
}

/// A connection that a pod's socket made to a service, and that `sock_connect` has given its
/// backend: its flow depends on that one, as if it were translated here.
#[inline(always)]
fn connected<A: Family>(skb: &Skb, context: &mut PacketContext<A>) -> Result<(), Drop> {
    if context.packet.protocol != protocol::TCP || !matches!(context.hook(), Hook::FromPod) {
        return Ok(());
    }
    let Some(socket) = translated(skb.socket()) else {
        return Ok(());
    };
    // A packet of the connection that the socket had before.
    if !socket.backend_addr.is(context.packet.dst.to_addr())
        || socket.backend_port.be != context.packet.dport.be
    {
        return Ok(());
    }
    context.target.backend = socket.backend;
    context.target.backend_gen = socket.backend_gen;
    context.target.counted = 1;
    if socket.backend_gen == maps::backend_gen(socket.backend) {
        Ok(())
    } else {
        Err(Drop::BackendGone)
    }
}

/// Tells a sender that the connection is refused: one of this node, or a client outside whose
/// service takes connections from there. Others are not told.
#[inline(always)]
pub(crate) fn refused<A: Family>(
    skb: &Skb,
    context: &mut PacketContext<A>,
    reason: Drop,
) -> Result<Verdict, Drop> {
    let hook = context.hook();
    let told = match hook {
        Hook::FromPod | Hook::ToNetdev => matches!(
            reason,
            Drop::NoBackend | Drop::NoFrontend | Drop::BackendGone
        ),
        // Not the backend, if these are its answers.
        Hook::FromNetdev => {
            matches!(reason, Drop::HopLimit)
                || matches!(reason, Drop::NoBackend | Drop::BackendGone)
                    && !context.flow.is_reply()
                // The network brings all that is for the address to a node.
                || matches!(reason, Drop::NoFrontend)
                    && maps::network(context.packet.dst) == network::EXTERNAL
        }
        Hook::ToPod => false,
    };
    // A reset is never answered by one.
    let answerable = context.packet.flags & flag::RST == 0;
    if !told || !answerable {
        return Err(reason);
    }
    let written = if matches!(reason, Drop::HopLimit) {
        A::write_icmp_error(skb.raw(), context, TIME_EXCEEDED)
    } else if context.packet.protocol == protocol::TCP {
        A::write_reset(skb.raw(), context)
    } else {
        let error = if context.packet.protocol == protocol::UDP {
            PORT_UNREACHABLE
        } else {
            HOST_UNREACHABLE
        };
        A::write_icmp_error(skb.raw(), context, error)
    };
    if written == 0 {
        return Err(Drop::RewriteFailed);
    }
    Ok(Verdict::refused(reason, send::back::<A>(skb, hook)))
}
