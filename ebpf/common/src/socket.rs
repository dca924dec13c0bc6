//! Sockets whose `connect` to a service was turned into one to a backend.
//!
//! Kept in the socket itself, so that it goes with it: written by `sock_connect4` and
//! `sock_connect6`, read by `sock_getpeer4`, `sock_getpeer6` and by the slow path of
//! `tc_from_pod`.

use crate::{
    map_abi,
    net::{Addr, Be16},
};

map_abi! {
    /// What a TCP socket asked for, and the backend that it was connected to instead.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct TranslatedSocket {
        /// The service's address, as `connect` was given it.
        pub service_addr: Addr,
        /// The backend's address.
        pub backend_addr: Addr,
        /// Backend id.
        pub backend: u32,
        /// Generation of the backend, read before it was chosen.
        pub backend_gen: u32,
        /// The service's port.
        pub service_port: Be16,
        /// The backend's port.
        pub backend_port: Be16,
    }
}
