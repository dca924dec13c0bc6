//! The maps as the programs see them: statics, and lookups that give references.
//!
//! The other file with unsafe code. A value in a map stays mapped while a program runs; what
//! another CPU writes to it meanwhile is plain data, and no decision rests on two reads of
//! one field being equal.

mod flow;

pub(crate) use flow::{
    Inserted, Maps, copy_flow, count_flows, flow, flow_usage, insert_flow, is_entry, remove_flow,
    replace_flow, scratch, set_swept, swept,
};

use aya_ebpf::btf_maps::{Array, HashMap, HashOfMaps, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use ebpf_common::ABI_VERSION;
use ebpf_common::address::Address;
use ebpf_common::config::{IPV6, NodeConfig};
use ebpf_common::counter::{COUNTERS as COUNTER_COUNT, Count};
use ebpf_common::endpoint::{Endpoint, MAX_ENDPOINTS};
use ebpf_common::event::Event;
use ebpf_common::maps::{
    EVENT_BYTES, FLOWS as FLOW_COUNT, INNER_MAP, MAX_AFFINITY, MAX_BACKENDS, MAX_CHOICES,
    MAX_FRONTENDS, MAX_NAMES, MAX_NETWORKS, MAX_SOURCE_RANGES, NO_PREALLOC, NODE_GENS, ROUTES,
};
use ebpf_common::name::{Name, NameKey};
use ebpf_common::net::{Addr, Be32};
use ebpf_common::network::Network;
use ebpf_common::service::{
    Affinity, AffinityKey, Backend, BackendStats, Frontend, FrontendKey, SourceRange,
    table_algorithm, table_entries,
};
use ebpf_logic::generation::Current;

/// Facts of the node; the loader writes over it.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.node")]
static NODE_CONFIG: NodeConfig = NodeConfig {
    abi_version: ABI_VERSION,
    flags: 0,
    node: Addr::UNSPECIFIED,
    node6: Addr::UNSPECIFIED,
    hairpin6: Addr::UNSPECIFIED,
    hairpin: Be32 { be: 0 },
    service_ifindex: 0,
    service_mac: [0; 3],
    pad: 0,
    jiffies_per_second: 250,
    seed: 0,
    flow_entries: FLOW_COUNT as u32,
    pad2: 0,
    netns_cookie: 0,
};

/// Moves with each change that flows must notice; the agent writes it.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.epoch")]
static mut EPOCH: u32 = 0;

/// A field of the facts, as the loader left it: the compiler must not think that it knows it,
/// and only that field is read.
macro_rules! fact {
    ($(#[$meta:meta])* $name:ident: $ty:ty) => {
        $(#[$meta])*
        #[inline(always)]
        pub(crate) fn $name() -> $ty {
            let at = &raw const NODE_CONFIG.$name;
            // SAFETY: a field of a static that is never written to.
            unsafe { at.read_volatile() }
        }
    };
}
fact!(flags: u32);
fact!(hairpin: Be32);
fact!(node6: Addr);
fact!(hairpin6: Addr);
fact!(service_ifindex: u32);
fact!(service_mac: [u16; 3]);
fact!(jiffies_per_second: u32);
fact!(seed: u32);
fact!(flow_entries: u32);
fact!(netns_cookie: u64);

/// Whether the node and its pods have IPv6 addresses.
#[inline(always)]
pub(crate) fn has_ipv6() -> bool {
    flags() & IPV6 != 0
}

/// The node's address as it stands in a packet; zero, which no packet is for, if it is IPv6.
#[inline(always)]
fn node_v4() -> Be32 {
    let at = &raw const NODE_CONFIG.node.words[3];
    // SAFETY: a field of a static that is never written to.
    unsafe { at.read_volatile() }
}

#[btf_map(name = "endpoints")]
static ENDPOINTS: HashMap<u32, Endpoint, MAX_ENDPOINTS, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "local_addrs")]
static LOCAL_ADDRS: HashMap<Addr, Endpoint, { 2 * MAX_ENDPOINTS }, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "endpoint_gens")]
static ENDPOINT_GENS: Array<u32, MAX_ENDPOINTS> = Array::new();
#[btf_map(name = "networks")]
static NETWORKS: LpmTrie<Addr, Network, MAX_NETWORKS> = LpmTrie::new();
#[btf_map(name = "node_gen")]
static NODE_GEN: Array<u32, NODE_GENS> = Array::new();
#[btf_map(name = "frontends")]
static FRONTENDS: HashMap<FrontendKey, Frontend, MAX_FRONTENDS, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "source_ranges")]
static SOURCE_RANGES: LpmTrie<SourceRange, u32, MAX_SOURCE_RANGES> = LpmTrie::new();
#[btf_map(name = "choices")]
static CHOICES: HashOfMaps<u32, Choices, MAX_FRONTENDS, NO_PREALLOC> = HashOfMaps::new();
#[btf_map(name = "backends")]
static BACKENDS: Array<Backend, MAX_BACKENDS> = Array::new();
#[btf_map(name = "backend_gens")]
static BACKEND_GENS: Array<u32, MAX_BACKENDS> = Array::new();
#[btf_map(name = "backend_stats")]
static BACKEND_STATS: Array<BackendStats, MAX_BACKENDS> = Array::new();
#[btf_map(name = "backend_lost")]
static BACKEND_LOST: Array<u64, MAX_BACKENDS> = Array::new();
#[btf_map(name = "affinity")]
static AFFINITY: LruHashMap<AffinityKey, Affinity, MAX_AFFINITY> = LruHashMap::new();
#[btf_map(name = "counters")]
static COUNTERS: PerCpuArray<Count, COUNTER_COUNT> = PerCpuArray::new();
#[btf_map(name = "events")]
static EVENTS: RingBuf<Event, EVENT_BYTES> = RingBuf::new();
/// For tools only: no program reads it, but it is made with the others and has its BTF.
#[btf_map(name = "names")]
static NAMES: HashMap<NameKey, Name, MAX_NAMES, NO_PREALLOC> = HashMap::new();

