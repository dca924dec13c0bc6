//! Makes, replaces and removes entries of the flow map, and counts them for their owners.

use crate::family::Family;
use crate::maps::{self, Inserted};
use crate::packet;
use ebpf_common::conntrack::{ALL_FLOWS, Flow, FlowKey, SCOPE_HOST};
use ebpf_common::endpoint::HOST;
use ebpf_logic::quota::{Share, is_swept, owner, share_left};

/// Index into `flow_usage` that an entry is counted at. Without one, because its pod is not known
/// any more, it is in the count of all entries of its family only.
#[inline(always)]
fn owner_index<A: Family>(key: &FlowKey<A>, flow: &Flow<A>) -> u32 {
    let owner = owner(key, flow);
    if owner.ifindex == SCOPE_HOST {
        return A::USAGE + HOST as u32;
    }
    match maps::endpoint(owner.ifindex) {
        Some(endpoint) => A::USAGE + endpoint.id as u32,
        None => NONE,
    }
}

/// `flow_usage` has no such element.
const NONE: u32 = u32::MAX;

/// Which entries the owner of a flow may still have. All if it has this one already.
#[inline(always)]
pub(crate) fn share<A: Family>(key: &FlowKey<A>, flow: &Flow<A>) -> Share {
    let used = maps::flow_usage(owner_index(key, flow));
    let all = maps::flow_usage(A::USAGE + ALL_FLOWS);
    let share = share_left(used, all, maps::flow_entries());
    if share == Share::All
        || !is_swept(packet::jiffies(), maps::swept(), maps::jiffies_per_second())
        || maps::flow(key).is_some()
    {
        Share::All
    } else {
        share
    }
}

/// Whether the pod that an entry is counted for does not exist any more: neither its interface,
/// nor another one with its address.
#[inline(always)]
pub(crate) fn is_orphan<A: Family>(key: &FlowKey<A>, flow: &Flow<A>) -> bool {
    let owner = owner(key, flow);
    owner.ifindex != SCOPE_HOST
        && maps::endpoint(owner.ifindex).is_none()
        && maps::local(owner.addr).is_none()
}

/// Makes an entry that is not there yet.
#[inline(always)]
pub(crate) fn insert<A: Family>(key: &FlowKey<A>, flow: &Flow<A>) -> Inserted {
    let inserted = maps::insert_flow(key, flow);
    if matches!(inserted, Inserted::Made) {
        maps::count_flows(owner_index(key, flow), 1, 0);
        maps::count_flows(A::USAGE + ALL_FLOWS, 1, 0);
    }
    inserted
}

/// Makes an entry, or replaces it whole; false when there is none for it.
#[inline(always)]
pub(crate) fn put<A: Family>(key: &FlowKey<A>, flow: &Flow<A>) -> bool {
    match insert(key, flow) {
        Inserted::Made => return true,
        Inserted::Full => return false,
        Inserted::Exists => {}
    }
    let now = owner_index(key, flow);
    let before = match maps::flow(key) {
        Some(there) => owner_index(key, there),
        None => now,
    };
    if !maps::replace_flow(key, flow) {
        return false;
    }
    if before != now {
        maps::count_flows(before, 0, 1);
        maps::count_flows(now, 1, 0);
    }
    true
}

/// Removes an entry; false when it is not there.
#[inline(always)]
pub(crate) fn remove<A: Family>(key: &FlowKey<A>) -> bool {
    let Some(there) = maps::flow(key) else {
        return false;
    };
    let owner = owner_index(key, there);
    if !maps::remove_flow(key) {
        return false;
    }
    maps::count_flows(owner, 0, 1);
    maps::count_flows(A::USAGE + ALL_FLOWS, 0, 1);
    true
}
