//! Removes flows that are over, without bringing one of them to user space.
//!
//! The agent runs it every few seconds; the walk takes some milliseconds of one CPU.

use crate::maps;
use crate::packet;
use ebpf_common::conntrack::{Flow, FlowKey4};
use ebpf_logic::conntrack::is_expired;

/// What the walk carries along.
struct Sweep {
    now: u32,
    jiffies_per_second: u32,
    removed: u32,
}

/// Returns how many were removed.
#[inline(always)]
pub(crate) fn run() -> i32 {
    let mut sweep = Sweep {
        now: packet::jiffies(),
        jiffies_per_second: maps::jiffies_per_second(),
        removed: 0,
    };
    maps::for_each_flow(one, &mut sweep);
    sweep.removed as i32
}

extern "C" fn one(
    _map: *mut core::ffi::c_void,
    key: *const FlowKey4,
    flow: *mut Flow,
    sweep: *mut Sweep,
) -> i64 {
    let (Some(key), Some(flow), Some(sweep)) = (
        packet::borrowed(key),
        packet::borrowed(flow),
        packet::borrowed_mut(sweep),
    ) else {
        return 0;
    };
    if !is_expired(flow, sweep.now, sweep.jiffies_per_second) {
        return 0;
    }
    // Silent in one direction only: the other still needs its answers to be translated.
    if let Some(other) = maps::flow(&flow.answer_key(key))
        && !is_expired(other, sweep.now, sweep.jiffies_per_second)
    {
        return 0;
    }
    if flow.backend != 0 && !flow.is_reply() {
        maps::count_traffic(flow.backend, flow.packets, flow.bytes);
    }
    maps::remove_flow(key);
    sweep.removed += 1;
    0
}
