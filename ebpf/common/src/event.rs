//! Events: what the programs say as it happens, through a ring buffer.

use crate::{
    map_abi,
    net::{Addr, Be16},
};

/// `Event::kind`: a packet was dropped or refused; `reason` says why.
pub const DROPPED: u8 = 1;
/// `Event::kind`: a flow was decided; `reason` is 0.
pub const DECIDED: u8 = 2;

map_abi! {
    /// One record; the tuple is zero where the packet was too short to have one.
    pub struct Event {
        /// `CLOCK_MONOTONIC`, nanoseconds.
        pub time: u64,
        /// Source address as it arrived, mapped if IPv4.
        pub src: Addr,
        /// Destination address as it arrived, mapped if IPv4.
        pub dst: Addr,
        /// Source port.
        pub sport: Be16,
        /// Destination port.
        pub dport: Be16,
        /// Interface that it was seen on.
        pub ifindex: u32,
        /// Backend that was chosen, 0 for none.
        pub backend: u32,
        /// Bytes of the packet.
        pub len: u32,
        /// `DROPPED`, `DECIDED`.
        pub kind: u8,
        /// `Hook` as a number.
        pub hook: u8,
        /// `Drop` as a number, 0 when not dropped.
        pub reason: u8,
        /// IP protocol.
        pub protocol: u8,
        /// TCP flags.
        pub tcp_flags: u8,
        /// Named padding.
        pub pad: [u8; 3],
    }
}
