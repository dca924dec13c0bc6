//! Control groups of pods and containers, version 1 and 2: their paths, the values of
//! their limits, and the operations on them. The one home for all three.
//!
//! The agent uses it for pods' groups (through `agent/sys/src/cgroup.rs`), the shim for
//! containers' groups. Nothing outside the parent group is written, except
//! `cgroup.subtree_control` of the groups above it on version 2.
//!
//! ```text
//! HIERARCHY/PARENT/pod-UID/CONTAINER_ATTEMPT
//! ```
//!
//! Reading order: `path`, `hierarchy`, `setting`, `group`.

#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

mod group;
mod hierarchy;
mod path;
mod setting;

pub use group::Group;
pub use hierarchy::{Hierarchies, MOUNTED, Setup, Version};
pub use path::{GroupPath, Parent, PathError};

/// A group could not be made, limited, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// A path or a name that is not one of our groups.
    #[error(transparent)]
    Path(#[from] PathError),
    /// No cgroup file system is mounted at the usual place.
    #[error("no cgroup hierarchy is mounted at or below {MOUNTED}")]
    NoHierarchy,
    /// A limit was asked for, and the kernel or the mounts lack its controller.
    #[error("no hierarchy has the controller {controller}, which {file} needs")]
    NoController {
        /// "memory", "pids", ...
        controller: &'static str,
        /// The file that would hold the limit.
        file: &'static str,
    },
    /// A group could not be made.
    #[error("create group {path}: {source}")]
    Create {
        /// Its folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A value was refused.
    #[error("write {value:?} to {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// A file or folder could not be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A group could not be removed.
    #[error("remove {path}: {source}")]
    Remove {
        /// Its folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
