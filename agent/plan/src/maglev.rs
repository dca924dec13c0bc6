//! Maglev's table (Eisenbud and others, NSDI 2016, 3.4): each backend has entries in proportion
//! to its weight, and keeps nearly all of them when another one comes or goes.
//!
//! The same on all nodes: it follows from the backends' addresses, not from their numbers.
//! Called by `table`.

use crate::maps::Backend;

/// Sizes of tables: the largest primes below powers of two.
const SIZES: [usize; 9] = [251, 509, 1_021, 2_039, 4_093, 8_191, 16_381, 32_749, 65_521];
/// Entries for each backend, at least, below the largest size: shares differ by 1 % at most.
const ENTRIES: usize = 100;

/// Size of the table for so many backends. Where their number crosses a size, the table is
/// another one, and most entries change.
fn size(backends: usize) -> usize {
    let wanted = backends.saturating_mul(ENTRIES);
    let found = SIZES.into_iter().find(|size| *size >= wanted);
    found.unwrap_or(SIZES[SIZES.len() - 1])
}

/// SplitMix64's finaliser.
fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Two numbers that look random and are the same for the same address, port and protocol.
fn hashes(backend: &Backend) -> (usize, usize) {
    let ports = u64::from(backend.port.get()) << 8 | u64::from(backend.protocol);
    let mut hash = mix(ports.wrapping_add(0x9e37_79b9_7f4a_7c15));
    for word in backend.addr.words {
        hash = mix(hash ^ u64::from(word.get())).wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
    // Numbers below 2^32 fit on every machine that this is built for.
    let half = |word: u64| usize::try_from(word & 0xffff_ffff).unwrap_or_default();
    (half(hash >> 32), half(mix(hash)))
}

/// The order in which one backend prefers the entries.
struct Preference {
    next: usize,
    skip: usize,
    /// What it may take still, in weights.
    credit: u32,
}

/// For each entry the position of its backend in `backends`; empty if there are none.
pub(crate) fn fill(backends: &[Backend]) -> Vec<usize> {
    let size = size(backends.len());
    let heaviest = backends.iter().map(weight).max().unwrap_or(1);
    // Two nodes may have the backends in different orders.
    let mut order: Vec<usize> = (0..backends.len()).collect();
    order.sort_by_key(|at| (backends[*at].addr, backends[*at].port));
    let mut preferences: Vec<Preference> = backends
        .iter()
        .map(|backend| {
            let (offset, skip) = hashes(backend);
            Preference {
                next: offset % size,
                skip: skip % (size - 1) + 1,
                credit: 0,
            }
        })
        .collect();
    const FREE: usize = usize::MAX;
    let mut table = vec![FREE; if backends.is_empty() { 0 } else { size }];
    let mut left = table.len();
    while left > 0 {
        for at in &order {
            let preference = &mut preferences[*at];
            preference.credit += weight(&backends[*at]);
            if preference.credit < heaviest || left == 0 {
                continue;
            }
            preference.credit -= heaviest;
            // The size is prime, so that the steps meet every entry.
            while table[preference.next] != FREE {
                preference.next = (preference.next + preference.skip) % size;
            }
            table[preference.next] = *at;
            left -= 1;
        }
    }
    table
}

fn weight(backend: &Backend) -> u32 {
    u32::from(backend.weight.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_common::net::{Addr, Be16, protocol};
    use ebpf_common::service::ACTIVE;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn backend(number: u32, weight: u16) -> Backend {
        Backend {
            addr: Addr::from(Ipv4Addr::from(0x0af4_0100 + number)),
            service_port: 7,
            port: Be16::new(8080),
            protocol: protocol::TCP,
            state: ACTIVE,
            weight,
            ..Backend::default()
        }
    }

    fn shares(backends: &[Backend]) -> Vec<usize> {
        let mut shares = vec![0; backends.len()];
        for at in fill(backends) {
            shares[at] += 1;
        }
        shares
    }

    #[test]
    fn sizes_are_primes() {
        for size in SIZES {
            let divides = |divisor: &usize| size % divisor == 0;
            assert!(!(2..=size.isqrt()).any(|d| divides(&d)), "{size}");
        }
        for (backends, wanted) in [(1, 251), (2, 251), (3, 509), (40, 4_093), (655, 65_521)] {
            assert_eq!(size(backends), wanted, "{backends}");
        }
        assert_eq!(size(5_000), 65_521);
        assert_eq!(SIZES[SIZES.len() - 1] + 1, ebpf_common::maps::MAX_CHOICES);
    }

    /// Each has as many entries as the others, give or take one.
    #[test]
    fn equal_weights_have_equal_shares() {
        for count in [1, 2, 3, 10, 97, 655, 1_000] {
            let backends: Vec<Backend> = (0..count).map(|n| backend(n, 1)).collect();
            let shares = shares(&backends);
            let least = shares.iter().min().unwrap();
            let most = shares.iter().max().unwrap();
            assert!(most - least <= 1, "{count}: {least} to {most}");
        }
        assert!(fill(&[]).is_empty());
    }

    #[test]
    fn shares_follow_weights() {
        let weights = [1u16, 2, 3, 10, 100];
        let backends: Vec<Backend> = weights
            .iter()
            .zip(0..)
            .map(|(weight, number)| backend(number, *weight))
            .collect();
        let found = shares(&backends);
        let (size, total) = (size(backends.len()), 116);
        for (weight, share) in weights.iter().zip(found) {
            let wanted = size * usize::from(*weight) / total;
            assert!(share.abs_diff(wanted) <= 6, "{weight}: {share} of {wanted}");
        }
    }

    /// When one of many goes, few entries of the others change; and likewise when it comes back.
    #[test]
    fn a_backend_that_goes_disturbs_few_others() {
        for count in [3u32, 10, 50, 200] {
            let all: Vec<Backend> = (0..count).map(|n| backend(n, 1)).collect();
            let before = fill(&all);
            for removed in [0, count / 2, count - 1] {
                let removed = removed as usize;
                let mut left = all.clone();
                left.remove(removed);
                let after = fill(&left);
                if after.len() != before.len() {
                    // The table of fewer backends is a smaller one.
                    continue;
                }
                let was = |at: usize| if at < removed { at } else { at + 1 };
                let others = before.iter().zip(&after).filter(|(b, _)| **b != removed);
                let moved = others.filter(|(b, a)| **b != was(**a)).count();
                let percent = moved * 100 / before.len();
                assert!(percent <= 3, "{removed} of {count}: {percent} %");
            }
        }
    }

    proptest! {
        /// The table is the same in whichever order the backends are known.
        #[test]
        fn order_does_not_matter(numbers in proptest::collection::btree_set(0u32..500, 1..20)) {
            let forth: Vec<Backend> = numbers.iter().map(|n| backend(*n, 1)).collect();
            let back: Vec<Backend> = forth.iter().rev().copied().collect();
            let by_address = |backends: &[Backend]| -> Vec<Addr> {
                fill(backends).into_iter().map(|at| backends[at].addr).collect()
            };
            prop_assert_eq!(by_address(&forth), by_address(&back));
        }
    }
}
