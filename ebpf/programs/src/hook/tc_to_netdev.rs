//! Packets of the node itself: on the service device those for service addresses; on an uplink
//! all that leaves, which is translated already or needs no translation.

use crate::flow::NEXT;
use crate::maps;
use crate::packet::Skb;
use crate::stage::established;
use ebpf_common::conntrack::SCOPE_HOST;
use ebpf_common::counter::Hook;

/// Only the service device has work here.
#[inline(always)]
pub(crate) fn run(skb: &Skb) -> i32 {
    if skb.ifindex() != maps::service_ifindex() {
        return NEXT;
    }
    established::forward(skb, SCOPE_HOST, Hook::ToNetdev)
}
