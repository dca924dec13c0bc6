//! Which backend takes a connection.
//!
//! By a hash of the connection, so that a retransmitted SYN, or a connection whose entry was
//! evicted, goes where it went as long as the choice table is the same. Called by
//! `stage/service.rs`; tests predict with it.

use ebpf_common::conntrack::FlowKey4;

/// Spreads the bits of a word over all of it (the finaliser of MurmurHash3).
#[inline(always)]
const fn mix(mut word: u32) -> u32 {
    word ^= word >> 16;
    word = word.wrapping_mul(0x85eb_ca6b);
    word ^= word >> 13;
    word = word.wrapping_mul(0xc2b2_ae35);
    word ^ (word >> 16)
}

/// A number that looks random and is the same for the same connection and seed.
#[inline(always)]
pub const fn hash(key: &FlowKey4, seed: u32) -> u32 {
    let ports = (key.sport.get() as u32) << 16 | key.dport.get() as u32;
    let word = mix(seed ^ key.src.get());
    let word = mix(word.wrapping_add(key.dst.get()));
    let word = mix(word.wrapping_add(ports));
    mix(word.wrapping_add(key.protocol() as u32))
}

/// Index into a choice table of `count` backends, of which the first has index 1; 0 when there
/// is none.
#[inline(always)]
pub const fn choose(hash: u32, count: u32) -> u32 {
    if count == 0 {
        0
    } else {
        // The high word of the product: as even as a modulo, and no division.
        1 + ((hash as u64 * count as u64) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_common::net::{Be16, Be32, protocol};

    fn key(sport: u16) -> FlowKey4 {
        FlowKey4 {
            src: Be32::new(0x0af4_0105),
            dst: Be32::new(0x0a60_0007),
            sport: Be16::new(sport),
            dport: Be16::new(80),
            scope: FlowKey4::scope(7, protocol::TCP),
        }
    }

    /// Consecutive source ports, as one client uses them, reach all backends about evenly:
    /// within five standard deviations of a fair die.
    #[test]
    fn one_client_reaches_all_backends_evenly() {
        for count in [2u32, 3, 7, 100] {
            let mut hits = [0u32; 101];
            let connections = 28_000u32;
            for sport in 0..connections {
                let index = choose(hash(&key(32_768 + sport as u16), 1), count);
                assert!((1..=count).contains(&index));
                hits[index as usize] += 1;
            }
            let mean = connections / count;
            let allowed = 5 * mean.isqrt() + 5;
            for (index, hit) in hits.iter().enumerate().skip(1).take(count as usize) {
                assert!(
                    hit.abs_diff(mean) <= allowed,
                    "{count} backends, {index}: {hit}"
                );
            }
        }
    }

    #[test]
    fn the_same_connection_goes_to_the_same_backend() {
        assert_eq!(hash(&key(5), 1), hash(&key(5), 1));
        assert_ne!(hash(&key(5), 1), hash(&key(5), 2));
        assert_eq!(choose(u32::MAX, 0), 0);
        assert_eq!(choose(u32::MAX, 3), 3);
    }
}
