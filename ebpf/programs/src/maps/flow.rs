//! The maps that each family has of its own, and what is counted of them.

use super::{NOEXIST, add, hairpin, hairpin6, node_v4, node6};
use crate::flow::PacketContext;
use aya_ebpf::btf_maps::{Array, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use ebpf_common::address::Address;
use ebpf_common::conntrack::{ALL_FLOWS, Flow, FlowKey, FlowUsage};
use ebpf_common::endpoint::MAX_ENDPOINTS;
use ebpf_common::maps::FLOWS as FLOW_COUNT;
use ebpf_common::net::{Addr, Be32};
use ebpf_logic::conntrack::is_copy_of;

#[btf_map(name = "flows")]
static FLOWS: Flows<Be32> = LruHashMap::new();
#[btf_map(name = "flows6")]
static FLOWS6: Flows<Addr> = LruHashMap::new();
#[btf_map(name = "flow_usage")]
static FLOW_USAGE: Array<FlowUsage, { 2 * MAX_ENDPOINTS }> = Array::new();
/// Not pinned, as the next: each load of the object has its own.
#[btf_map(name = "scratch")]
static SCRATCH: PerCpuArray<PacketContext<Be32>, 1> = PerCpuArray::new();
#[btf_map(name = "scratch6")]
static SCRATCH6: PerCpuArray<PacketContext<Addr>, 1> = PerCpuArray::new();

type Flows<A> = LruHashMap<FlowKey<A>, Flow<A>, FLOW_COUNT>;

/// What each family has of its own.
pub(crate) trait Maps: Address {
    /// The flow map.
    fn flows() -> &'static Flows<Self>;

    /// Memory of the packet that a CPU handles.
    fn contexts() -> &'static PerCpuArray<PacketContext<Self>, 1>;

    /// The node's address; unspecified, which no packet is for, if it has none.
    fn node() -> Self;

    /// `config::HAIRPIN`
    fn hairpin() -> Self;
}

impl Maps for Be32 {
    #[inline(always)]
    fn flows() -> &'static Flows<Self> {
        &FLOWS
    }

    #[inline(always)]
    fn contexts() -> &'static PerCpuArray<PacketContext<Self>, 1> {
        &SCRATCH
    }

    #[inline(always)]
    fn node() -> Self {
        node_v4()
    }

    #[inline(always)]
    fn hairpin() -> Self {
        hairpin()
    }
}

impl Maps for Addr {
    #[inline(always)]
    fn flows() -> &'static Flows<Self> {
        &FLOWS6
    }

    #[inline(always)]
    fn contexts() -> &'static PerCpuArray<PacketContext<Self>, 1> {
        &SCRATCH6
    }

    #[inline(always)]
    fn node() -> Self {
        node6()
    }

    #[inline(always)]
    fn hairpin() -> Self {
        hairpin6()
    }
}

/// `BPF_EXIST`
const EXIST: u64 = 2;
/// `-EEXIST`
const EXISTS: i32 = -17;

#[inline(always)]
pub(crate) fn flow<A: Maps>(key: &FlowKey<A>) -> Option<&'static mut Flow<A>> {
    let at = A::flows().get_ptr_mut(key)?;
    // SAFETY: the map is preallocated, so the memory stays an entry while we are here. It may be
    // given to another flow meanwhile, when this one is removed: on the fast path this one packet
    // is translated as that flow's then; the slow path copies it (`copy_flow`).
    Some(unsafe { &mut *at })
}

/// Copies the entry of a flow, and returns the entry itself to be written to. Only what has been
/// this flow's from the beginning of the copy to its end is taken for its entry.
#[inline(always)]
pub(crate) fn copy_flow<A: Maps>(
    key: &FlowKey<A>,
    copy: &mut Flow<A>,
) -> Option<&'static mut Flow<A>> {
    let mut attempt = 0;
    while attempt < COPIES {
        let entry = flow(key)?;
        *copy = *entry;
        if is_copy_of(key, copy) && is_entry(key, entry) {
            return Some(entry);
        }
        attempt += 1;
    }
    None
}

/// How often an entry is copied that is replaced meanwhile.
const COPIES: u32 = 2;

/// Whether the memory is still this flow's entry.
#[inline(always)]
pub(crate) fn is_entry<A: Maps>(key: &FlowKey<A>, entry: &Flow<A>) -> bool {
    match A::flows().get_ptr(key) {
        Some(now) => core::ptr::eq(now, entry),
        None => false,
    }
}

/// What has become of an entry that was to be made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// It was made.
    Made,
    /// There is one with this key.
    Exists,
    /// The map is full.
    Full,
}

/// Makes an entry that is not there yet. For `stage/entry.rs`, as the two below.
#[inline(always)]
pub(crate) fn insert_flow<A: Maps>(key: &FlowKey<A>, flow: &Flow<A>) -> Inserted {
    match A::flows().insert(key, flow, NOEXIST) {
        Ok(()) => Inserted::Made,
        Err(EXISTS) => Inserted::Exists,
        Err(_) => Inserted::Full,
    }
}

/// Replaces an entry whole; false when it is not there any more.
#[inline(always)]
pub(crate) fn replace_flow<A: Maps>(key: &FlowKey<A>, flow: &Flow<A>) -> bool {
    A::flows().insert(key, flow, EXIST).is_ok()
}

/// Removes an entry; false when it is not there any more.
#[inline(always)]
pub(crate) fn remove_flow<A: Maps>(key: &FlowKey<A>) -> bool {
    A::flows().remove(key).is_ok()
}

/// How many entries an owner has, by its index into the map.
#[inline(always)]
pub(crate) fn flow_usage(index: u32) -> u64 {
    match FLOW_USAGE.get_ptr(index) {
        // SAFETY: an array's element; the two numbers need not be of one moment.
        Some(at) => unsafe { at.read_volatile() }.entries(),
        None => 0,
    }
}

/// Jiffies at the end of the last pass of the sweep.
#[inline(always)]
pub(crate) fn swept() -> u32 {
    match FLOW_USAGE.get_ptr(ALL_FLOWS) {
        // SAFETY: an array's element.
        Some(at) => unsafe { at.read_volatile() }.swept as u32,
        None => 0,
    }
}

/// A pass of the sweep is over.
#[inline(always)]
pub(crate) fn set_swept(now: u32) {
    if let Some(at) = FLOW_USAGE.get_ptr_mut(ALL_FLOWS) {
        // SAFETY: an array's element.
        let at = unsafe { &raw mut (*at).swept };
        // SAFETY: a field of it, which only the sweep writes.
        unsafe { at.write_volatile(now.into()) };
    }
}

/// Counts entries of an owner, atomically.
#[inline(always)]
pub(crate) fn count_flows(index: u32, made: u64, removed: u64) {
    if let Some(at) = FLOW_USAGE.get_ptr_mut(index) {
        if made != 0 {
            // SAFETY: a field of an array's element.
            add(unsafe { &raw mut (*at).made }, made);
        }
        if removed != 0 {
            // SAFETY: as above.
            add(unsafe { &raw mut (*at).removed }, removed);
        }
    }
}

/// Memory of the packet that this CPU handles. It holds what the one before it has left.
#[inline(always)]
pub(crate) fn scratch<A: Maps>() -> Option<&'static mut PacketContext<A>> {
    let at = A::contexts().get_ptr_mut(0)?;
    // SAFETY: this CPU's own element. Hooks run with softirqs disabled, do not nest, and take it
    // once for each packet.
    Some(unsafe { &mut *at })
}
