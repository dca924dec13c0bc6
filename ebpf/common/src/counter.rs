//! Counters: packets and bytes by drop reason and by hook, per CPU, never lost.

use crate::{drop::REASONS, map_abi, program};

/// Where in the path a packet was; also the direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Hook {
    /// `tc_from_pod`
    FromPod = 0,
    /// `tc_to_pod`
    ToPod = 1,
    /// `tc_from_netdev`
    FromNetdev = 2,
    /// `tc_to_netdev`
    ToNetdev = 3,
}

/// Number of hooks.
pub const HOOKS: usize = 4;
/// Elements of `counters`.
pub const COUNTERS: usize = REASONS * HOOKS;

impl Hook {
    /// All, in order of their numbers.
    pub const ALL: [Self; HOOKS] = [Self::FromPod, Self::ToPod, Self::FromNetdev, Self::ToNetdev];

    /// Reads what `u8` wrote.
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::FromPod),
            1 => Some(Self::ToPod),
            2 => Some(Self::FromNetdev),
            3 => Some(Self::ToNetdev),
            _ => None,
        }
    }

    /// Name of the program.
    pub const fn text(self) -> &'static str {
        match self {
            Self::FromPod => program::FROM_POD,
            Self::ToPod => program::TO_POD,
            Self::FromNetdev => program::FROM_NETDEV,
            Self::ToNetdev => program::TO_NETDEV,
        }
    }
}

map_abi! {
    /// One counter.
    #[derive(Default)]
    pub struct Count {
        /// Packets.
        pub packets: u64,
        /// Bytes (skb length).
        pub bytes: u64,
    }
}

/// Reason number under which events are counted that found no place in the ring.
pub const EVENT_SHED: u32 = REASONS as u32 - 1;

/// Index of (reason number, hook) in `counters`; reason 0 counts decisions (slow path) that let
/// the packet go on.
#[inline(always)]
pub const fn index(reason: u32, hook: Hook) -> u32 {
    reason * HOOKS as u32 + hook as u32
}
