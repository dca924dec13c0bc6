//! One file per attach point, and the slow path that they share.

pub(crate) mod finish;
pub(crate) mod flow_sweep;
pub(crate) mod sock_connect;
pub(crate) mod sock_getpeer;
pub(crate) mod tc_from_netdev;
pub(crate) mod tc_from_pod;
pub(crate) mod tc_to_netdev;
pub(crate) mod tc_to_pod;

use crate::family::Family;
use crate::flow::{PacketContext, SHOT, Verdict};
use crate::maps;
use crate::packet::{self, Skb};
use crate::wire::Wire as _;
use ebpf_common::net::{Addr, Be32};

/// Decides a packet of any protocol.
#[inline(always)]
pub(crate) fn slow_path(skb: &Skb, hook: u32) -> i32 {
    if maps::has_ipv6() && skb.ether_type() == Addr::ETHER_TYPE {
        slow_path_of::<Addr>(skb, hook)
    } else {
        slow_path_of::<Be32>(skb, hook)
    }
}

/// Decides a packet that is of this family, or of none.
#[inline(always)]
fn slow_path_of<A: Family>(skb: &Skb, hook: u32) -> i32 {
    // Not on the stack, of which a chain of functions has 512 bytes.
    let Some(context) = maps::scratch::<A>() else {
        return SHOT;
    };
    packet::clear(context);
    context.epoch = maps::epoch();
    context.frontend_gen = maps::frontend_gen();
    context.hook = hook as u8;
    context.ifindex = skb.ifindex();
    let verdict = decide(skb, context);
    finish::finish(skb, context, verdict)
}

/// The stages in order: each either leaves it open, or ends it with where the packet goes or
/// with the reason why it does not.
#[inline(always)]
fn decide<A: Family>(skb: &Skb, context: &mut PacketContext<A>) -> Verdict {
    let skb = skb.raw();
    let stages = [
        A::read_packet,
        A::find_origin,
        A::translate_error,
        A::forward_other,
        A::follow_flow,
        A::choose_target,
        A::find_route,
        A::spend_hop,
        A::begin_flow,
        A::write_answers,
        A::write_flow,
    ];
    for stage in stages {
        let verdict = Verdict::from_number(stage(skb, context));
        if verdict != Verdict::OPEN {
            return verdict;
        }
    }
    Verdict::from_number(A::send_packet(
        skb,
        &context.flow,
        context.packet.protocol as u32,
    ))
}
