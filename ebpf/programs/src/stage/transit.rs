//! Packets without ports that could be translated: ICMP, other protocols, fragments.
//!
//! They go where their addresses say, without a flow.

use crate::flow::{Origin, Verdict, key_of};
use crate::maps;
use crate::packet::Skb;
use crate::stage::service;
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::protocol;
use ebpf_common::network;
use ebpf_logic::parse::{Fragment, Packet};

/// Into a pod of this node, or to the stack.
#[inline(always)]
pub(crate) fn carry(skb: &Skb, origin: &Origin, packet: &Packet) -> Result<Verdict, Drop> {
    let fragment = !matches!(packet.fragment, Fragment::Whole);
    if fragment {
        untranslated(origin, packet)?;
    }
    if maps::network(packet.dst) == network::SERVICES || matches!(origin.hook, Hook::ToNetdev) {
        return Err(if fragment {
            Drop::Fragment
        } else {
            Drop::NoFrontend
        });
    }
    match origin.hook {
        Hook::FromPod | Hook::FromNetdev => match maps::local(packet.dst) {
            Some(endpoint) => Ok(Verdict::Redirected(skb.redirect_peer(endpoint.ifindex))),
            None => Ok(Verdict::Pass),
        },
        Hook::ToPod | Hook::ToNetdev => Ok(Verdict::Pass),
    }
}

/// The first fragment shows whether the datagram would have to be translated; the later ones
/// cannot be, so none of it goes.
#[inline(always)]
fn untranslated(origin: &Origin, packet: &Packet) -> Result<(), Drop> {
    let ported = packet.protocol == protocol::TCP || packet.protocol == protocol::UDP;
    if !ported || !matches!(packet.fragment, Fragment::First) {
        return Ok(());
    }
    let key = key_of(packet, origin.from);
    let flow_translates = match maps::flow(&key) {
        Some(flow) => flow.translates(),
        None => false,
    };
    if flow_translates || maps::frontend(&service::frontend_key(packet)).is_some() {
        return Err(Drop::Fragment);
    }
    Ok(())
}