type Choices = Array<u32, MAX_CHOICES, INNER_MAP>;
/// `BPF_ANY`
pub(crate) const ANY: u64 = 0;
/// `BPF_NOEXIST`
pub(crate) const NOEXIST: u64 = 1;
/// The pod behind an interface.
#[inline(always)]
pub(crate) fn endpoint(ifindex: u32) -> Option<&'static Endpoint> {
    // SAFETY: elements of the map are freed after a grace period, and we are inside one.
    unsafe { ENDPOINTS.get(ifindex) }
}

/// The pod of this node that has an address.
#[inline(always)]
pub(crate) fn local(addr: impl Address) -> Option<&'static Endpoint> {
    // SAFETY: as above.
    unsafe { LOCAL_ADDRS.get(addr.to_addr()) }
}

/// What `find` finds, with a generation of the endpoint that is older than the entry: if the
/// agent replaces the entry in between, the generation is outdated as soon as it is written.
///
/// The id must be known before its generation can be read, so the entry is looked up twice.
#[inline(always)]
pub(crate) fn with_generation(
    find: impl Fn() -> Option<&'static Endpoint>,
) -> Option<(&'static Endpoint, u32)> {
    let id = find()?.id;
    let generation = endpoint_gen(id);
    let endpoint = find()?;
    Some((endpoint, if endpoint.id == id { generation } else { NEVER }))
}

/// A generation that no element has for as long as a kernel runs.
pub(crate) const NEVER: u32 = u32::MAX;

/// What block of the cluster an address is in; 0 for none.
#[inline(always)]
pub(crate) fn network(addr: impl Address) -> u32 {
    let key = aya_ebpf::btf_maps::lpm_trie::Key::new(128, addr.to_addr());
    match NETWORKS.get(&key) {
        Some(network) => network.kind,
        None => 0,
    }
}

#[inline(always)]
pub(crate) fn frontend(key: &FrontendKey) -> Option<&'static Frontend> {
    // SAFETY: as above.
    unsafe { FRONTENDS.get(key) }
}

/// Whether a client is in one of a service's source ranges.
#[inline(always)]
pub(crate) fn in_source_ranges(service: u32, client: impl Address) -> bool {
    let range = SourceRange {
        service,
        addr: client.to_addr(),
    };
    let key = aya_ebpf::btf_maps::lpm_trie::Key::new(160, range);
    SOURCE_RANGES.get(&key).is_some()
}

/// The choice table of a service port, as it was at one moment: all that is read through it
/// belongs together, even if the agent has replaced it since.
#[derive(Clone, Copy)]
pub(crate) struct ChoiceTable(&'static Choices);

#[inline(always)]
pub(crate) fn choice_table(service_port: u32) -> Option<ChoiceTable> {
    // SAFETY: as above; an inner map lives until a grace period after it was replaced.
    unsafe { CHOICES.get(&service_port) }.map(ChoiceTable)
}

impl ChoiceTable {
    /// What kind of table it is.
    #[inline(always)]
    pub(crate) fn head(self) -> TableHead {
        TableHead(self.backend(0))
    }

    /// Id of a backend, the first at index 1; 0 behind the end.
    #[inline(always)]
    pub(crate) fn backend(self, index: u32) -> u32 {
        self.0.get(index).copied().unwrap_or(0)
    }
}

/// Element 0 of a choice table.
#[derive(Clone, Copy)]
pub(crate) struct TableHead(u32);

impl TableHead {
    /// Number of elements that follow.
    #[inline(always)]
    pub(crate) fn entries(self) -> u32 {
        table_entries(self.0)
    }

    /// `algorithm::*`
    #[inline(always)]
    pub(crate) fn algorithm(self) -> u8 {
        table_algorithm(self.0)
    }
}

#[inline(always)]
pub(crate) fn backend(id: u32) -> Option<&'static Backend> {
    BACKENDS.get(id)
}

