//! Packets without ports that could be translated: ICMP, other protocols, fragments.
//!
//! They go where their addresses say, without a flow.

use crate::flow::{Case, Verdict};
use crate::maps;
use crate::packet::{NEXT, Skb};
use crate::stage::service;
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::protocol;
use ebpf_common::network;
use ebpf_logic::icmp::is_error;
use ebpf_logic::parse::Fragment;

/// Into a pod of this node, or to the stack; what has ports is left to the next stages.
#[inline(always)]
pub(crate) fn carry(skb: &Skb, case: &Case) -> Result<Verdict, Drop> {
    let packet = &case.packet;
    if packet.has_ports() {
        return Ok(Verdict::OPEN);
    }
    let fragment = !matches!(packet.fragment, Fragment::Whole);
    if fragment {
        untranslated(case)?;
    }
    let hook = case.hook();
    if matches!(hook, Hook::ToNetdev) || maps::network(packet.dst) == network::SERVICES {
        return Err(if fragment {
            Drop::Fragment
        } else if packet.protocol == protocol::ICMP && is_error(packet.icmp_type) {
            Drop::IcmpNoFlow
        } else {
            Drop::NoFrontend
        });
    }
    if matches!(hook, Hook::FromPod | Hook::FromNetdev)
        && let Some(endpoint) = maps::local(packet.dst)
    {
        return Ok(Verdict::goes(skb.redirect_peer(endpoint.ifindex)));
    }
    Ok(Verdict::goes(NEXT))
}

/// The first fragment shows whether the datagram would have to be translated; the later ones
/// cannot be, so none of it goes.
#[inline(always)]
fn untranslated(case: &Case) -> Result<(), Drop> {
    let packet = &case.packet;
    let ported = packet.protocol == protocol::TCP || packet.protocol == protocol::UDP;
    if !ported || !matches!(packet.fragment, Fragment::First) {
        return Ok(());
    }
    if let Some(flow) = maps::flow(&case.key)
        && flow.translates()
    {
        return Err(Drop::Fragment);
    }
    if maps::frontend(&service::frontend_key(packet)).is_some() {
        return Err(Drop::Fragment);
    }
    Ok(())
}
