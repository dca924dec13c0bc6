//! Who sent the packet, and whether it may have the source address that it has.

use crate::family::Family;
use crate::flow::{NEXT, PacketContext, Verdict};
use crate::maps;
use crate::packet::{PACKET_HOST, Skb};
use ebpf_common::address::Address as _;
use ebpf_common::conntrack::{SCOPE_HOST, SCOPE_NETDEV};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::endpoint::Endpoint;
use ebpf_common::net::Addr;
use ebpf_common::network;
use ebpf_logic::icmp::link_local;

/// A pod sends from its own address only, and addresses of this node do not send from the
/// network.
#[inline(always)]
pub(crate) fn find<A: Family>(skb: &Skb, context: &mut PacketContext<A>) -> Result<Verdict, Drop> {
    match context.hook() {
        Hook::FromPod => {
            let ifindex = skb.ifindex();
            let found = maps::with_generation(|| maps::endpoint(ifindex));
            let Some((endpoint, generation)) = found else {
                return Err(Drop::NoEndpoint);
            };
            let src = context.packet.src.to_addr();
            if A::is_of_link(&context.packet) {
                return of_link(endpoint, src);
            }
            if !endpoint.addr.is(src) && !endpoint.addr6.is(src) || src.is(Addr::UNSPECIFIED) {
                return Err(Drop::SpoofedSource);
            }
            context.endpoint = endpoint.id;
            context.endpoint_gen = generation;
            context.set_key(ifindex);
        }
        Hook::FromNetdev => {
            if let Some(reason) = spoofed(context.packet.src) {
                return Err(reason);
            }
            if skb.pkt_type() != PACKET_HOST {
                // A broadcast or multicast frame is not forwarded (RFC 1812, 5.3.4).
                return Ok(Verdict::goes(NEXT));
            }
            context.set_key(SCOPE_NETDEV);
        }
        Hook::ToPod | Hook::ToNetdev => context.set_key(SCOPE_HOST),
    }
    Ok(Verdict::OPEN)
}

/// A message between neighbours, which is the stack's. That makes a neighbour entry for each source
/// that asks, of which there are a thousand for all interfaces: a pod has the addresses of its own
/// interface.
#[inline(always)]
fn of_link(endpoint: &Endpoint, src: Addr) -> Result<Verdict, Drop> {
    if src.is(endpoint.addr6) || src.is(link_local(endpoint.mac)) || src.is(Addr::UNSPECIFIED) {
        Ok(Verdict::goes(NEXT))
    } else {
        Err(Drop::SpoofedSource)
    }
}

/// Why no packet with this source can come from the network; `None` if one can.
#[inline(always)]
pub(crate) fn spoofed<A: Family>(src: A) -> Option<Drop> {
    if maps::local(src).is_some() {
        Some(Drop::SpoofedSource)
    } else if src.is(A::node())
        || src.is(A::hairpin())
        || matches!(
            maps::network(src),
            network::SERVICES | network::LOCAL | network::NODE
        )
    {
        Some(Drop::MartianSource)
    } else {
        None
    }
}
