//! Whose packet it is, and whether it may have the source address that it has.

use crate::flow::Origin;
use crate::maps;
use crate::packet::Skb;
use ebpf_common::conntrack::{SCOPE_HOST, SCOPE_NETDEV};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::endpoint;
use ebpf_common::net::Addr;
use ebpf_logic::parse::Packet;

/// A pod sends from its own address only, and nobody sends from a pod's but the pod.
#[inline(always)]
pub(crate) fn of(skb: &Skb, hook: Hook, packet: &Packet) -> Result<Origin, Drop> {
    match hook {
        Hook::FromPod => {
            let ifindex = skb.ifindex();
            let Some(endpoint) = maps::endpoint(ifindex) else {
                return Err(Drop::NoEndpoint);
            };
            if endpoint.addr != Addr::v4(packet.src) {
                return Err(Drop::SpoofedSource);
            }
            Ok(Origin {
                hook,
                from: ifindex,
                endpoint: endpoint.id,
            })
        }
        Hook::FromNetdev => {
            if maps::local(packet.src).is_some() {
                return Err(Drop::SpoofedSource);
            }
            Ok(Origin {
                hook,
                from: SCOPE_NETDEV,
                endpoint: endpoint::FROM_NETDEV,
            })
        }
        Hook::ToPod | Hook::ToNetdev => Ok(Origin {
            hook,
            from: SCOPE_HOST,
            endpoint: 0,
        }),
    }
}
