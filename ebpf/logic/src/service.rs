//! Which backend takes a connection.
//!
//! By a hash of the connection, so that a retransmitted SYN, or a connection whose entry was
//! evicted, goes where it went as long as the choice table is the same. With the algorithm
//! "least connections" the hash gives two candidates, and the load decides between them; a
//! retransmitted SYN follows its flow's entry. Called by `stage/backend.rs`; tests predict with
//! it.

use ebpf_common::address::Address;
use ebpf_common::conntrack::FlowKey;
use ebpf_common::drop::Drop;
use ebpf_common::net::Be16;
use ebpf_common::service::{Frontend, LOCAL_ONLY, SOURCE_RANGES};

/// Spreads the bits of a word over all of it (the finaliser of MurmurHash3).
#[inline(always)]
pub(crate) const fn mix(mut word: u32) -> u32 {
    word ^= word >> 16;
    word = word.wrapping_mul(0x85eb_ca6b);
    word ^= word >> 13;
    word = word.wrapping_mul(0xc2b2_ae35);
    word ^ (word >> 16)
}

/// A number that looks random and is the same for the same connection and seed.
#[inline(always)]
pub fn hash<A: Address>(key: &FlowKey<A>, seed: u32) -> u32 {
    let ports = (key.sport.get() as u32) << 16 | key.dport.get() as u32;
    let word = key
        .src
        .fold_words(seed, |word, next| mix(word ^ next.get()));
    let word = key
        .dst
        .fold_words(word, |word, next| mix(word.wrapping_add(next.get())));
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

/// Indices of two different elements of a choice table of `count` backends; of a table of one,
/// twice that one.
#[inline(always)]
pub const fn candidates(hash: u32, count: u32) -> (u32, u32) {
    let first = choose(hash, count);
    if count < 2 {
        return (first, first);
    }
    // Among the others: the first one's number stands for the last.
    let second = choose(mix(hash ^ SECOND), count - 1);
    (first, if second == first { count } else { second })
}

/// Makes the hash of the second candidate another one than that of the first.
const SECOND: u32 = 0x9e37_79b9;

/// Open connections of a backend. The three counters are read one after the other while others
/// write them, so they may contradict each other.
#[inline(always)]
pub const fn open(connections: u64, ended: u64, lost: u64) -> u64 {
    let open = connections.wrapping_sub(ended).wrapping_sub(lost) as i64;
    if open < 0 { 0 } else { open as u64 }
}

/// Whether the second of two backends has fewer open connections for its weight.
#[inline(always)]
pub const fn second_is_less_loaded(first: (u64, u16), second: (u64, u16)) -> bool {
    second.0.wrapping_mul(first.1 as u64) < first.0.wrapping_mul(second.1 as u64)
}

/// Whether a client may keep the backend that it was given `used`: nanoseconds, as `now`.
#[inline(always)]
pub const fn keeps_affinity(now: u64, used: u64, seconds: u32) -> bool {
    now.saturating_sub(used) < seconds as u64 * 1_000_000_000
}

/// The key by which a connection's backend is chosen: with session affinity its client alone, so
/// that two first packets at once are given the same backend.
#[inline(always)]
pub const fn choice_key<A: Address>(key: &FlowKey<A>, affinity: u32) -> FlowKey<A> {
    if affinity == 0 {
        *key
    } else {
        FlowKey {
            sport: Be16 { be: 0 },
            ..*key
        }
    }
}

/// Whether a connection to the frontend may be given its backend at `connect`, where neither the
/// source address nor the hook is known. What depends on one of them is decided by its packets.
#[inline(always)]
pub const fn at_connect(frontend: &Frontend) -> bool {
    frontend.affinity == 0 && frontend.flags & SOURCE_RANGES == 0
}

/// The choice table for a connection; 0 if the frontend takes none from there. A pod of the cluster
/// that uses an address for clients outside counts as one of the inside.
#[inline(always)]
pub const fn table_for(frontend: &Frontend, from_network: bool, from_pod: bool) -> u32 {
    if !from_network || (from_pod && frontend.external != 0) {
        frontend.service_port
    } else {
        frontend.external
    }
}

/// Why a connection that was to use this table has no backend.
#[inline(always)]
pub const fn no_backend(frontend: &Frontend, table: u32) -> Drop {
    if table == frontend.external && frontend.flags & LOCAL_ONLY != 0 {
        Drop::NoLocalBackend
    } else {
        Drop::NoBackend
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use ebpf_common::conntrack::{FlowKey4, scope};
    use ebpf_common::net::{Be32, protocol};
    use std::vec;
    use std::vec::Vec;

    fn key(sport: u16) -> FlowKey4 {
        FlowKey4 {
            src: Be32::new(0x0af4_0105),
            dst: Be32::new(0x0a60_0007),
            sport: Be16::new(sport),
            dport: Be16::new(80),
            scope: scope(7, protocol::TCP),
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

    /// Pearson's chi-square of hits against equal shares.
    fn chi_square(hits: &[u32]) -> f64 {
        let mean = f64::from(hits.iter().sum::<u32>()) / hits.len() as f64;
        hits.iter()
            .map(|hit| (f64::from(*hit) - mean).powi(2) / mean)
            .sum()
    }

    /// Above it a fair choice is once in a thousand (Wilson and Hilferty's approximation).
    fn critical(degrees: f64) -> f64 {
        let spread = 2.0 / (9.0 * degrees);
        degrees * (1.0 - spread + 3.090 * spread.sqrt()).powi(3)
    }

    /// One client's ports, and many clients' with one port each: as even as a fair choice.
    #[test]
    fn the_spread_passes_a_chi_square_test() {
        for count in [2u32, 3, 7, 10, 100, 1_000] {
            for seed in [0u32, 1, 0xac1f_000b] {
                let connections = 100 * count.max(100);
                let mut by_port = vec![0u32; count as usize];
                let mut by_client = by_port.clone();
                let mut second = by_port.clone();
                for number in 0..connections {
                    let mut one = key(1_024 + (number % 60_000) as u16);
                    one.src = Be32::new(0x0af4_0105 + number / 60_000);
                    by_port[choose(hash(&one, seed), count) as usize - 1] += 1;
                    let (_, other) = candidates(hash(&one, seed), count);
                    second[other as usize - 1] += 1;
                    let client = FlowKey4 {
                        src: Be32::new(0x0af4_0000 + number),
                        ..key(40_000)
                    };
                    let client = choice_key(&client, 60);
                    by_client[choose(hash(&client, seed), count) as usize - 1] += 1;
                }
                for hits in [by_port, by_client, second] {
                    let found = chi_square(&hits);
                    let most = critical(f64::from(count - 1));
                    assert!(found < most, "{count} {seed}: {found} of {most}, {hits:?}");
                }
            }
        }
    }

    #[test]
    fn candidates_are_two() {
        assert_eq!(candidates(7, 0), (0, 0));
        assert_eq!(candidates(7, 1), (1, 1));
        for count in 2..20 {
            for sport in 0..500 {
                let (first, second) = candidates(hash(&key(sport), 1), count);
                assert_ne!(first, second);
                assert!((1..=count).contains(&first) && (1..=count).contains(&second));
            }
        }
    }

    #[test]
    fn load_is_for_each_weight() {
        for (first, second, wanted) in [
            ((0, 1), (0, 1), false),
            ((1, 1), (0, 1), true),
            ((0, 1), (1, 1), false),
            ((3, 1), (5, 2), true),
            ((3, 1), (6, 2), false),
            ((3, 1), (7, 2), false),
        ] {
            assert_eq!(second_is_less_loaded(first, second), wanted);
        }
        assert_eq!(open(10, 4, 1), 5);
        assert_eq!(open(10, 4, 0u64.wrapping_sub(2)), 8);
        assert_eq!(open(10, 11, 0), 0);
    }

    /// Ten backends that hold their connections: the fullest one of two choices has hardly more
    /// than the mean, and each has its weight's share.
    #[test]
    fn two_choices_level_the_load() {
        let weights = [1u16, 1, 1, 1, 2, 2, 1, 1, 1, 1];
        let table: Vec<usize> = (0..10).chain([4, 5]).collect();
        let mut open = [0u64; 10];
        for sport in 0..12_000 {
            let (first, second) = candidates(hash(&key(sport), 1), table.len() as u32);
            let (first, second) = (table[first as usize - 1], table[second as usize - 1]);
            let less = second_is_less_loaded(
                (open[first], weights[first]),
                (open[second], weights[second]),
            );
            open[if less { second } else { first }] += 1;
        }
        for (backend, open) in open.iter().enumerate() {
            let share = 1_000 * u64::from(weights[backend]);
            assert!(open.abs_diff(share) <= 20, "{backend}: {open} of {share}");
        }
    }

    #[test]
    fn affinity_ends() {
        let second = 1_000_000_000;
        assert!(keeps_affinity(5 * second, 5 * second, 1));
        assert!(keeps_affinity(6 * second - 1, 5 * second, 1));
        assert!(!keeps_affinity(6 * second, 5 * second, 1));
        // Another CPU has used it after this one has read its clock.
        assert!(keeps_affinity(5 * second, 6 * second, 1));
        assert!(keeps_affinity(86_400 * second, second, 86_400));
    }
}
