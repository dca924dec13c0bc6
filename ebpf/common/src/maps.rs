//! The maps: name, shape and size, in one table.
//!
//! `ebpf-programs` declares them from these constants, `agent-sys` pins them by name in one
//! folder and compares what it finds there with this table before it adopts anything.

use crate::{
    conntrack::{Flow4, Flow6, FlowKey4, FlowKey6, FlowUsage},
    counter::{COUNTERS, Count},
    endpoint::{Endpoint, MAX_ENDPOINTS},
    name::{Name, NameKey},
    net::Addr,
    network::{Network, NetworkKey},
    service::{
        Affinity, AffinityKey, Backend, BackendStats, Frontend, FrontendKey, SourceRangeKey,
    },
    socket::TranslatedSocket,
};

/// (address, port, protocol) that are services, at most.
pub const MAX_FRONTENDS: usize = 65_536;
/// Source ranges of all services, at most.
pub const MAX_SOURCE_RANGES: usize = 65_536;
/// Backends on all services of this node's view, at most. Ids run from 1.
pub const MAX_BACKENDS: usize = 131_072;
/// Flow entries unless the agent is configured otherwise; a connection through a service takes
/// two. A full map evicts the least recently used ones; see `ebpf_logic::quota`.
pub const FLOWS: usize = 1_000_000;
/// Memory of a flow entry with its part of the hash table, bytes.
pub const FLOW_BYTES: u64 = 144;
/// The same of IPv6.
pub const FLOW_BYTES6: u64 =
    FLOW_BYTES + (size_of::<(FlowKey6, Flow6)>() - size_of::<(FlowKey4, Flow4)>()) as u64;
/// Address blocks of the cluster, at most.
pub const MAX_NETWORKS: usize = 1024;
/// Names that tools print, at most.
pub const MAX_NAMES: usize = 262_144;
/// Bytes of the event ring; a power of two.
pub const EVENT_BYTES: usize = 1 << 18;
/// Elements of the largest choice table: element 0 is its head. The largest Maglev table has
/// 65,521.
pub const MAX_CHOICES: usize = 65_522;
/// Clients whose backend is remembered, over all services with session affinity; the least
/// recently used ones are evicted.
pub const MAX_AFFINITY: usize = 65_536;

/// `BPF_F_NO_PREALLOC`: memory as entries come, for maps that only the agent writes.
pub const NO_PREALLOC: usize = 1;
/// `BPF_F_INNER_MAP`: arrays of different length may stand in one outer map.
pub const INNER_MAP: usize = 1 << 12;

/// Section of the object that is the map `epoch`: programs read it as a variable.
pub const EPOCH_SECTION: &str = ".bss.epoch";

