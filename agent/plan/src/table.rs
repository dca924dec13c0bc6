//! The choice table of a service port: which backend takes how large a part of the new
//! connections.
//!
//! The programs choose an entry by a hash, so a backend's share is the number of its entries.
//! Called by `service`.

use ebpf_common::maps::MAX_CHOICES;
use ebpf_common::service::algorithm;
use proto::v1;

use crate::maglev;
use crate::maps::{Backend, Table};

/// Most entries of a table.
pub(crate) const MOST: usize = MAX_CHOICES - 1;

/// The number of an algorithm in the maps.
pub(crate) fn algorithm_of(algorithm: v1::Algorithm) -> u8 {
    match algorithm {
        v1::Algorithm::Hash => algorithm::HASH,
        v1::Algorithm::Maglev => algorithm::MAGLEV,
        v1::Algorithm::LeastConnections => algorithm::LEAST_CONNECTIONS,
    }
}

/// The table of the backends that take new connections, by number; at most `MOST` of them.
pub(crate) fn build(algorithm: u8, mut active: Vec<(u32, Backend)>) -> Table {
    active.sort_unstable_by_key(|(number, _)| *number);
    let entries = if algorithm == algorithm::MAGLEV {
        let backends: Vec<Backend> = active.iter().map(|(_, backend)| *backend).collect();
        let filled = maglev::fill(&backends);
        filled.into_iter().map(|at| active[at].0).collect()
    } else {
        shares(&active)
    };
    Table { algorithm, entries }
}

/// Each number as often as its weight says, in the smallest numbers that have the proportion, or
/// as near to it as the table's size allows.
fn shares(active: &[(u32, Backend)]) -> Vec<u32> {
    let weight = |backend: &Backend| usize::from(backend.weight.max(1));
    let weights = || active.iter().map(|(_, backend)| weight(backend));
    let divisor = weights().fold(0, gcd).max(1);
    let total = weights().sum::<usize>() / divisor;
    let mut entries = Vec::with_capacity(total.min(MOST));
    for (number, backend) in active {
        let exact = weight(backend) / divisor;
        let share = if total <= MOST {
            exact
        } else {
            // One for each, and the rest of the table in proportion.
            1 + exact * MOST.saturating_sub(active.len()) / total
        };
        entries.extend(std::iter::repeat_n(*number, share));
    }
    entries
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_common::net::{Addr, Be16};
    use ebpf_common::service::ACTIVE;
    use std::net::Ipv4Addr;

    fn backends(weights: &[u16]) -> Vec<(u32, Backend)> {
        let backend = |(number, weight): (u32, &u16)| {
            let backend = Backend {
                addr: Addr::from(Ipv4Addr::from(0x0af4_0100 + number)),
                service_port: 1,
                port: Be16::new(80),
                protocol: 6,
                state: ACTIVE,
                weight: *weight,
                ..Backend::default()
            };
            (number, backend)
        };
        (1u32..).zip(weights).map(backend).collect()
    }

    #[test]
    fn shares_are_the_smallest_numbers_in_proportion() {
        for (weights, wanted) in [
            (&[][..], &[][..]),
            (&[5], &[1]),
            (&[1, 1, 1], &[1, 2, 3]),
            (&[100, 100], &[1, 2]),
            (&[10, 20, 10], &[1, 2, 2, 3]),
            (&[0, 2], &[1, 2, 2]),
        ] {
            for algorithm in [algorithm::HASH, algorithm::LEAST_CONNECTIONS] {
                let table = build(algorithm, backends(weights));
                assert_eq!((table.algorithm, &table.entries[..]), (algorithm, wanted));
            }
        }
    }

    /// More than the table holds: all of them stay in it, and the proportion nearly so.
    #[test]
    fn large_weights_are_scaled_down() {
        let mut weights = vec![1_000u16; 100];
        weights.extend([1u16; 100]);
        let table = build(algorithm::HASH, backends(&weights));
        assert!(table.entries.len() <= MOST, "{}", table.entries.len());
        let share = |number| table.entries.iter().filter(|n| **n == number).count();
        for number in 1..=200 {
            let wanted = if number <= 100 { 653 } else { 1 };
            assert!(
                share(number).abs_diff(wanted) <= 2,
                "{number}: {}",
                share(number)
            );
        }
        let full = vec![1u16; MOST];
        assert_eq!(build(algorithm::HASH, backends(&full)).entries.len(), MOST);
    }

    #[test]
    fn maglev_names_numbers() {
        let table = build(algorithm::MAGLEV, backends(&[1, 1, 2]));
        assert_eq!(table.entries.len(), 509);
        let share = |number| table.entries.iter().filter(|n| **n == number).count();
        assert_eq!(share(1) + share(2) + share(3), 509);
        assert!(share(3).abs_diff(254) <= 2, "{}", share(3));
    }
}
