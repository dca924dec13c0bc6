//! Packets from other nodes and from outside.

use crate::packet::Skb;
use crate::stage::established;
use ebpf_common::conntrack::SCOPE_NETDEV;
use ebpf_common::counter::Hook;

/// All network devices are one: a flow may change from one to another.
#[inline(always)]
pub(crate) fn run(skb: &Skb) -> i32 {
    established::forward(skb, SCOPE_NETDEV, Hook::FromNetdev)
}
