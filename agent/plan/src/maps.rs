//! The service maps as they are: frontends, backends with their numbers, choice
//! tables.
//!
//! What they shall be is decided in `service.rs`; the kernel's maps are written by
//! `apply.rs` of the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use ebpf_common::maps::MAX_BACKENDS;
use ebpf_common::net::{Addr, Be16};

pub use ebpf_common::service::{Backend, Frontend, FrontendKey, SourceRangeKey};

/// What makes a backend the same backend: service port, address, port, protocol.
pub type BackendKey = (u32, Addr, Be16, u8);

fn key_of(backend: &Backend) -> BackendKey {
    (
        backend.service_port,
        backend.addr,
        backend.port,
        backend.protocol,
    )
}

/// A choice table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// `ebpf_common::service::algorithm::*`
    pub algorithm: u8,
    /// Numbers of backends, in order; each as often as it has a share.
    pub entries: Vec<u32>,
}

/// The service maps as they are. Written by [`Maps::put_backend`] and its like only.
#[derive(Debug, Clone, Default)]
pub struct Maps {
    frontends: BTreeMap<FrontendKey, Frontend>,
    tables: BTreeMap<u32, Table>,
    backends: BTreeMap<u32, Backend>,
    pub(crate) numbers: BTreeMap<BackendKey, u32>,
    of_service: BTreeMap<u32, BTreeSet<FrontendKey>>,
    /// (service, choice table): what its frontends led to, until the table is deleted, as
    /// another service may take a frontend.
    led_to: BTreeSet<(u32, u32)>,
    service_of_table: BTreeMap<u32, u32>,
    source_ranges: BTreeMap<u32, BTreeSet<SourceRangeKey>>,
    free: BTreeSet<u32>,
    top: u32,
}

impl Maps {
    /// Takes in a backend.
    pub fn put_backend(&mut self, id: u32, backend: Backend) {
        while self.top < id {
            self.top += 1;
            self.free.insert(self.top);
        }
        self.free.remove(&id);
        if let Some(before) = self.backends.insert(id, backend) {
            self.numbers.remove(&key_of(&before));
        }
        self.numbers.insert(key_of(&backend), id);
    }

    /// Records that a number is free.
    pub fn delete_backend(&mut self, id: u32) {
        if let Some(before) = self.backends.remove(&id) {
            self.numbers.remove(&key_of(&before));
        }
        if id <= self.top {
            self.free.insert(id);
        }
    }

    /// Takes in a choice table.
    pub fn put_table(&mut self, port_id: u32, table: Table) {
        self.tables.insert(port_id, table);
    }

    /// Records that a choice table is gone.
    pub fn delete_table(&mut self, port_id: u32) {
        self.tables.remove(&port_id);
        if let Some(service) = self.service_of_table.remove(&port_id) {
            self.led_to.remove(&(service, port_id));
        }
    }

    /// Takes in a frontend.
    pub fn put_frontend(&mut self, key: FrontendKey, frontend: Frontend) {
        self.delete_frontend(&key);
        self.frontends.insert(key, frontend);
        for table in [frontend.service_port, frontend.external] {
            if table == 0 {
                continue;
            }
            if let Some(before) = self.service_of_table.insert(table, frontend.service) {
                self.led_to.remove(&(before, table));
            }
            self.led_to.insert((frontend.service, table));
        }
        self.of_service
            .entry(frontend.service)
            .or_default()
            .insert(key);
    }

    /// Records that a frontend is gone.
    pub fn delete_frontend(&mut self, key: &FrontendKey) {
        let Some(before) = self.frontends.remove(key) else {
            return;
        };
        if let Some(keys) = self.of_service.get_mut(&before.service) {
            keys.remove(key);
            if keys.is_empty() {
                self.of_service.remove(&before.service);
            }
        }
    }

    /// Takes in a source range.
    pub fn put_source_range(&mut self, range: SourceRangeKey) {
        let of = self.source_ranges.entry(range.range.service);
        of.or_default().insert(range);
    }

    /// Records that a source range is gone.
    pub fn delete_source_range(&mut self, range: &SourceRangeKey) {
        let service = range.range.service;
        if let Some(ranges) = self.source_ranges.get_mut(&service) {
            ranges.remove(range);
            if ranges.is_empty() {
                self.source_ranges.remove(&service);
            }
        }
    }

    /// Source ranges of a service, by its id.
    pub(crate) fn source_ranges(&self, id: u32) -> &BTreeSet<SourceRangeKey> {
        static NONE: BTreeSet<SourceRangeKey> = BTreeSet::new();
        self.source_ranges.get(&id).unwrap_or(&NONE)
    }

    /// Those of all services.
    pub(crate) fn all_source_ranges(&self) -> impl Iterator<Item = &SourceRangeKey> {
        self.source_ranges.values().flatten()
    }

    /// Backends by number.
    pub fn backends(&self) -> &BTreeMap<u32, Backend> {
        &self.backends
    }

    /// Choice tables by service port.
    pub fn tables(&self) -> &BTreeMap<u32, Table> {
        &self.tables
    }

    /// Frontends.
    pub fn frontends(&self) -> &BTreeMap<FrontendKey, Frontend> {
        &self.frontends
    }

    /// Frontends of a service, by its id.
    pub(crate) fn of_service(&self, id: u32) -> impl Iterator<Item = &FrontendKey> {
        self.of_service.get(&id).into_iter().flatten()
    }

    /// Choice tables that frontends of a service lead to, or did.
    pub(crate) fn tables_of(&self, id: u32) -> impl Iterator<Item = u32> + '_ {
        let range = self.led_to.range((id, 0)..=(id, u32::MAX));
        range.map(|(_, table)| *table)
    }

    /// Number of a backend, if it is in the map.
    pub(crate) fn number(&self, backend: &Backend) -> Option<u32> {
        self.numbers.get(&key_of(backend)).copied()
    }

    /// Numbers of a service port's backends.
    pub(crate) fn of_port(&self, port_id: u32) -> impl Iterator<Item = (&BackendKey, u32)> {
        self.of_ports(port_id..port_id + 1)
    }

    /// Numbers of the backends of these service ports.
    pub(crate) fn of_ports(&self, ports: Range<u32>) -> impl Iterator<Item = (&BackendKey, u32)> {
        let least = |port_id| (port_id, Addr::default(), Be16::default(), 0);
        let found = self.numbers.range(least(ports.start)..least(ports.end));
        found.map(|(key, id)| (key, *id))
    }

    /// The next numbers that are free, lowest first.
    pub(crate) fn vacant(&self) -> impl Iterator<Item = u32> + '_ {
        let last = u32::try_from(MAX_BACKENDS - 1).unwrap_or(u32::MAX);
        self.free.iter().copied().chain(self.top + 1..=last)
    }
}
