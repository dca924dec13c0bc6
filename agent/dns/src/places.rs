//! Places that clients share: so many in all, and so many for one address, so that no
//! client takes those of all others.
//!
//! Taken by `tcp.rs` for a connection and by `udp.rs` for a question that waits for other
//! servers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// How many may be taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) all: usize,
    /// By one address.
    pub(crate) of_client: usize,
}

/// Those that are taken.
#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// All places.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    limits: Limits,
    taken: Arc<Mutex<Taken>>,
}

impl Places {
    pub(crate) fn new(limits: Limits) -> Places {
        let taken = Arc::default();
        Places { limits, taken }
    }

    /// A place, until it is dropped; `None` when there is none for this client.
    pub(crate) fn take(&self, client: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by_client.get(&client).copied().unwrap_or(0);
        if taken.all >= self.limits.all || own >= self.limits.of_client {
            return None;
        }
        taken.all += 1;
        taken.by_client.insert(client, own + 1);
        let taken = self.taken.clone();
        Some(Place { taken, client })
    }
}

/// One that is taken.
#[derive(Debug)]
pub(crate) struct Place {
    taken: Arc<Mutex<Taken>>,
    client: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        if let Some(count) = taken.by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                taken.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_in_all_and_by_client_and_given_back() {
        let places = Places::new(Limits {
            all: 3,
            of_client: 2,
        });
        let [a, b, c] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        let first = places.take(a);
        let second = places.take(a);
        assert!(first.is_some() && second.is_some());
        assert!(places.take(a).is_none(), "its share");
        let third = places.take(b);
        assert!(third.is_some());
        assert!(places.take(c).is_none(), "all");
        drop(first);
        assert!(places.take(c).is_some());
        drop((second, third));
        let taken = places.taken.lock().unwrap();
        assert_eq!((taken.all, taken.by_client.len()), (0, 0));
    }
}
