//! Whose packet it is, and whether it may have the source address that it has.

use crate::flow::{Case, Verdict};
use crate::maps;
use crate::packet::Skb;
use ebpf_common::conntrack::{SCOPE_HOST, SCOPE_NETDEV};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::endpoint;
use ebpf_common::net::Addr;

/// A pod sends from its own address only, and nobody sends from a pod's but the pod.
#[inline(always)]
pub(crate) fn find(skb: &Skb, case: &mut Case) -> Result<Verdict, Drop> {
    match case.hook() {
        Hook::FromPod => {
            let ifindex = skb.ifindex();
            let Some(endpoint) = maps::endpoint(ifindex) else {
                return Err(Drop::NoEndpoint);
            };
            if endpoint.addr != Addr::v4(case.packet.src) {
                return Err(Drop::SpoofedSource);
            }
            case.set_origin(ifindex, endpoint.id);
        }
        Hook::FromNetdev => {
            if maps::local(case.packet.src).is_some() {
                return Err(Drop::SpoofedSource);
            }
            case.set_origin(SCOPE_NETDEV, endpoint::FROM_NETDEV);
        }
        Hook::ToPod | Hook::ToNetdev => case.set_origin(SCOPE_HOST, 0),
    }
    Ok(Verdict::OPEN)
}
