//! The data plane of a node: one object, loaded once, attached many times, pinned.
//!
//! `Datapath::open` loads the programs, adopts or makes the pinned maps, and puts the new
//! programs behind the links that are pinned already, each swap between two packets. What is
//! pinned outlives the agent: an agent that dies takes nothing with it.
//! Decides nothing: which interfaces and which map entries is `agent-plan`'s. Called by
//! `agent-daemon` (`apply.rs`, `observe.rs`) and by `tests-datapath`.
//!
//! Everything here is about the network namespace of the calling thread.

mod bpffs;
mod link;
mod load;
mod probe;
mod recount;
mod run;
mod socket;
mod sweep;
pub(crate) mod syscall;

pub use crate::maps::FlowEntries;
pub use link::{Attachment, Role};
pub use load::{Program, Verified};
pub use probe::{Lack, probe};
pub use run::Ran;
pub use socket::SocketAttachment;
pub use sweep::Swept;

use crate::maps::{Maps, MapsError, unpin_flows6};
use ebpf_common::counter::Hook;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use sweep::Sweep;

/// What the data plane is made of, and the facts that become constants in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `hydrofoil.bpf.o`.
    pub object: PathBuf,
    /// Folder of the pins, ours alone; a bpffs is mounted when there is none.
    pub folder: PathBuf,
    /// Entries of the flow map of each family that is in use, two for each connection.
    pub flow_entries: FlowEntries,
    /// The node.
    pub node: NodeFacts,
}

/// Facts of the node that the programs hold as constants. When one changes: `Datapath::open`
/// again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node's own address.
    pub address: Ipv4Addr,
    /// Its IPv6 address, if it and its pods have such.
    pub address6: Option<Ipv6Addr>,
    /// `foil0`: its interface index and Ethernet address. Without it the node's own processes
    /// do not reach services.
    pub service_device: Option<(u32, [u8; 6])>,
    /// An event for each new flow, not only for drops.
    pub flow_events: bool,
}

