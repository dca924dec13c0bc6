//! The pinned maps, as typed handles: list, put, delete.
//!
//! Opened by folder, so that `foil bpf` and tests read them with the agent dead. Every map is
//! compared with the ABI's table before it is used. Each method is one change in the kernel,
//! complete in itself; what changes, and in which order, is `agent-plan`'s.
//! Called by `agent-daemon` (`apply.rs`, `observe.rs`), `control-cli` and `tests-datapath`.

mod event;
mod flow;
mod pins;
mod readers;
mod service;
mod table;

pub use event::EventReader;
pub use flow::{FlowShare, NearlyUsed};
pub use pins::FlowEntries;
pub(crate) use pins::{check_pins, is_pinned, unpin_flows6};
pub use service::ChoiceTable;
pub(crate) use table::Raw;

use ebpf_common::ABI_VERSION;
use ebpf_common::conntrack::{Flow4, Flow6, FlowKey4, FlowKey6, FlowUsage};
use ebpf_common::counter::{COUNTERS, Count, EVENT_SHED, Hook, index};
use ebpf_common::drop::{Drop as Reason, REASONS};
use ebpf_common::endpoint::Endpoint;
use ebpf_common::maps::{FRONTENDS, ROUTES, name as map};
use ebpf_common::name::{self, Name, NameKey};
use ebpf_common::net::Addr;
use ebpf_common::network::{Network, NetworkKey};
use ebpf_common::service::{
    Affinity, AffinityKey, Backend, BackendStats, Frontend, FrontendKey, SourceRangeKey,
};
use std::io;
use std::path::{Path, PathBuf};
use table::Table;

/// What went wrong, and with which map.
#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    /// The map is not pinned: no agent ever ran with this folder.
    #[error("map {map} is not pinned at {path}: {source}")]
    NotPinned {
        /// Map.
        map: &'static str,
        /// Path.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// What is pinned is not what this build works with.
    #[error("map {map} pinned at {path} has {what} {found}, this build needs {wanted}")]
    Differs {
        /// Map.
        map: &'static str,
        /// Path.
        path: PathBuf,
        /// "type", "key size", "value size", "max entries", "flags".
        what: &'static str,
        /// As the kernel says.
        found: u32,
        /// As the ABI says.
        wanted: u32,
    },
    /// The maps were made by a build to which their fields mean something else.
    #[error(
        "the maps pinned at {path} have ABI version {found}, this build needs {wanted}: drain the node with the version that made them, then remove that folder or reboot"
    )]
    AbiVersion {
        /// Folder.
        path: PathBuf,
        /// As they say.
        found: String,
        /// Ours.
        wanted: u32,
    },
    /// The kernel refused to read or to change it.
    #[error("{what} map {map}: {source}")]
    Access {
        /// "list", "put", ...
        what: &'static str,
        /// Map.
        map: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The number is outside of what the map holds.
    #[error("{map} has no place for {id}: at most {most}")]
    Full {
        /// Map.
        map: &'static str,
        /// Number asked for.
        id: u64,
        /// Largest.
        most: u64,
    },
}

/// All maps of a node.
#[derive(Debug)]
pub struct Maps {
    folder: PathBuf,
    endpoints: Table<u32, Endpoint>,
    local_addrs: Table<Addr, Endpoint>,
    endpoint_gens: Table<u32, u32>,
    networks: Table<NetworkKey, Network>,
    node_gen: Table<u32, u32>,
    epoch: Table<u32, u32>,
    frontends: Table<FrontendKey, Frontend>,
    source_ranges: Table<SourceRangeKey, u32>,
    choices: Table<u32, u32>,
    readers: readers::Readers,
    backends: Table<u32, Backend>,
    backend_gens: Table<u32, u32>,
    backend_stats: Table<u32, BackendStats>,
    backend_lost: Table<u32, u64>,
    affinity: Table<AffinityKey, Affinity>,
    flows: Table<FlowKey4, Flow4>,
    /// While IPv6 is in use.
    flows6: Option<Table<FlowKey6, Flow6>>,
    flow_usage: Table<u32, FlowUsage>,
    counters: Table<u32, Count>,
    names: Table<NameKey, Name>,
}

fn abi_version() -> Name {
    Name::new(&ABI_VERSION.to_string())
}