/// What went to a backend so far.
#[inline(always)]
pub(crate) fn backend_stats(id: u32) -> Option<&'static BackendStats> {
    BACKEND_STATS.get(id)
}

/// Connections of a backend that ended unseen.
#[inline(always)]
pub(crate) fn backend_lost(id: u32) -> u64 {
    BACKEND_LOST.get(id).copied().unwrap_or(0)
}

/// The backend that a client was given.
#[inline(always)]
pub(crate) fn affinity(key: &AffinityKey) -> Option<&'static mut Affinity> {
    let at = AFFINITY.get_ptr_mut(key)?;
    // SAFETY: the map is preallocated, so the memory stays an entry while we are here. It may be
    // given to another client meanwhile, which callers provide for.
    Some(unsafe { &mut *at })
}

#[inline(always)]
pub(crate) fn put_affinity(key: &AffinityKey, given: &Affinity, flags: u64) -> bool {
    AFFINITY.insert(key, given, flags).is_ok()
}

/// Generation of a backend. A generation that does not exist equals none that an entry has.
#[inline(always)]
pub(crate) fn backend_gen(id: u32) -> u32 {
    generation(BACKEND_GENS.get_ptr(id))
}

#[inline(always)]
pub(crate) fn endpoint_gen(id: u16) -> u32 {
    generation(ENDPOINT_GENS.get_ptr(id as u32))
}

#[inline(always)]
pub(crate) fn node_gen() -> u32 {
    generation(NODE_GEN.get_ptr(ROUTES))
}

#[inline(always)]
pub(crate) fn frontend_gen() -> u32 {
    generation(NODE_GEN.get_ptr(ebpf_common::maps::FRONTENDS))
}

/// To be read before the generations that a decision is stamped with.
#[inline(always)]
pub(crate) fn epoch() -> u32 {
    let at = &raw const EPOCH;
    // SAFETY: a number in a map, which is always mapped.
    unsafe { at.read_volatile() }
}

/// The numbers in the maps.
pub(crate) struct Now;

impl Current for Now {
    #[inline(always)]
    fn epoch(&self) -> u32 {
        epoch()
    }
    #[inline(always)]
    fn backend_gen(&self, id: u32) -> u32 {
        backend_gen(id)
    }
    #[inline(always)]
    fn endpoint_gen(&self, id: u16) -> u32 {
        endpoint_gen(id)
    }
    #[inline(always)]
    fn node_gen(&self) -> u32 {
        node_gen()
    }
    #[inline(always)]
    fn frontend_gen(&self) -> u32 {
        frontend_gen()
    }
}

#[inline(always)]
fn generation(at: Option<*const u32>) -> u32 {
    match at {
        // SAFETY: an array's element, mapped as long as the array.
        Some(at) => unsafe { at.read_volatile() },
        None => NEVER,
    }
}

#[inline(always)]
pub(crate) fn count(index: u32, bytes: u32) {
    if let Some(at) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: this CPU's own element; programs of one CPU do not interrupt each other here.
        let count = unsafe { &mut *at };
        count.packets += 1;
        count.bytes += bytes as u64;
    }
}

/// Counts a connection of a backend, atomically.
#[inline(always)]
pub(crate) fn count_connection(backend: u32) {
    if let Some(at) = BACKEND_STATS.get_ptr_mut(backend) {
        // SAFETY: a field of an array's element.
        add(unsafe { &raw mut (*at).connections }, 1);
    }
}

/// Counts the end of a connection of a backend, atomically; `by` is 1, or -1 if it has not ended
/// after all.
#[inline(always)]
pub(crate) fn count_end(backend: u32, by: u64) {
    if let Some(at) = BACKEND_STATS.get_ptr_mut(backend) {
        // SAFETY: a field of an array's element.
        add(unsafe { &raw mut (*at).ended }, by);
    }
}

/// What an ended flow had sent to its backend.
#[inline(always)]
pub(crate) fn count_traffic(backend: u32, packets: u64, bytes: u64) {
    if let Some(at) = BACKEND_STATS.get_ptr_mut(backend) {
        // SAFETY: a field of an array's element.
        add(unsafe { &raw mut (*at).packets }, packets);
        // SAFETY: as above.
        add(unsafe { &raw mut (*at).bytes }, bytes);
    }
}

/// `BPF_ATOMIC | BPF_ADD`; core's atomics have no fetch_add on this target.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn add(at: *mut u64, by: u64) {
    // SAFETY: `at` points into a map's element, aligned to 8 bytes.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({at} + 0) += {by}",
            at = in(reg) at,
            by = in(reg) by,
        );
    }
}

/// On the host nothing runs.
#[cfg(not(target_arch = "bpf"))]
fn add(_at: *mut u64, _by: u64) {}

/// Puts an event into the ring; false when it is full.
#[inline(always)]
pub(crate) fn emit(event: &Event) -> bool {
    EVENTS.output(*event, 0).is_ok()
}
