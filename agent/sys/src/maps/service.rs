//! Handles of services: frontends, choice tables, backends with their generations.
//!
//! Order for a change that no packet can notice half done: backends, then the choice table,
//! then the frontend; the other way round when something goes.

use super::{Maps, MapsError};
use crate::bpf::syscall;
use ebpf_common::abi::MapType as _;
use ebpf_common::address::Address as _;
use ebpf_common::maps::{INNER_MAP, Kind, MAX_CHOICES};
use ebpf_common::name;
use ebpf_common::net::{Addr, protocol};
use ebpf_common::service::{
    Affinity, AffinityKey, Backend, BackendStats, FREE, Frontend, FrontendKey, NODE_PORTS,
    SourceRangeKey, table_algorithm, table_entries, table_head,
};
use ebpf_logic::service::open;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

/// Choice tables that are put at once, at most: their descriptors are open meanwhile, and a small
/// limit of descriptors is to be no limit of services.
const PORTION: usize = 512;

/// The choice table of a service port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChoiceTable {
    /// Its key in `choices`.
    pub service_port: u32,
    /// `service::algorithm::*`
    pub algorithm: u8,
    /// Backend ids in order, each as often as it has a share.
    pub entries: Vec<u32>,
}

impl Maps {
    /// All frontends.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, MapsError> {
        self.frontends.list()
    }

    /// What stands under an address, port and protocol, if anything.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn frontend(&self, key: &FrontendKey) -> Result<Option<Frontend>, MapsError> {
        self.frontends.get(key)
    }

    /// Makes an address, port and protocol a service port; `service` is
    /// "namespace/service:port".
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put_frontend(
        &self,
        key: &FrontendKey,
        frontend: &Frontend,
        service: &str,
    ) -> Result<(), MapsError> {
        self.put_name(name::SERVICE_PORT, frontend.service_port, service)?;
        if key.protocol == protocol::UDP && self.takes_datagrams(key, frontend)? {
            self.around_frontends(|| self.frontends.put(key, frontend))
        } else {
            self.frontends.put(key, frontend)
        }
    }

    /// Whether datagrams have come by another frontend so far: the one in its place, or the node
    /// port, if this is an address of the node.
    fn takes_datagrams(&self, key: &FrontendKey, frontend: &Frontend) -> Result<bool, MapsError> {
        if let Some(before) = self.frontends.get(key)? {
            return Ok(before != *frontend);
        }
        let addr = match key.addr.as_v4() {
            Some(_) => NODE_PORTS,
            None => Addr::UNSPECIFIED,
        };
        let node_port = FrontendKey { addr, ..*key };
        Ok(self.frontends.get(&node_port)?.is_some())
    }

    /// Many at once.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put_frontends(&self, all: &[(FrontendKey, Frontend)]) -> Result<(), MapsError> {
        self.frontends.put_all(all)
    }

    /// Forgets a frontend; nothing happens when there is none. The service port's name goes
    /// with its choice table.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_frontend(&self, key: &FrontendKey) -> Result<(), MapsError> {
        if key.protocol == protocol::UDP {
            self.around_frontends(|| self.frontends.delete(key))
        } else {
            self.frontends.delete(key)
        }
    }

    /// The clients that may use the load balancer addresses of services.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn source_ranges(&self) -> Result<Vec<SourceRangeKey>, MapsError> {
        let all = self.source_ranges.list()?;
        Ok(all.into_iter().map(|(range, _)| range).collect())
    }

    /// Lets clients use them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put_source_range(&self, range: &SourceRangeKey) -> Result<(), MapsError> {
        self.source_ranges.put(range, &1)
    }

    /// The reverse; nothing happens when it is not there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_source_range(&self, range: &SourceRangeKey) -> Result<(), MapsError> {
        self.around_frontends(|| self.source_ranges.delete(range))
    }

    /// All choice tables, by service port.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn choices(&self) -> Result<Vec<ChoiceTable>, MapsError> {
        let failed = || self.choices.failed("read");
        let mut all = Vec::new();
        for (service_port, inner) in self.choices.list()? {
            let inner = syscall::map_by_id(inner).map_err(failed())?;
            let elements: Vec<(u32, u32)> = syscall::list(syscall::fd(&inner)).map_err(failed())?;
            let mut elements = elements.into_iter().map(|(_, element)| element);
            let head = elements.next().unwrap_or(0);
            all.push(ChoiceTable {
                service_port,
                algorithm: table_algorithm(head),
                entries: elements.take(table_entries(head) as usize).collect(),
            });
        }
        all.sort_unstable();
        Ok(all)
    }

    /// Replaces choice tables whole: a packet sees the old one or the new one, never a mixture,
    /// and from the return on the new one. Programs that have begun may still use the old one;
    /// what frees a backend waits for them.
    ///
    /// # Errors
    /// When the kernel refuses, or when a table is longer than `MAX_CHOICES` - 1.
    pub fn put_choices(&self, tables: &[ChoiceTable]) -> Result<(), MapsError> {
        for portion in tables.chunks(PORTION) {
            let inner: Vec<(u32, OwnedFd)> = portion
                .iter()
                .map(|table| Ok((table.service_port, self.inner_table(table)?)))
                .collect::<Result<_, MapsError>>()?;
            self.readers
                .put(self.choices.fd(), inner)
                .map_err(self.choices.failed("put into"))?;
            if tables.len() > PORTION {
                self.wait_for_readers()?;
            }
        }
        Ok(())
    }

    /// Returns when no program uses a choice table that was replaced before.
    fn wait_for_readers(&self) -> Result<(), MapsError> {
        self.readers.wait().map_err(self.choices.failed("put into"))
    }

    fn inner_table(&self, table: &ChoiceTable) -> Result<OwnedFd, MapsError> {
        let backends = &table.entries;
        if backends.len() >= MAX_CHOICES {
            return Err(MapsError::Full {
                map: self.choices.name,
                id: backends.len() as u64,
                most: MAX_CHOICES as u64 - 1,
            });
        }
        let failed = || self.choices.failed("make a table of");
        let inner = syscall::create_map(Kind::Array as u32, 4, 4, backends.len() + 1, INNER_MAP)
            .map_err(failed())?;
        let head = table_head(table.algorithm, backends.len() as u32);
        let mut elements: Vec<(u32, u32)> = vec![(0, head)];
        elements.extend((1u32..).zip(backends.iter().copied()));
        syscall::update_batch(syscall::fd(&inner), &elements).map_err(failed())?;
        Ok(inner)
    }

    /// Forgets choice tables and the names of their service ports; those that are not there
    /// are passed over.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_choices(&self, service_ports: &[u32]) -> Result<(), MapsError> {
        let there: Vec<u32> = self
            .choices
            .list()?
            .into_iter()
            .map(|(service_port, _)| service_port)
            .filter(|service_port| service_ports.contains(service_port))
            .collect();
        syscall::delete_batch(self.choices.fd(), &there)
            .map_err(self.choices.failed("delete from"))?;
        for service_port in service_ports {
            self.delete_name(name::SERVICE_PORT, *service_port)?;
        }
        Ok(())
    }

    /// All backends that are in use, by id.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn backends(&self) -> Result<Vec<(u32, Backend)>, MapsError> {
        let mut all = self.backends.list()?;
        all.retain(|(_, backend)| backend.state != FREE);
        Ok(all)
    }

    /// Writes a backend; `pod` is "namespace/name".
    ///
    /// When the number stood for another backend, its generation moves and its statistics begin
    /// anew; when only its tables, states or weight change, both stay, and with them its
    /// connections.
    ///
    /// # Errors
    /// When the kernel refuses, or the id does not fit.
    pub fn put_backend(&self, id: u32, backend: &Backend, pod: &str) -> Result<(), MapsError> {
        let old = self.backends.get(&id)?;
        let same = old.is_some_and(|old| old.state != FREE && old.is_same_place(backend));
        self.put_name(name::BACKEND, id, pod)?;
        if same {
            return self.backends.put(&id, backend);
        }
        self.wait_for_readers_of(old)?;
        self.backend_stats.put(&id, &BackendStats::default())?;
        self.backend_lost.put(&id, &0)?;
        self.around(&self.backend_gens, id, || self.backends.put(&id, backend))
    }

    /// A number that stands for a backend is given to another one, or freed, only when no program
    /// has it from a table that was replaced.
    fn wait_for_readers_of(&self, old: Option<Backend>) -> Result<(), MapsError> {
        match old {
            Some(old) if old.state != FREE => self.wait_for_readers(),
            Some(_) | None => Ok(()),
        }
    }

    /// Many that were never used, at once.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put_new_backends(&self, all: &[(u32, Backend)]) -> Result<(), MapsError> {
        self.backends.put_all(all)
    }

    /// Frees a backend's number and moves its generation: its flows end at their next packet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_backend(&self, id: u32) -> Result<(), MapsError> {
        self.wait_for_readers_of(self.backends.get(&id)?)?;
        self.around(&self.backend_gens, id, || {
            self.backends.put(&id, &Backend::zeroed())
        })?;
        self.delete_name(name::BACKEND, id)
    }

    /// What went to a backend.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn backend_stats(&self, id: u32) -> Result<BackendStats, MapsError> {
        Ok(self.backend_stats.get(&id)?.unwrap_or_default())
    }

    /// Open connections of a backend, as the programs see it when they compare loads.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open_connections(&self, id: u32) -> Result<u64, MapsError> {
        let stats = self.backend_stats(id)?;
        let lost = self.backend_lost.get(&id)?.unwrap_or_default();
        Ok(open(stats.connections, stats.ended, lost))
    }

    /// Backends that have connections whose end was not counted: all that may need a correction
    /// and that no flow names. In one batch, as there may be a hundred thousand backends.
    pub(crate) fn loaded_backends(&self) -> Result<BTreeSet<u32>, MapsError> {
        let all = self.backend_stats.list()?;
        let loaded = all
            .into_iter()
            .filter(|(_, stats)| stats.connections != stats.ended);
        Ok(loaded.map(|(id, _)| id).collect())
    }

    /// Corrects the open connections of these backends to those that were `counted` in the flow
    /// map by backend and generation, where a backend without any is not named. Connections
    /// whose entries were evicted or replaced have no end that a packet shows, and those of
    /// another generation are of the backend that had the number before.
    ///
    /// Those that begin or end while the flows are walked over may be counted twice or not at
    /// all; the next walk corrects it.
    pub(crate) fn correct_loads(
        &self,
        backends: &BTreeSet<u32>,
        counted: &BTreeMap<(u32, u32), u64>,
    ) -> Result<(), MapsError> {
        for id in backends {
            let (Some(stats), Some(generation)) =
                (self.backend_stats.get(id)?, self.backend_gens.get(id)?)
            else {
                continue;
            };
            let open = counted.get(&(*id, generation)).copied().unwrap_or_default();
            let lost = stats
                .connections
                .wrapping_sub(stats.ended)
                .wrapping_sub(open);
            if self.backend_lost.get(id)? != Some(lost) {
                self.backend_lost.put(id, &lost)?;
            }
        }
        Ok(())
    }

    /// Which backend each client of a service port with session affinity was given last; also
    /// those whose time is over.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn affinities(&self) -> Result<Vec<(AffinityKey, Affinity)>, MapsError> {
        self.affinity.list()
    }

    /// Gives a client a backend as the programs would; for tests.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put_affinity(&self, key: &AffinityKey, given: &Affinity) -> Result<(), MapsError> {
        self.affinity.put(key, given)
    }
}