/// Refuses maps that another version has made; a folder without maps is right. To be called
/// before any of them is made or opened, as versions differ in which maps there are.
pub(crate) fn check_version(folder: &Path) -> Result<(), MapsError> {
    let names: Table<NameKey, Name> = match Table::open(folder, map::NAMES) {
        Ok(names) => names,
        Err(MapsError::NotPinned { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let key = NameKey {
        kind: name::ABI,
        id: 0,
    };
    match names.get(&key)? {
        Some(version) if version != abi_version() => Err(MapsError::AbiVersion {
            path: folder.to_owned(),
            found: version.as_str().to_owned(),
            wanted: ABI_VERSION,
        }),
        _ => Ok(()),
    }
}

/// The addresses of a pod.
fn addresses(endpoint: &Endpoint) -> impl Iterator<Item = Addr> {
    let all = [endpoint.addr, endpoint.addr6];
    all.into_iter().filter(|addr| *addr != Addr::default())
}

/// What a counter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counted {
    /// Packets that took the slow path and went on.
    Decided,
    /// Packets that were dropped or refused.
    Dropped(Reason),
    /// Events that found the ring full.
    EventShed,
    /// A reason that this build does not know.
    Unknown(u8),
}

impl Counted {
    fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Decided,
            EVENT_SHED => Self::EventShed,
            _ => {
                let number = number as u8;
                Reason::from_u8(number).map_or(Self::Unknown(number), Self::Dropped)
            }
        }
    }
}

/// One row of the counters, all CPUs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// What.
    pub what: Counted,
    /// Where.
    pub hook: Hook,
    /// How many.
    pub count: Count,
}

impl Maps {
    /// Opens the maps pinned in `folder`; changes nothing.
    ///
    /// # Errors
    /// Names the map that is missing or that differs, and how.
    pub fn open(folder: &Path) -> Result<Self, MapsError> {
        check_version(folder)?;
        Self::open_unchecked(folder)
    }

    /// Opens them and, if they are new, writes into them which version made them. Every flow
    /// finds its route, and datagrams their frontend, anew: an agent may have
    /// died after a change and before the generation.
    pub(crate) fn adopt(folder: &Path) -> Result<Self, MapsError> {
        let this = Self::open(folder)?;
        this.put_name(name::ABI, 0, abi_version().as_str())?;
        this.bump_node_generation()?;
        this.bump(&this.node_gen, FRONTENDS)?;
        Ok(this)
    }

    fn open_unchecked(folder: &Path) -> Result<Self, MapsError> {
        Ok(Self {
            folder: folder.to_owned(),
            endpoints: Table::open(folder, map::ENDPOINTS)?,
            local_addrs: Table::open(folder, map::LOCAL_ADDRS)?,
            endpoint_gens: Table::open(folder, map::ENDPOINT_GENS)?,
            networks: Table::open(folder, map::NETWORKS)?,
            node_gen: Table::open(folder, map::NODE_GEN)?,
            epoch: Table::open(folder, map::EPOCH)?,
            frontends: Table::open(folder, map::FRONTENDS)?,
            source_ranges: Table::open(folder, map::SOURCE_RANGES)?,
            choices: Table::open(folder, map::CHOICES)?,
            readers: readers::Readers::default(),
            backends: Table::open(folder, map::BACKENDS)?,
            backend_gens: Table::open(folder, map::BACKEND_GENS)?,
            backend_stats: Table::open(folder, map::BACKEND_STATS)?,
            backend_lost: Table::open(folder, map::BACKEND_LOST)?,
            affinity: Table::open(folder, map::AFFINITY)?,
            flows: Table::open(folder, map::FLOWS)?,
            flows6: if folder.join(map::FLOWS6).exists() {
                Some(Table::open(folder, map::FLOWS6)?)
            } else {
                None
            },
            flow_usage: Table::open(folder, map::FLOW_USAGE)?,
            counters: Table::open(folder, map::COUNTERS)?,
            names: Table::open(folder, map::NAMES)?,
        })
    }

