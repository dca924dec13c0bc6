//! The choice of a backend for a new connection to a frontend.
//!
//! A client with session affinity keeps the backend that it was given, as long as that takes new
//! connections; all others are given one out of the choice table. Called by `stage/service.rs`.

use crate::maps::{self, ANY, ChoiceTable, NOEXIST};
use crate::packet;
use ebpf_common::address::Address;
use ebpf_common::conntrack::FlowKey;
use ebpf_common::net::{Addr, Be16, Be32};
use ebpf_common::service::{Affinity, AffinityKey, FREE, algorithm};
use ebpf_logic::service::{
    candidates, choice_key, choose, hash, keeps_affinity, open, second_is_less_loaded,
};

/// A backend that takes the connection.
#[derive(Clone, Copy)]
pub(crate) struct Picked<A> {
    /// Its id.
    pub(crate) id: u32,
    /// Its generation, read before the backend itself: if it is removed in between, the flow is
    /// stale at once.
    pub(crate) generation: u32,
    pub(crate) addr: A,
    pub(crate) port: Be16,
}

impl Picked<Be32> {
    /// With its address as maps have it that both families share.
    #[inline(always)]
    pub(crate) fn of_any(self) -> Picked<Addr> {
        Picked {
            id: self.id,
            generation: self.generation,
            addr: self.addr.to_addr(),
            port: self.port,
        }
    }
}

/// The backend for the connection with `key`, out of the choice table of a service port; `None`
/// if it has none.
#[inline(always)]
pub(crate) fn pick<A: Address>(
    service_port: u32,
    affinity: u32,
    key: &FlowKey<A>,
) -> Option<Picked<A>> {
    let table = maps::choice_table(service_port)?;
    if affinity == 0 {
        return by_hash(table, hash_for(table, key));
    }
    let client = AffinityKey {
        client: key.src.to_addr(),
        service_port,
    };
    let now = packet::coarse_nanoseconds();
    let mut flags = NOEXIST;
    if let Some(given) = maps::affinity(&client) {
        flags = ANY;
        if keeps_affinity(now, given.last_used, affinity)
            && let Some(picked) = kept(&client, given.backend, given.backend_gen)
        {
            given.last_used = now;
            return Some(picked);
        }
    }
    let by_client = choice_key(key, affinity);
    let picked = by_hash(table, hash_for(table, &by_client))?;
    let given = Affinity {
        last_used: now,
        backend: picked.id,
        backend_gen: picked.generation,
    };
    // Another CPU was first: its choice counts.
    if !maps::put_affinity(&client, &given, flags)
        && let Some(first) = maps::affinity(&client)
        && let Some(first) = kept(&client, first.backend, first.backend_gen)
    {
        return Some(first);
    }
    Some(picked)
}

/// The backend that a client was given, if it still takes new connections of the service port.
/// The entry that names it may be another client's by now.
#[inline(always)]
fn kept<A: Address>(client: &AffinityKey, id: u32, generation: u32) -> Option<Picked<A>> {
    let picked = usable(id)?;
    let backend = maps::backend(id)?;
    let keeps = picked.generation == generation && backend.takes_new(client.service_port);
    keeps.then_some(picked)
}

/// The hash of a connection by which its backend is chosen.
#[inline(always)]
fn hash_for<A: Address>(table: ChoiceTable, key: &FlowKey<A>) -> u32 {
    let seed = match table.head().algorithm() {
        // The same on all nodes, to which a router may move a client.
        algorithm::MAGLEV => 0,
        _ => maps::seed(),
    };
    hash(key, seed)
}

/// The backend that the table has for a hash; `None` if it is empty.
#[inline(always)]
pub(crate) fn by_hash<A: Address>(table: ChoiceTable, hash: u32) -> Option<Picked<A>> {
    let head = table.head();
    let count = head.entries();
    // Index 0 is the head, and no backend.
    if count == 0 {
        return None;
    }
    if head.algorithm() != algorithm::LEAST_CONNECTIONS {
        return usable(table.backend(choose(hash, count)));
    }
    let (first, second) = candidates(hash, count);
    let (first, second) = (table.backend(first), table.backend(second));
    let less = second_is_less_loaded(load(first), load(second));
    usable(if less { second } else { first })
}

/// Open connections and weight of a backend.
#[inline(always)]
fn load(id: u32) -> (u64, u16) {
    match (maps::backend_stats(id), maps::backend(id)) {
        (Some(stats), Some(backend)) => {
            let open = open(stats.connections, stats.ended, maps::backend_lost(id));
            (open, backend.weight)
        }
        (Some(_) | None, _) => (0, 1),
    }
}

#[inline(always)]
fn usable<A: Address>(id: u32) -> Option<Picked<A>> {
    if id == 0 {
        return None;
    }
    let generation = maps::backend_gen(id);
    let backend = maps::backend(id)?;
    if backend.state == FREE {
        return None;
    }
    Some(Picked {
        id,
        generation,
        addr: A::from_addr(backend.addr)?,
        port: backend.port,
    })
}
