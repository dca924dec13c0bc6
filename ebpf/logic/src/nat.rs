//! Which source port a flow takes when its own would make its answers another flow's, or when its
//! source address becomes the node's.
//!
//! Called by `stage/reply_tuple.rs`.

use crate::service::mix;

/// Ports, of which some are tried before the packet is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The lowest, host order.
    pub first: u32,
    /// A prime number.
    pub count: u32,
    /// How many are tried for a connection that begins.
    pub attempts: u32,
}

/// How many are tried for a TCP connection that began earlier and has no entry: those that it most
/// likely had. Without the one that it had it cannot go on anyway, and whoever forges such packets
/// is not to have a long search for each.
pub const ATTEMPTS_LATER: u32 = 4;

/// Of a client that keeps its address: Linux' ephemeral range, where no server listens.
pub const OWN: Ports = Ports {
    first: 32_768,
    count: 28_229,
    attempts: 8,
};

/// Of the node, for clients that take its address: above Linux' ephemeral range, so that no socket
/// of the node is given one, and where no server listens.
pub const SNAT: Ports = Ports {
    first: 61_000,
    count: 4_523,
    attempts: 16,
};

/// The port to try, host order; attempts of one connection differ.
#[inline(always)]
pub const fn pick_port(ports: Ports, hash: u32, attempt: u32) -> u16 {
    // Counts are prime, so that any step leads to another port each time. Connections that begin
    // at one port have different steps: with the same they would fill runs of ports, in which all
    // attempts of the next one fail.
    let start = ((hash as u64 * ports.count as u64) >> 32) as u32;
    let step = 1 + ((mix(hash) as u64 * (ports.count - 1) as u64) >> 32) as u32;
    (ports.first + (start + attempt * step) % ports.count) as u16
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec;
    use std::vec::Vec;

    /// Until seven tenths of the ports are in use, hardly any connection finds none.
    #[test]
    fn attempts_find_what_is_free() {
        for ports in [OWN, SNAT] {
            let mut used = vec![false; 1 << 16];
            let (mut taken, mut lost, mut number) = (0, 0, 0u32);
            while taken * 10 < ports.count * 7 {
                number += 1;
                let hash = mix(number);
                let mut tried = (0..16).map(|attempt| pick_port(ports, hash, attempt));
                match tried.find(|port| !used[usize::from(*port)]) {
                    Some(port) => {
                        used[usize::from(port)] = true;
                        taken += 1;
                    }
                    None => lost += 1,
                }
            }
            assert!(lost * 100 < number, "{lost} of {number}");
        }
    }

    #[test]
    fn counts_are_prime() {
        for ports in [OWN, SNAT] {
            let divided = (2..ports.count).any(|divisor| ports.count.is_multiple_of(divisor));
            assert!(!divided, "{}", ports.count);
        }
    }

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
