//! Services: frontends, backends and what ties them together.
//!
//! A frontend (address, port, protocol) names a service port; the service port's choice table
//! (`choices`, an inner array that is swapped whole) names backends by id; a backend is where
//! the connection goes. Choice tables hold only backends that take new connections. `affinity`
//! remembers which backend a client was given.

use crate::{
    map_abi,
    net::{Addr, Be16, Be32},
};

/// How a backend is chosen out of a choice table.
pub mod algorithm {
    /// By a hash of the connection, which differs between nodes.
    pub const HASH: u8 = 0;
    /// By a hash of the connection that is the same on all nodes, out of a Maglev table.
    pub const MAGLEV: u8 = 1;
    /// Of two backends the one with fewer connections for its weight.
    pub const LEAST_CONNECTIONS: u8 = 2;

    /// The word for it, as in the annotation of a Service.
    pub const fn text(algorithm: u8) -> &'static str {
        match algorithm {
            HASH => "hash",
            MAGLEV => "maglev",
            LEAST_CONNECTIONS => "least-connections",
            _ => "?",
        }
    }
}

/// Element 0 of a choice table: how many elements follow, and how one is chosen.
#[inline(always)]
pub const fn table_head(algorithm: u8, entries: u32) -> u32 {
    (algorithm as u32) << 24 | entries
}

/// The number of elements in a `table_head`.
#[inline(always)]
pub const fn table_entries(head: u32) -> u32 {
    head & 0x00ff_ffff
}

/// The algorithm in a `table_head`.
#[inline(always)]
pub const fn table_algorithm(head: u32) -> u8 {
    (head >> 24) as u8
}

/// `Backend::state`: this number is free.
pub const FREE: u8 = 0;
/// `Backend::state`: takes new connections.
pub const ACTIVE: u8 = 1;
/// `Backend::state`: keeps what it has; its generation stays.
pub const TERMINATING: u8 = 2;

/// `Frontend::flags`: only clients in `source_ranges` may use it.
pub const SOURCE_RANGES: u32 = 1;
/// `Frontend::flags`: `external` has backends of this node only, who see the client's address.
pub const LOCAL_ONLY: u32 = 2;

impl Backend {
    /// Whether both are one place of one service port, so that the one's connections are the
    /// other's: they may differ in what decides about new connections.
    pub fn is_same_place(&self, other: &Self) -> bool {
        self.addr == other.addr
            && self.service_port == other.service_port
            && self.port == other.port
            && self.protocol == other.protocol
    }

    /// Whether it is, or was, in this choice table.
    #[inline(always)]
    pub const fn is_of(&self, table: u32) -> bool {
        table != 0 && (self.service_port == table || self.second_port == table)
    }

    /// Whether it takes new connections out of this choice table.
    #[inline(always)]
    pub const fn takes_new(&self, table: u32) -> bool {
        (self.service_port == table && self.state == ACTIVE)
            || (self.second_port == table && self.second_state == ACTIVE && table != 0)
    }
}

/// `FrontendKey::addr` of node ports: any address of the node.
pub const NODE_PORTS: Addr = Addr::v4(Be32 { be: 0 });
/// The same of IPv6.
pub const NODE_PORTS6: Addr = Addr {
    words: [Be32 { be: 0 }; 4],
};

impl SourceRangeKey {
    /// Clients of a service; `prefix_len` as people write it (0..=32 for IPv4). Bits behind the
    /// prefix are cleared: two keys that differ in these only are one in the map.
    pub fn new(service: u32, addr: Addr, prefix_len: u32) -> Self {
        let mapped = if addr.as_v4().is_some() { 96 } else { 0 };
        let bits = mapped + prefix_len;
        let mask = 128u32
            .checked_sub(bits)
            .map_or(u128::MAX, |rest| u128::MAX.checked_shl(rest).unwrap_or(0));
        let masked = u128::from_be_bytes(addr.octets()) & mask;
        Self {
            prefix_len: 32 + bits,
            range: SourceRange {
                service,
                addr: Addr::from_octets(masked.to_be_bytes()),
            },
        }
    }
}

map_abi! {
    /// Where clients send to.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct FrontendKey {
        /// Service address, or `NODE_PORTS`.
        pub addr: Addr,
        /// Service port.
        pub port: Be16,
        /// TCP or UDP, see `net::protocol`.
        pub protocol: u8,
        /// Named padding, zero.
        pub pad: u8,
    }

    /// What a frontend stands for.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct Frontend {
        /// Key of `choices`, for connections of pods and nodes of the cluster; allocated by the
        /// control plane, from 1.
        pub service_port: u32,
        /// The same for connections from outside of the cluster; 0: they are refused.
        pub external: u32,
        /// The service, from 1.
        pub service: u32,
        /// Seconds for which connections of one client go to one backend; 0: each is chosen
        /// by itself.
        pub affinity: u32,
        /// Bits: `SOURCE_RANGES`, `LOCAL_ONLY`.
        pub flags: u32,
    }

    /// Key of the LPM trie `source_ranges`, behind the number of its bits that count.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct SourceRange {
        /// `Frontend::service`
        pub service: u32,
        /// First address of the clients.
        pub addr: Addr,
    }

    /// A `SourceRange` with the number of bits that count.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct SourceRangeKey {
        /// Of the 160 bits of `range`: a mapped IPv4 /24 has 152.
        pub prefix_len: u32,
        /// The range.
        pub range: SourceRange,
    }

    /// Where a connection goes: one per (service port, address, port), also if the service port has
    /// two choice tables, so that a connection stays when it would now come through the other.
    #[derive(Default, Hash, PartialOrd, Ord)]
    pub struct Backend {
        /// Pod or node address.
        pub addr: Addr,
        /// The service port that it serves: key of its first choice table.
        pub service_port: u32,
        /// Key of its second one, for the other traffic policy; 0: there is none.
        pub second_port: u32,
        /// Port on it.
        pub port: Be16,
        /// TCP or UDP.
        pub protocol: u8,
        /// `FREE`, `ACTIVE`, `TERMINATING`; of two tables in the first one.
        pub state: u8,
        /// Share of new connections, relative to the others'; at least 1.
        pub weight: u16,
        /// `ACTIVE`, `TERMINATING`: in the second table; 0 if there is none.
        pub second_state: u8,
        /// Named padding, zero.
        pub pad: u8,
    }

    /// What went to a backend from this node.
    #[derive(Default)]
    pub struct BackendStats {
        /// Flows that were given to it.
        pub connections: u64,
        /// Packets towards it, of flows that ended.
        pub packets: u64,
        /// Bytes (IP length) towards it, of flows that ended.
        pub bytes: u64,
        /// Those of `connections` that a packet, or the sweep, has ended. Less than really have:
        /// see `backend_lost`.
        pub ended: u64,
    }

    /// Whose connections go to one backend.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct AffinityKey {
        /// Client, as the packet has it.
        pub client: Addr,
        /// Key of `choices`.
        pub service_port: u32,
    }

    /// The backend that a client was given.
    pub struct Affinity {
        /// When it was given a connection last: `CLOCK_MONOTONIC`, nanoseconds, coarse.
        pub last_used: u64,
        /// Backend id.
        pub backend: u32,
        /// Its generation then.
        pub backend_gen: u32,
    }
}
