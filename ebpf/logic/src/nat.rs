//! Which source port a flow takes when its own would make its answers another flow's, or when its
//! source address becomes the node's.
//!
//! Called by `stage/reply_tuple.rs`.

/// Ports, of which some are tried before the packet is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    first: u32,
    count: u32,
    /// How many are tried.
    pub attempts: u32,
}

/// Of a client that keeps its address: Linux' ephemeral range, where no server listens.
pub const OWN: Ports = Ports {
    first: 32_768,
    count: 28_232,
    attempts: 8,
};

/// Of the node, for clients that take its address: above Linux' ephemeral range, so that no socket
/// of the node is given one.
pub const SNAT: Ports = Ports {
    first: 61_000,
    count: 4_536,
    attempts: 32,
};

/// The port to try, host order; attempts of one connection differ.
#[inline(always)]
pub const fn pick_port(ports: Ports, hash: u32, attempt: u32) -> u16 {
    // 7919 is prime and divides neither count, so that the steps do not meet.
    let offset = ((hash as u64 * ports.count as u64) >> 32) as u32 + attempt * 7_919;
    (ports.first + offset % ports.count) as u16
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    #[test]
    fn ports_differ_and_are_of_their_range() {
        for (ports, range) in [(OWN, 32_768..=60_999), (SNAT, 61_000..=65_535)] {
            for hash in [0, 1, 0x8000_0000, u32::MAX] {
                let mut seen: Vec<u16> = Vec::new();
                for attempt in 0..ports.attempts {
                    let port = pick_port(ports, hash, attempt);
                    assert!(range.contains(&port), "{port}");
                    assert!(!seen.contains(&port));
                    seen.push(port);
                }
            }
        }
    }
}
