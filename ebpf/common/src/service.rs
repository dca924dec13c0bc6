//! Services: frontends, backends and what ties them together.
//!
//! A frontend (address, port, protocol) names a service port; the service port's choice table
//! (`choices`, an inner array that is swapped whole) names backends by id; a backend is where
//! the connection goes. Choice tables hold only backends that take new connections.

use crate::{
    map_abi,
    net::{Addr, Be16},
};

/// `Backend::state`: this number is free.
pub const FREE: u8 = 0;
/// `Backend::state`: takes new connections.
pub const ACTIVE: u8 = 1;
/// `Backend::state`: keeps what it has; its generation stays.
pub const TERMINATING: u8 = 2;

map_abi! {
    /// Where clients send to.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct FrontendKey {
        /// Service address.
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
        /// Key of `choices`; allocated by the control plane, from 1.
        pub service_port: u32,
        /// The service, from 1.
        pub service: u32,
        /// None yet; zero.
        pub flags: u32,
    }

    /// Where a connection goes: one per (service port, address, port).
    #[derive(Hash, PartialOrd, Ord)]
    pub struct Backend {
        /// Pod or node address.
        pub addr: Addr,
        /// The service port that it serves.
        pub service_port: u32,
        /// Port on it.
        pub port: Be16,
        /// TCP or UDP.
        pub protocol: u8,
        /// `FREE`, `ACTIVE`, `TERMINATING`.
        pub state: u8,
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
    }
}
