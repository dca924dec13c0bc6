//! One file per attach point, and the slow path that they share.

pub(crate) mod finish;
pub(crate) mod flow_sweep;
pub(crate) mod sock_connect;
pub(crate) mod sock_getpeer;
pub(crate) mod tc_from_netdev;
pub(crate) mod tc_from_pod;
pub(crate) mod tc_to_netdev;
pub(crate) mod tc_to_pod;

use crate::flow::{PacketContext, SHOT, Verdict};
use crate::maps;
use crate::packet::{self, Skb};

/// Decides a packet.
#[inline(always)]
pub(crate) fn slow_path(skb: &Skb, hook: u32) -> i32 {
    // Not on the stack, of which a chain of functions has 512 bytes.
    let Some(context) = maps::scratch() else {
        return SHOT;
    };
    packet::clear(context);
    context.epoch = maps::epoch();
    context.hook = hook as u8;
    context.ifindex = skb.ifindex();
    let verdict = decide(skb, context);
    finish::finish(skb, context, verdict)
}

/// The stages in order: each either leaves it open, or ends it with where the packet goes or
/// with the reason why it does not.
#[inline(always)]
fn decide(skb: &Skb, context: &mut PacketContext) -> Verdict {
    let skb = skb.raw();
    let stages = [
        crate::read_packet,
        crate::find_origin,
        crate::translate_error,
        crate::forward_other,
        crate::follow_flow,
        crate::choose_target,
        crate::find_route,
        crate::begin_flow,
        crate::write_answers,
        crate::write_flow,
    ];
    for stage in stages {
        let verdict = Verdict::from_number(stage(skb, context));
        if verdict != Verdict::OPEN {
            return verdict;
        }
    }
    Verdict::from_number(crate::send_packet(
        skb,
        &context.flow,
        context.packet.protocol as u32,
    ))
}
