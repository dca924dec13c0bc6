//! Packets that leave a pod.

use crate::packet::Skb;
use crate::stage::established;
use ebpf_common::counter::Hook;

/// The pod's flows are known by its interface, which only the pod can send from.
#[inline(always)]
pub(crate) fn run(skb: &Skb) -> i32 {
    established::forward(skb, skb.ifindex(), Hook::FromPod)
}
