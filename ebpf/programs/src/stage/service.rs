//! What a packet to a service address becomes, and what its sender is told when there is no
//! backend.

use crate::family::Family;
use crate::flow::{PacketContext, Verdict};
use crate::maps;
use crate::packet::Skb;
use crate::socket::translated;
use crate::stage::{backend, send};
use ebpf_common::address::Address;
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::protocol;
use ebpf_common::network;
use ebpf_common::service::FrontendKey;
use ebpf_logic::parse::{Packet, flag};

/// The frontend that a packet's destination would be.
#[inline(always)]
pub(crate) fn frontend_key<A: Address>(packet: &Packet<A>) -> FrontendKey {
    FrontendKey {
        addr: packet.dst.to_addr(),
        port: packet.dport,
        protocol: packet.protocol,
        pad: 0,
    }
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
    let Some(frontend) = maps::frontend(&frontend_key(packet)) else {
        let kind = maps::network(packet.dst);
        let nowhere = matches!(hook, Hook::ToNetdev)
            || kind == network::SERVICES
            // It answers its own pods only.
            || (kind == network::LOCAL && matches!(hook, Hook::FromNetdev));
        return if nowhere {
            Err(Drop::NoFrontend)
        } else {
            connected(skb, context)
        };
    };
    if matches!(hook, Hook::FromNetdev) {
        return Err(Drop::ExternalService);
    }
    let Some(picked) = backend::pick(frontend, &context.key) else {
        return Err(Drop::NoBackend);
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

/// Tells a sender of this node that the connection is refused; others are not told.
#[inline(always)]
pub(crate) fn refused<A: Family>(
    skb: &Skb,
    context: &PacketContext<A>,
    reason: Drop,
) -> Result<Verdict, Drop> {
    let told = matches!(
        reason,
        Drop::NoBackend | Drop::NoFrontend | Drop::BackendGone
    );
    // A reset is never answered by one.
    let answerable = context.packet.flags & flag::RST == 0;
    let hook = context.hook();
    if !told || !answerable || !matches!(hook, Hook::FromPod | Hook::ToNetdev) {
        return Err(reason);
    }
    let written = if context.packet.protocol == protocol::TCP {
        A::write_reset(skb.raw(), &context.packet)
    } else {
        A::write_unreachable(skb.raw(), &context.packet)
    };
    if written == 0 {
        return Err(Drop::RewriteFailed);
    }
    Ok(Verdict::refused(reason, send::back::<A>(skb, hook)))
}
