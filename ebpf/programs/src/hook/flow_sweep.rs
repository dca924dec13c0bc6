//! Removes the flows among the given ones that are expired, or whose pod does not exist any more.
//!
//! The agent walks over the flow map, in bounded pieces, and runs this program on the keys of
//! entries that seem expired (`sweep.rs` of `agent-sys`). They are judged again here, where no
//! time passes between the judgement and the removal, and together with the other direction.
//! The packet is the list: keys behind what would be the Ethernet header, which holds a correction
//! of a count (`SweepHead`). Softirqs are held meanwhile, so the list is short.

use crate::family::Family;
use crate::maps;
use crate::packet::{self, Skb, borrowed_mut};
use crate::stage::{entry, reply_tuple};
use core::marker::PhantomData;
use ebpf_common::conntrack::{FlowKey, PASS_IS_OVER, SweepHead};
use ebpf_logic::conntrack::is_over;
use ebpf_logic::parse::ETHERNET;
use ebpf_logic::reply_tuple::Life;

struct Sweep<'a, A> {
    skb: &'a Skb,
    removed: u32,
    family: PhantomData<A>,
}

/// Returns how many were removed. The mark of the packet is the time, in jiffies, of the
/// judgement.
#[inline(always)]
pub(crate) fn run<A: Family>(skb: &Skb) -> i32 {
    skb.set_mark(packet::jiffies());
    if let Some(head) = skb.load_value::<SweepHead>(0) {
        if head.owner == PASS_IS_OVER {
            maps::set_swept(packet::jiffies());
        } else {
            maps::count_flows(head.owner, head.made as u64, head.removed as u64);
        }
    }
    let keys = (skb.len() - ETHERNET as u32) / size_of::<FlowKey<A>>() as u32;
    let mut sweep = Sweep {
        skb,
        removed: 0,
        family: PhantomData,
    };
    packet::repeat(keys, one::<A>, &mut sweep);
    sweep.removed as i32
}

extern "C" fn one<A: Family>(index: u32, sweep: *mut Sweep<'_, A>) -> i64 {
    let Some(sweep) = borrowed_mut(sweep) else {
        return 1;
    };
    let at = ETHERNET as u32 + index * size_of::<FlowKey<A>>() as u32;
    let Some(key) = sweep.skb.load_value::<FlowKey<A>>(at) else {
        return 1;
    };
    let Some(flow) = maps::flow(&key) else {
        return 0;
    };
    if reply_tuple::life_of(&key, flow) != Life::Expired && !entry::is_orphan(&key, flow) {
        return 0;
    }
    if flow.backend != 0 && !flow.is_reply() {
        maps::count_traffic(flow.backend, flow.packets, flow.bytes);
        if !is_over(flow.state) {
            maps::count_end(flow.backend, 1);
        }
    }
    sweep.removed += A::remove_entry(&key);
    0
}
