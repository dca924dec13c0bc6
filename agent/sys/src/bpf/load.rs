//! Loads the object: constants in, maps adopted or made, programs verified.
//!
//! Maps that are pinned are compared with the ABI's table before anything is made. Called by
//! `Datapath::open`.

use super::syscall::{self, verified};
use super::{BpfError, Config, NodeFacts, socket};
use crate::maps::{Raw, check_pins, check_version, is_pinned};
use aya::programs::{CgroupSockAddr, Program as AyaProgram, ProgramError, SchedClassifier};
use aya::{EbpfLoader, VerifierLogLevel};
use aya_log::EbpfLogger;
use ebpf_common::config::{FLOW_EVENTS, HAIRPIN, HAIRPIN6, IPV6, NODE_CONFIG, NodeConfig};
use ebpf_common::maps::{EPOCH_SECTION, MAPS, name};
use ebpf_common::net::{Addr, Be32};
use ebpf_common::{ABI_VERSION, abi::MapType as _, program};
use nix::time::{ClockId, clock_getres};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

/// A program of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Program {
    /// Leaving a pod.
    FromPod,
    /// From the host's stack to a pod.
    ToPod,
    /// From the network.
    FromNetdev,
    /// Of the node itself.
    ToNetdev,
    /// Removes expired flows.
    FlowSweep,
    /// Removes expired flows of IPv6; loaded where IPv6 is in use.
    FlowSweep6,
    /// Does nothing.
    Empty,
}

impl Program {
    /// All.
    pub const ALL: [Self; 7] = [
        Self::FromPod,
        Self::ToPod,
        Self::FromNetdev,
        Self::ToNetdev,
        Self::FlowSweep,
        Self::FlowSweep6,
        Self::Empty,
    ];

    /// Its name in the object.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => program::FROM_POD,
            Self::ToPod => program::TO_POD,
            Self::FromNetdev => program::FROM_NETDEV,
            Self::ToNetdev => program::TO_NETDEV,
            Self::FlowSweep => program::FLOW_SWEEP,
            Self::FlowSweep6 => program::FLOW_SWEEP6,
            Self::Empty => program::EMPTY,
        }
    }
}

/// What the verifier and the translation made of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Program.
    pub name: &'static str,
    /// Instructions that the verifier walked, all paths together.
    pub instructions: u32,
    /// Bytes of the program after translation, before the JIT.
    pub translated: u32,
}

/// Hands on what the programs have logged.
pub(super) type Drain = Box<dyn FnMut() + Send>;

pub(super) struct Loaded {
    pub(super) drain: Drain,
    pub(super) programs: BTreeMap<&'static str, OwnedFd>,
    pub(super) verified: Vec<Verified>,
    pub(super) jiffies_per_second: u32,
}

/// Ticks of jiffies in a second: the resolution of the coarse clock is one tick.
fn jiffies_per_second() -> io::Result<u32> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?;
    let nanoseconds = u32::try_from(tick.tv_nsec()).map_err(io::Error::other)?;
    1_000_000_000u32
        .checked_div(nanoseconds)
        .ok_or_else(|| io::Error::other("the coarse clock has no resolution"))
}

fn node_config(
    node: &NodeFacts,
    jiffies_per_second: u32,
    flow_entries: u32,
    netns_cookie: u64,
) -> NodeConfig {
    let (service_ifindex, [a, b, c, d, e, f]) = node.service_device.unwrap_or_default();
    let address = Be32::from(node.address);
    NodeConfig {
        abi_version: ABI_VERSION,
        flags: if node.flow_events { FLOW_EVENTS } else { 0 }
            | if node.address6.is_some() { IPV6 } else { 0 },
        node: Addr::v4(address),
        node6: node.address6.map_or(Addr::default(), |address| {
            Addr::from_octets(address.octets())
        }),
        hairpin6: Addr::from_octets(HAIRPIN6),
        hairpin: Be32::from_octets(HAIRPIN),
        service_ifindex,
        service_mac: [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes),
        pad: 0,
        jiffies_per_second,
        seed: address.get(),
        flow_entries,
        pad2: 0,
        netns_cookie,
    }
}