/// What went wrong, and with what.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The kernel lacks something that the data plane cannot do without.
    #[error("this kernel lacks {}", .0.iter().map(|lack| lack.what).collect::<Vec<_>>().join(", "))]
    Kernel(Vec<Lack>),
    /// The object cannot be read.
    #[error("read BPF object {path}: {source}")]
    Object {
        /// Path.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The object is of another build than this agent.
    #[error("BPF object {path} has ABI version {found}, this agent needs {wanted}")]
    AbiVersion {
        /// Path.
        path: PathBuf,
        /// In the object.
        found: u32,
        /// Ours.
        wanted: u32,
    },
    /// The kernel does not tell the cookie of the network namespace.
    #[error("ask for the cookie of the network namespace: {0}")]
    NetworkNamespace(io::Error),
    /// The kernel refused the object or a map of it.
    #[error("load BPF object {path}: {source}")]
    Load {
        /// Path.
        path: PathBuf,
        /// Cause.
        source: Box<aya::EbpfError>,
    },
    /// The verifier refused a program, or the object lacks it.
    #[error("load BPF program {name}: {source}")]
    Program {
        /// Program.
        name: &'static str,
        /// Cause.
        source: Box<aya::programs::ProgramError>,
    },
    /// The object has no such program.
    #[error("the BPF object has no program {name}")]
    NoProgram {
        /// Program.
        name: &'static str,
    },
    /// The folder of the pins is not usable.
    #[error("{what} {path}: {source}")]
    Folder {
        /// What was tried.
        what: &'static str,
        /// Path.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A program could not be attached, swapped or detached.
    #[error("{what} {hook} on interface {ifindex}: {source}")]
    Link {
        /// What was tried.
        what: &'static str,
        /// Program.
        hook: &'static str,
        /// Interface.
        ifindex: u32,
        /// Cause.
        source: io::Error,
    },
    /// A program on sockets could not be attached, swapped or detached.
    #[error("{what} {program}, for connections of pods to services: {source}")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// Program.
        program: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// A program could not be run.
    #[error("run {name}: {source}")]
    Run {
        /// Program.
        name: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The maps are not what they must be.
    #[error(transparent)]
    Maps(#[from] MapsError),
}

/// The loaded programs and the open maps. Dropping it detaches nothing.
pub struct Datapath {
    drain: Mutex<load::Drain>,
    folder: PathBuf,
    programs: BTreeMap<&'static str, OwnedFd>,
    verified: Vec<Verified>,
    maps: Maps,
    sweep: Mutex<Sweep>,
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Datapath {
    /// Loads the object, adopts or creates the pinned maps, and swaps the programs of every
    /// pinned link. Pins whose interface is gone are removed.
    ///
    /// # Errors
    /// Names the missing kernel feature, the map that does not fit and how, or the program that
    /// the verifier refused.
    pub fn open(config: &Config) -> Result<Self, BpfError> {
        let lacks = probe();
        if !lacks.is_empty() {
            return Err(BpfError::Kernel(lacks));
        }
        bpffs::ensure(&config.folder)?;
        let loaded = load::load(config)?;
        if config.node.address6.is_none() {
            unpin_flows6(&config.folder)?;
        }
        let this = Self {
            maps: Maps::adopt(&config.folder)?,
            folder: config.folder.clone(),
            drain: Mutex::new(loaded.drain),
            programs: loaded.programs,
            verified: loaded.verified,
            sweep: Mutex::new(Sweep::new(loaded.jiffies_per_second)),
        };
        link::swap_all(&this.folder, &this.programs)?;
        socket::swap_all(&this.folder, &this.programs)?;
        Ok(this)
    }

    /// Attaches what the role asks for to an interface of this namespace; nothing happens to
    /// what is attached already. Blocking: the kernel waits for its readers, some ten
    /// milliseconds for each program.
    ///
    /// # Errors
    /// Names the program and the interface.
    pub fn attach(&self, ifindex: u32, role: Role) -> Result<(), BpfError> {
        for (hook, side) in role.programs() {
            link::attach(&self.folder, &self.programs, ifindex, *hook, *side)?;
        }
        Ok(())
    }

    /// Detaches all that is ours from an interface, whether it still exists or not.
    /// Blocking, as `attach` is.
    ///
    /// # Errors
    /// Names the program and the interface.
    pub fn detach(&self, ifindex: u32) -> Result<(), BpfError> {
        for hook in Hook::ALL {
            link::detach(&self.folder, ifindex, hook)?;
        }
        Ok(())
    }

    /// True if all that the role asks for is attached to the interface, by the kernel's word.
    ///
    /// # Errors
    /// When a pinned link cannot be opened.
    pub fn is_attached(&self, ifindex: u32, role: Role) -> Result<bool, BpfError> {
        for (hook, _) in role.programs() {
            if !link::is_attached(&self.folder, ifindex, *hook)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What is attached, from the pinned links themselves.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn attached(&self) -> Result<Vec<Attachment>, BpfError> {
        link::attached(&self.folder)
    }

    /// Has TCP connections to services translated at `connect`, of all processes in the control
    /// group (version 2) with this folder that are in another network namespace than this one.
    /// Nothing happens to what is attached to it already.
    ///
    /// # Errors
    /// Names the program.
    pub fn attach_group(&self, group: &Path) -> Result<(), BpfError> {
        socket::attach(&self.folder, &self.programs, group)
    }

    /// Ends that: new connections are translated packet by packet. Those that are there stay.
    ///
    /// # Errors
    /// Names the program.
    pub fn detach_group(&self) -> Result<(), BpfError> {
        socket::detach(&self.folder)
    }

    /// What is attached to a group, from the pinned links themselves.
    ///
    /// # Errors
    /// When a pinned link cannot be opened.
    pub fn attached_to_group(&self) -> Result<Vec<SocketAttachment>, BpfError> {
        socket::attached(&self.folder)
    }

    /// The maps.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Goes on with a pass over the flows, a few thousand of them, and removes those that are
    /// expired. A pass is to be made every few seconds, and to be continued soon as long as it
    /// is not complete. Its end corrects the open connections that backends are chosen by. Also
    /// hands on what the programs have logged.
    ///
    /// # Errors
    /// When the kernel does not run the program, or does not list the flows; the next call
    /// begins a new pass.
    pub fn sweep(&self) -> Result<Swept, BpfError> {
        {
            let mut drain = self.drain.lock().unwrap_or_else(PoisonError::into_inner);
            drain();
        }
        let mut sweep = self.sweep.lock().unwrap_or_else(PoisonError::into_inner);
        let swept = sweep.proceed(&self.maps, |program, keys| {
            self.test_run(program, keys, 0, 0, 1)
        })?;
        if swept.complete {
            sweep.correct_loads(&self.maps)?;
        }
        Ok(swept)
    }

    /// Instructions that the verifier looked at, program by program.
    pub fn verified(&self) -> &[Verified] {
        &self.verified
    }

    /// Runs a program on a packet (from the Ethernet header) as if it had come in on `ifindex`
    /// with `mark`; not put back between repeats.
    ///
    /// # Errors
    /// When the kernel does not run the program.
    pub fn test_run(
        &self,
        program: Program,
        packet: &[u8],
        ifindex: u32,
        mark: u32,
        repeat: u32,
    ) -> Result<Ran, BpfError> {
        let name = program.name();
        let fd = self
            .programs
            .get(name)
            .ok_or(BpfError::NoProgram { name })?;
        run::test_run(syscall::fd(fd), packet, ifindex, mark, repeat)
            .map_err(|source| BpfError::Run { name, source })
    }
}

/// Makes the folder of the pins, on a bpffs, as [`Datapath::open`] does first of all.
///
/// # Errors
/// [`BpfError::Folder`]
pub fn make_folder(folder: &Path) -> Result<(), BpfError> {
    bpffs::ensure(folder)
}

/// Removes every pin of ours under `folder`: links first, so that nothing is attached any more,
/// then maps. A bpffs that we mounted on the folder itself is unmounted, and the folder removed
/// unless somebody else has something in it, or a mount of their own on it.
///
/// # Errors
/// When something of it stays.
pub fn remove(folder: &Path) -> Result<(), BpfError> {
    bpffs::remove(folder)
}