/// Kinds of map (`enum bpf_map_type` of the kernel's `uapi/linux/bpf.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// `BPF_MAP_TYPE_HASH`
    Hash = 1,
    /// `BPF_MAP_TYPE_ARRAY`
    Array = 2,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`
    PerCpuArray = 6,
    /// `BPF_MAP_TYPE_LRU_HASH`
    LruHash = 9,
    /// `BPF_MAP_TYPE_LPM_TRIE`
    LpmTrie = 11,
    /// `BPF_MAP_TYPE_HASH_OF_MAPS`
    HashOfMaps = 13,
    /// `BPF_MAP_TYPE_SK_STORAGE`
    SkStorage = 24,
    /// `BPF_MAP_TYPE_RINGBUF`
    RingBuf = 27,
}

impl Kind {
    /// The kernel's word for it, in lower case.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::Array => "array",
            Self::PerCpuArray => "percpu_array",
            Self::LruHash => "lru_hash",
            Self::LpmTrie => "lpm_trie",
            Self::HashOfMaps => "hash_of_maps",
            Self::SkStorage => "sk_storage",
            Self::RingBuf => "ringbuf",
        }
    }
}

/// What one map must look like before it may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// At most 15 characters, which is what the kernel keeps.
    pub name: &'static str,
    /// Kind of map.
    pub kind: Kind,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// Entries; of the flow maps, the default.
    pub entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
    /// Who writes it, who reads it.
    pub about: &'static str,
}

const fn shape<K, V>(
    name: &'static str,
    kind: Kind,
    entries: usize,
    flags: usize,
    about: &'static str,
) -> Shape {
    assert!(name.len() <= 15, "the kernel keeps 15 characters of a name");
    Shape {
        name,
        kind,
        key: size_of::<K>() as u32,
        value: size_of::<V>() as u32,
        entries: entries as u32,
        flags: flags as u32,
        about,
    }
}

/// Index into `node_gen`: the node's routes.
pub const ROUTES: u32 = 0;
/// Index into `node_gen`: all frontends, of which datagrams follow changes.
pub const FRONTENDS: u32 = 1;
/// Elements of `node_gen`.
pub const NODE_GENS: usize = 2;

/// Names of the maps: pins in the folder, and what `bpftool map` prints.
pub mod name {
    /// ifindex -> `Endpoint`
    pub const ENDPOINTS: &str = "endpoints";
    /// address -> `Endpoint`
    pub const LOCAL_ADDRS: &str = "local_addrs";
    /// endpoint id -> generation
    pub const ENDPOINT_GENS: &str = "endpoint_gens";
    /// address block -> `Network`
    pub const NETWORKS: &str = "networks";
    /// `ROUTES`, `FRONTENDS` -> generation
    pub const NODE_GEN: &str = "node_gen";
    /// 0 -> epoch
    pub const EPOCH: &str = "epoch";
    /// `FrontendKey` -> `Frontend`
    pub const FRONTENDS: &str = "frontends";
    /// (service, address block) -> 1
    pub const SOURCE_RANGES: &str = "source_ranges";
    /// service port id -> array of backend ids
    pub const CHOICES: &str = "choices";
    /// backend id -> `Backend`
    pub const BACKENDS: &str = "backends";
    /// backend id -> generation
    pub const BACKEND_GENS: &str = "backend_gens";
    /// backend id -> `BackendStats`
    pub const BACKEND_STATS: &str = "backend_stats";
    /// backend id -> connections that ended unseen
    pub const BACKEND_LOST: &str = "backend_lost";
    /// `AffinityKey` -> `Affinity`
    pub const AFFINITY: &str = "affinity";
    /// `FlowKey4` -> `Flow4`
    pub const FLOWS: &str = "flows";
    /// `FlowKey6` -> `Flow6`
    pub const FLOWS6: &str = "flows6";
    /// endpoint id -> `FlowUsage`; behind those of IPv4 the ones of IPv6
    pub const FLOW_USAGE: &str = "flow_usage";
    /// socket -> `TranslatedSocket`
    pub const SOCKETS: &str = "sockets";
    /// (reason, hook) -> `Count`, per CPU
    pub const COUNTERS: &str = "counters";
    /// ring of `Event`
    pub const EVENTS: &str = "events";
    /// `NameKey` -> `Name`
    pub const NAMES: &str = "names";
}

/// Every map that is pinned.
pub const MAPS: [Shape; 21] = [
    shape::<u32, Endpoint>(
        name::ENDPOINTS,
        Kind::Hash,
        MAX_ENDPOINTS,
        NO_PREALLOC,
        "agent writes; whose interface a packet came in by, and the address it may use",
    ),
    shape::<Addr, Endpoint>(
        name::LOCAL_ADDRS,
        Kind::Hash,
        2 * MAX_ENDPOINTS,
        NO_PREALLOC,
        "agent writes; which pod of this node has an address",
    ),
    shape::<u32, u32>(
        name::ENDPOINT_GENS,
        Kind::Array,
        MAX_ENDPOINTS,
        0,
        "agent writes; moves when flows to an endpoint must be decided anew",
    ),
    shape::<NetworkKey, Network>(
        name::NETWORKS,
        Kind::LpmTrie,
        MAX_NETWORKS,
        NO_PREALLOC,
        "agent writes; the cluster's pod and service blocks",
    ),
    shape::<u32, u32>(
        name::NODE_GEN,
        Kind::Array,
        NODE_GENS,
        0,
        "agent writes; moves when the node's routes change, or frontends",
    ),
    shape::<u32, u32>(
        name::EPOCH,
        Kind::Array,
        1,
        0,
        "agent writes; moves after each of the generations",
    ),
    shape::<FrontendKey, Frontend>(
        name::FRONTENDS,
        Kind::Hash,
        MAX_FRONTENDS,
        NO_PREALLOC,
        "agent writes; which service port an address, port and protocol is",
    ),
    shape::<SourceRangeKey, u32>(
        name::SOURCE_RANGES,
        Kind::LpmTrie,
        MAX_SOURCE_RANGES,
        NO_PREALLOC,
        "agent writes; clients that may use the load balancer addresses of a service",
    ),
    shape::<u32, u32>(
        name::CHOICES,
        Kind::HashOfMaps,
        MAX_FRONTENDS,
        NO_PREALLOC,
        "agent writes; per service port an array: element 0 the head, then backend ids",
    ),
    shape::<u32, Backend>(
        name::BACKENDS,
        Kind::Array,
        MAX_BACKENDS,
        0,
        "agent writes; where a backend is",
    ),
    shape::<u32, u32>(
        name::BACKEND_GENS,
        Kind::Array,
        MAX_BACKENDS,
        0,
        "agent writes; moves when a backend is removed or its number is used again",
    ),
    shape::<u32, BackendStats>(
        name::BACKEND_STATS,
        Kind::Array,
        MAX_BACKENDS,
        0,
        "programs write; connections by backend, traffic of ended ones",
    ),
    shape::<u32, u64>(
        name::BACKEND_LOST,
        Kind::Array,
        MAX_BACKENDS,
        0,
        "agent writes; connections by backend whose end no packet has shown",
    ),
    shape::<AffinityKey, Affinity>(
        name::AFFINITY,
        Kind::LruHash,
        MAX_AFFINITY,
        0,
        "programs write; which backend a client of a service port was given",
    ),
    shape::<FlowKey4, Flow4>(
        name::FLOWS,
        Kind::LruHash,
        FLOWS,
        0,
        "programs write; what to do with the next packet of an IPv4 flow",
    ),
    shape::<FlowKey6, Flow6>(
        name::FLOWS6,
        Kind::LruHash,
        FLOWS,
        0,
        "programs write; what to do with the next packet of an IPv6 flow",
    ),
    shape::<u32, FlowUsage>(
        name::FLOW_USAGE,
        Kind::Array,
        2 * MAX_ENDPOINTS,
        0,
        "programs write; how many flow entries each endpoint has",
    ),
    shape::<u32, TranslatedSocket>(
        name::SOCKETS,
        Kind::SkStorage,
        0,
        NO_PREALLOC,
        "programs write, in each socket; the service and the backend of a translated connection",
    ),
    shape::<u32, Count>(
        name::COUNTERS,
        Kind::PerCpuArray,
        COUNTERS,
        0,
        "programs write; packets by drop reason and hook",
    ),
    Shape {
        name: name::EVENTS,
        kind: Kind::RingBuf,
        key: 0,
        value: 0,
        entries: EVENT_BYTES as u32,
        flags: 0,
        about: "programs write, agent reads; drops and new flows as they happen",
    },
    shape::<NameKey, Name>(
        name::NAMES,
        Kind::Hash,
        MAX_NAMES,
        NO_PREALLOC,
        "agent writes, tools read; what people call the numbers above",
    ),
];

/// The row of a map, by name.
pub fn shape_of(name: &str) -> Option<&'static Shape> {
    MAPS.iter().find(|shape| shape.name == name)
}