pub(super) fn load(config: &Config) -> Result<Loaded, BpfError> {
    let read_failed = |source| BpfError::Object {
        path: config.object.clone(),
        source,
    };
    let bytes = std::fs::read(&config.object).map_err(read_failed)?;
    check_abi(config, &bytes)?;
    check_version(&config.folder)?;
    let ipv6 = config.node.address6.is_some();
    let flow_entries = check_pins(&config.folder, config.flow_entries, ipv6)?;

    let jiffies_per_second = jiffies_per_second().map_err(read_failed)?;
    let netns_cookie = socket::netns_cookie().map_err(BpfError::NetworkNamespace)?;
    let facts = Raw(node_config(
        &config.node,
        jiffies_per_second,
        flow_entries,
        netns_cookie,
    ));
    let mut loader = EbpfLoader::new();
    loader
        .verifier_log_level(VerifierLogLevel::STATS)
        .override_global(NODE_CONFIG, &facts, true)
        .map_max_entries(name::FLOWS, flow_entries)
        .map_max_entries(name::FLOWS6, if ipv6 { flow_entries } else { 1 });
    for shape in MAPS.iter().filter(|shape| is_pinned(shape.name, ipv6)) {
        // Its name in the object is that of its section.
        let symbol = match shape.name {
            name::EPOCH => EPOCH_SECTION,
            other => other,
        };
        loader.map_pin_path(symbol, config.folder.join(shape.name));
    }
    let mut object = loader.load(&bytes).map_err(|source| BpfError::Load {
        path: config.object.clone(),
        source: Box::new(source),
    })?;

    let drain: Drain = match EbpfLogger::init(&mut object) {
        Ok(mut logger) => Box::new(move || logger.flush()),
        Err(error) => {
            tracing::warn!(%error, "what the BPF programs log will not be seen");
            Box::new(|| ())
        }
    };
    let mut loaded = Loaded {
        drain,
        programs: BTreeMap::new(),
        verified: Vec::new(),
        jiffies_per_second,
    };
    let sockets = socket::PROGRAMS.map(|(name, _)| name);
    let programs = Program::ALL
        .into_iter()
        .filter(|program| ipv6 || *program != Program::FlowSweep6);
    for name in programs.map(Program::name).chain(sockets) {
        let failed = |source: ProgramError| BpfError::Program {
            name,
            source: Box::new(source),
        };
        let found: &mut AyaProgram = object
            .program_mut(name)
            .ok_or(BpfError::NoProgram { name })?;
        if let Ok(classifier) = <&mut SchedClassifier>::try_from(&mut *found) {
            verified(|| classifier.load(), is_interrupted).map_err(failed)?;
        } else {
            let on_sockets: &mut CgroupSockAddr = found.try_into().map_err(failed)?;
            verified(|| on_sockets.load(), is_interrupted).map_err(failed)?;
        }
        let found: &AyaProgram = object.program(name).ok_or(BpfError::NoProgram { name })?;
        let info = found.info().map_err(failed)?;
        loaded.verified.push(Verified {
            name,
            instructions: info.verified_instruction_count().unwrap_or(0),
            translated: info.size_translated().unwrap_or(0),
        });
        let fd = found.fd().map_err(failed)?;
        let fd = fd.as_fd().try_clone_to_owned().map_err(read_failed)?;
        loaded.programs.insert(name, fd);
    }
    Ok(loaded)
}

/// aya has tried twice by then.
fn is_interrupted(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. } if syscall::is_interrupted(io_error))
}

/// The object carries its own version in the constant that we are about to replace.
fn check_abi(config: &Config, bytes: &[u8]) -> Result<(), BpfError> {
    let object = aya_obj::Object::parse(bytes).map_err(|source| BpfError::Load {
        path: config.object.clone(),
        source: Box::new(source.into()),
    })?;
    let found = object
        .maps
        .get(".rodata.node")
        .and_then(|map| NodeConfig::from_bytes(map.data()))
        .map_or(0, |config| config.abi_version);
    if found == ABI_VERSION {
        Ok(())
    } else {
        Err(BpfError::AbiVersion {
            path: config.object.clone(),
            found,
            wanted: ABI_VERSION,
        })
    }
}
