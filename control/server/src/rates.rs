//! How often callers may do something that costs: each by itself, and all together.
//!
//! Pure: the time is an argument. Callers are told apart up to a number, so that memory is
//! bounded; of more of them only the common rate holds. Used by `join_rate.rs` (by address),
//! `tls.rs` (by address) and `session.rs` (by node).

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};

use tokio::time::Instant;

use crate::budget::{Bucket, Rate};

/// Callers that are told apart at one time.
const CALLERS: usize = 4096;

struct Caller {
    bucket: Bucket,
    /// It was said already that it calls too often.
    told: bool,
}

/// Token buckets of callers.
pub(crate) struct Rates<C> {
    each: Rate,
    callers: HashMap<C, Caller>,
    total: Bucket,
}

/// Why a caller has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TooOften {
    /// It did too much itself, for the first time.
    Caller,
    /// It did too much itself, again.
    CallerAgain,
    /// All together did too much.
    All,
}

impl<C: Eq + Hash> Rates<C> {
    pub(crate) fn new(each: Rate, total: Rate, now: Instant) -> Self {
        Self {
            each,
            callers: HashMap::new(),
            total: Bucket::new(total, now),
        }
    }

    /// Takes one from the caller's share and from that of all. A caller that is not told
    /// apart (`None`) has no share of its own.
    pub(crate) fn take(&mut self, caller: Option<C>, now: Instant) -> Result<(), TooOften> {
        if let Some(caller) = caller {
            if self.callers.len() >= CALLERS && !self.callers.contains_key(&caller) {
                self.callers.retain(|_, c| !c.bucket.is_full(now));
            }
            if self.callers.len() < CALLERS || self.callers.contains_key(&caller) {
                let each = self.each;
                let new = || Caller {
                    bucket: Bucket::new(each, now),
                    told: false,
                };
                let known = self.callers.entry(caller).or_insert_with(new);
                if !known.bucket.try_take(now) {
                    return Err(match std::mem::replace(&mut known.told, true) {
                        false => TooOften::Caller,
                        true => TooOften::CallerAgain,
                    });
                }
            }
        }
        if self.total.try_take(now) {
            Ok(())
        } else {
            Err(TooOften::All)
        }
    }
}

/// By what a machine is told apart: an IPv6 host has all of its /64.
pub(crate) fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rates(now: Instant) -> Rates<IpAddr> {
        let rate = |per_second, burst| Rate { per_second, burst };
        Rates::new(rate(5.0, 50.0), rate(50.0, 500.0), now)
    }

    fn allowed(rates: &mut Rates<IpAddr>, from: &str, tries: usize, now: Instant) -> usize {
        let from = source(from.parse().unwrap());
        let tries = (0..tries).filter(|_| rates.take(Some(from), now).is_ok());
        tries.count()
    }

    #[test]
    fn one_source_leaves_the_others_their_share() {
        let start = Instant::now();
        let mut rates = rates(start);
        let after = |seconds| start + Duration::from_secs(seconds);
        // (source, tries, seconds after the start, let through)
        let rows = [
            ("192.0.2.1", 1000, 0, 50),
            ("192.0.2.2", 10, 0, 10),
            ("192.0.2.1", 10, 1, 5),
            // One host by other addresses of its own.
            ("2001:db8::1", 50, 1, 50),
            ("2001:db8::2", 10, 1, 0),
            ("2001:db8:0:1::1", 10, 1, 10),
            ("::ffff:192.0.2.1", 10, 1, 0),
            ("192.0.2.1", 1000, 3600, 50),
        ];
        for (from, tries, at, expected) in rows {
            let got = allowed(&mut rates, from, tries, after(at));
            assert_eq!(got, expected, "{from} after {at} s");
        }
    }

    #[test]
    fn all_sources_together_have_a_limit_and_a_bound_in_memory() {
        let start = Instant::now();
        let mut rates = rates(start);
        let address = |n: u32| IpAddr::V4((0x0a00_0000 + n).into());
        let many = 3 * u32::try_from(CALLERS).unwrap();
        let passed = (0..many).filter(|n| rates.take(Some(address(*n)), start).is_ok());
        assert_eq!(passed.count(), 500);
        assert_eq!(rates.callers.len(), CALLERS);
        // Those that are silent are forgotten.
        let later = start + Duration::from_secs(60);
        assert_eq!(rates.take(Some(address(many)), later), Ok(()));
        assert_eq!(rates.callers.len(), 1);
    }
}
