//! Packets from other nodes and from outside.

use crate::flow::NEXT;
use crate::packet::{PACKET_HOST, PACKET_OTHERHOST, Skb};
use crate::stage::established;
use ebpf_common::conntrack::SCOPE_NETDEV;
use ebpf_common::counter::Hook;

/// All network devices are one: a flow may change from one to another.
///
/// A bridge port or a promiscuous uplink sees frames for other machines, which may be nodes with
/// the same service addresses: the stack drops these. What is sent to all machines of a link is
/// the stack's as well, but for its source, see `stage/origin.rs`.
#[inline(always)]
pub(crate) fn run(skb: &Skb) -> i32 {
    match skb.pkt_type() {
        PACKET_HOST => established::forward(skb, SCOPE_NETDEV, Hook::FromNetdev),
        PACKET_OTHERHOST => NEXT,
        _ => crate::slow_path(skb.raw(), Hook::FromNetdev as u32),
    }
}
