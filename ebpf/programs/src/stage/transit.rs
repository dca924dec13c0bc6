//! Packets without ports that could be translated: ICMP, other protocols, fragments, and what has
//! extension headers.
//!
//! They go where their addresses say, without a flow.

use crate::family::Family;
use crate::flow::{PacketContext, Verdict};
use crate::maps;
use crate::packet::Skb;
use crate::stage::{send, service};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::protocol;
use ebpf_common::network;
use ebpf_logic::parse::Fragment;

/// Forwards a packet without ports; one with ports is left to the next stages.
#[inline(always)]
pub(crate) fn forward_other<A: Family>(
    skb: &Skb,
    context: &mut PacketContext<A>,
) -> Result<Verdict, Drop> {
    let packet = &context.packet;
    if packet.has_ports() {
        return Ok(Verdict::OPEN);
    }
    let fragment = !matches!(packet.fragment, Fragment::Whole);
    if fragment {
        untranslated(context)?;
    }
    let hook = context.hook();
    let of_services = matches!(
        maps::network(packet.dst),
        network::SERVICES | network::EXTERNAL
    );
    if matches!(hook, Hook::ToNetdev) || of_services {
        let icmp = packet.protocol == A::ICMP;
        if fragment {
            return Err(untranslatable(packet.fragment));
        }
        if icmp && A::is_error(packet.icmp_type) {
            return Err(Drop::IcmpNoFlow);
        }
        // No pod has the address: who asks for it is told so.
        return if icmp && packet.icmp_type == A::ECHO {
            service::refused(skb, context, Drop::NoFrontend)
        } else {
            Err(Drop::NoFrontend)
        };
    }
    context.target.src = packet.src;
    context.target.dst = packet.dst;
    send::by_route(skb, context)
}

/// Why a packet is not translated.
#[inline(always)]
const fn untranslatable(fragment: Fragment) -> Drop {
    if matches!(fragment, Fragment::Extended) {
        Drop::IpOptions
    } else {
        Drop::Fragment
    }
}

/// The first fragment shows whether the datagram would have to be translated; the later ones
/// cannot be, so none of it goes.
#[inline(always)]
fn untranslated<A: Family>(context: &PacketContext<A>) -> Result<(), Drop> {
    let packet = &context.packet;
    let ported = packet.protocol == protocol::TCP || packet.protocol == protocol::UDP;
    if !ported || matches!(packet.fragment, Fragment::Later) {
        return Ok(());
    }
    if let Some(flow) = maps::flow(&context.key)
        && flow.translates()
    {
        return Err(untranslatable(packet.fragment));
    }
    if service::frontend_of(packet).is_some() {
        return Err(untranslatable(packet.fragment));
    }
    Ok(())
}