    /// The pods of this node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn endpoints(&self) -> Result<Vec<Endpoint>, MapsError> {
        let all = self.endpoints.list()?;
        Ok(all.into_iter().map(|(_, endpoint)| endpoint).collect())
    }

    /// Makes a pod's interface and address known; `pod` is "namespace/name".
    ///
    /// Flows that were decided for its id before are decided anew.
    ///
    /// # Errors
    /// When the kernel refuses, or the id does not fit.
    pub fn put_endpoint(&self, endpoint: &Endpoint, pod: &str) -> Result<(), MapsError> {
        let old = self.endpoints.get(&endpoint.ifindex)?;
        if old.as_ref() == Some(endpoint) {
            return self.put_name(name::ENDPOINT, endpoint.id.into(), pod);
        }
        let mut before = Vec::new();
        for addr in addresses(endpoint) {
            before.extend(self.local_addrs.get(&addr)?);
        }
        if old.is_none_or(|old| old.id != endpoint.id) {
            self.reset_flow_usage(endpoint.id)?;
        }
        self.put_name(name::ENDPOINT, endpoint.id.into(), pod)?;
        self.around(&self.endpoint_gens, endpoint.id.into(), || {
            for addr in addresses(endpoint) {
                self.local_addrs.put(&addr, endpoint)?;
            }
            self.endpoints.put(&endpoint.ifindex, endpoint)
        })?;
        // An address had another interface: a link that was made anew, or a pod whose
        // address is taken from it. The entry of that interface would stay for ever.
        for before in before {
            if before.ifindex == endpoint.ifindex {
                continue;
            }
            if before.id != endpoint.id {
                self.delete_name(name::ENDPOINT, before.id.into())?;
            }
            self.around(&self.endpoint_gens, before.id.into(), || {
                self.endpoints.delete(&before.ifindex)
            })?;
        }
        Ok(())
    }

    /// Forgets the pod of an interface; nothing happens when there is none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_endpoint(&self, ifindex: u32) -> Result<(), MapsError> {
        let Some(endpoint) = self.endpoints.get(&ifindex)? else {
            return Ok(());
        };
        self.delete_name(name::ENDPOINT, endpoint.id.into())?;
        // Its successor may have the addresses already, and the id.
        let mut own = Vec::new();
        for addr in addresses(&endpoint) {
            let there = self.local_addrs.get(&addr)?;
            own.extend(there.filter(|other| other.ifindex == ifindex).map(|_| addr));
        }
        self.around(&self.endpoint_gens, endpoint.id.into(), || {
            for addr in &own {
                self.local_addrs.delete(addr)?;
            }
            self.endpoints.delete(&ifindex)
        })?;
        if !own.is_empty() {
            self.reset_flow_usage(endpoint.id)?;
        }
        Ok(())
    }

    /// The cluster's address blocks.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn networks(&self) -> Result<Vec<(NetworkKey, Network)>, MapsError> {
        self.networks.list()
    }

    /// Makes an address block known. Flows are decided anew.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put_network(&self, key: &NetworkKey, kind: u32) -> Result<(), MapsError> {
        self.networks.put(key, &Network { kind })?;
        self.bump_node_generation()
    }

    /// Forgets an address block. Flows are decided anew.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_network(&self, key: &NetworkKey) -> Result<(), MapsError> {
        self.networks.delete(key)?;
        self.bump_node_generation()
    }

    /// Makes every flow find its route anew at its next packet; backends and translations stay.
    /// To be called after the node's routes or neighbours changed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn bump_node_generation(&self) -> Result<(), MapsError> {
        self.bump(&self.node_gen, ROUTES)
    }

    /// Runs a change of frontends, or of who may use them: datagrams look theirs up again.
    fn around_frontends(
        &self,
        change: impl FnOnce() -> Result<(), MapsError>,
    ) -> Result<(), MapsError> {
        self.around(&self.node_gen, FRONTENDS, change)
    }

    /// Moves a generation on, and then the epoch.
    fn bump(&self, generations: &Table<u32, u32>, id: u32) -> Result<(), MapsError> {
        generations.bump(id)?;
        self.epoch.bump(0)
    }

    /// Runs a change of what `id` stands for between two moves of its generation. The one after
    /// it makes all stale that was decided before; the one in front of it is for an agent that
    /// dies before the second.
    fn around(
        &self,
        generations: &Table<u32, u32>,
        id: u32,
        change: impl FnOnce() -> Result<(), MapsError>,
    ) -> Result<(), MapsError> {
        self.bump(generations, id)?;
        change()?;
        self.bump(generations, id)
    }

    /// All counters that are not zero.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn counters(&self) -> Result<Vec<Counter>, MapsError> {
        let mut all = Vec::new();
        for number in 0..REASONS as u32 {
            for hook in Hook::ALL {
                let at = index(number, hook);
                debug_assert!((at as usize) < COUNTERS);
                let mut count = Count::default();
                for one in self.counters.get_per_cpu(&at)? {
                    count.packets += one.packets;
                    count.bytes += one.bytes;
                }
                if count.packets > 0 {
                    all.push(Counter {
                        what: Counted::from_number(number),
                        hook,
                        count,
                    });
                }
            }
        }
        Ok(all)
    }

    /// Reader of the events; one at a time, what one takes another does not see.
    ///
    /// # Errors
    /// When the ring cannot be mapped.
    pub fn events(&self) -> Result<EventReader, MapsError> {
        EventReader::open(&self.folder)
    }

    /// All names, by kind and number.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn names(&self) -> Result<Vec<(NameKey, Name)>, MapsError> {
        let mut all = self.names.list()?;
        all.retain(|(key, _)| key.kind != name::ABI);
        Ok(all)
    }

    /// The name of one number.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn name(&self, kind: u32, id: u32) -> Result<Option<Name>, MapsError> {
        self.names.get(&NameKey { kind, id })
    }

    fn put_name(&self, kind: u32, id: u32, text: &str) -> Result<(), MapsError> {
        self.names.put(&NameKey { kind, id }, &Name::new(text))
    }

    fn delete_name(&self, kind: u32, id: u32) -> Result<(), MapsError> {
        self.names.delete(&NameKey { kind, id })
    }
}
