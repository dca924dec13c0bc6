//! Endpoint entries: which pods of this node the programs know, and by what id.
//!
//! Ids are kept in the map itself, so that an agent that restarts finds them
//! there. Called by `pod.rs`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ebpf_common::endpoint::{FIRST_POD, MAX_ENDPOINTS};
use ebpf_common::net::{Addr, MacAddr};

pub use ebpf_common::endpoint::Endpoint;

use crate::link;

/// The endpoint map as it is.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    /// By the pod's IPv4 address, mapped.
    pub entries: BTreeMap<ebpf_common::net::Addr, Endpoint>,
    /// The id that was given out last.
    pub last: u16,
}

impl Endpoints {
    /// A free id, the longest unused ones first.
    fn vacant(&self) -> Option<u16> {
        let end = u16::try_from(MAX_ENDPOINTS).unwrap_or(u16::MAX);
        let start = if self.last < FIRST_POD {
            FIRST_POD
        } else {
            self.last + 1
        };
        let used = |id: u16| self.entries.values().any(|e| e.id == id);
        (start..end)
            .chain(FIRST_POD..start.min(end))
            .find(|id| !used(*id))
    }

    /// The entry of the pod with this address, once it has a link.
    pub fn of(&self, address: Ipv4Addr) -> Option<&Endpoint> {
        self.entries.get(&address.into())
    }
}

/// The entry that the pod with this address and identity behind this interface
/// shall have; `None` if no id is free.
pub fn wanted(
    address: Ipv4Addr,
    ifindex: u32,
    identity: u32,
    endpoints: &Endpoints,
) -> Option<Endpoint> {
    // An entry of a link that is gone is another pod's, or this one's before its
    // link was made anew; its id stays with the address.
    let id = match endpoints.of(address) {
        Some(entry) => entry.id,
        None => endpoints.vacant()?,
    };
    Some(Endpoint {
        addr: address.into(),
        addr6: Addr::default(),
        ifindex,
        identity,
        id,
        mac: MacAddr {
            bytes: link::pod_mac(address),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_pod(last: u8, endpoints: &Endpoints) -> Option<Endpoint> {
        wanted(Ipv4Addr::new(10, 0, 0, last), u32::from(last), 7, endpoints)
    }

    #[test]
    fn ids_are_not_reused_at_once() {
        let mut endpoints = Endpoints::default();
        let take = |endpoints: &mut Endpoints, last| {
            let entry = of_pod(last, endpoints).unwrap();
            endpoints.last = entry.id;
            endpoints.entries.insert(entry.addr, entry);
            entry
        };
        assert_eq!(take(&mut endpoints, 1).id, FIRST_POD);
        let second = take(&mut endpoints, 2);
        assert_eq!(second.id, FIRST_POD + 1);
        endpoints.entries.remove(&second.addr);
        assert_eq!(take(&mut endpoints, 3).id, FIRST_POD + 2);
        // The same pod again: the same id.
        assert_eq!(take(&mut endpoints, 3).id, FIRST_POD + 2);
    }

    #[test]
    fn a_full_map_gives_none() {
        let mut endpoints = Endpoints {
            last: u16::try_from(MAX_ENDPOINTS - 1).unwrap(),
            ..Default::default()
        };
        assert_eq!(of_pod(1, &endpoints).unwrap().id, FIRST_POD);
        for id in FIRST_POD..u16::try_from(MAX_ENDPOINTS).unwrap() {
            let mut entry = of_pod(1, &Endpoints::default()).unwrap();
            entry.id = id;
            entry.addr = std::net::Ipv4Addr::from(u32::from(id)).into();
            endpoints.entries.insert(entry.addr, entry);
        }
        assert_eq!(of_pod(1, &endpoints), None);
    }
}
