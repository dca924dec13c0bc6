//! Packets from the host's stack to a pod: probes, the node's processes, answers from host
//! network pods, and what comes from outside by way of the stack.

use crate::flow::NEXT;
use crate::packet::Skb;
use crate::stage::established;
use ebpf_common::config::TRANSLATED_MARK;
use ebpf_common::conntrack::SCOPE_HOST;
use ebpf_common::counter::Hook;

/// What `tc_to_netdev` has translated on the service device comes past here once more.
#[inline(always)]
pub(crate) fn run(skb: &Skb) -> i32 {
    if skb.mark() == TRANSLATED_MARK {
        skb.set_mark(0);
        return NEXT;
    }
    established::forward(skb, SCOPE_HOST, Hook::ToPod)
}
