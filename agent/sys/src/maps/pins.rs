//! Compares what is pinned with the ABI's table.
//!
//! A map that is reused unchecked works until the first key of another size; so nothing is
//! adopted that differs in type, key, value, entries or flags. Called before loading and by
//! `Table::open`.

use super::MapsError;
use crate::bpf::syscall;
use ebpf_common::maps::{MAPS, Shape, name};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// Size of the flow map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowEntries {
    /// A pinned map of another size is an error.
    Exactly(u32),
    /// A pinned map keeps its size.
    IfNew(u32),
}

/// Compares one map. The flow maps have `flow_entries`; without a number any size is right. Returns
/// its size.
pub(super) fn check(
    shape: &Shape,
    path: &Path,
    map: BorrowedFd<'_>,
    flow_entries: Option<u32>,
) -> Result<u32, MapsError> {
    let found = syscall::map_numbers(map).map_err(|source| MapsError::Access {
        what: "ask",
        map: shape.name,
        source,
    })?;
    let entries = if matches!(shape.name, name::FLOWS | name::FLOWS6) {
        flow_entries.unwrap_or(found.entries)
    } else {
        shape.entries
    };
    let rows = [
        ("type", found.kind, shape.kind as u32),
        ("key size", found.key, shape.key),
        ("value size", found.value, shape.value),
        ("max entries", found.entries, entries),
        ("flags", found.flags, shape.flags),
    ];
    match rows.into_iter().find(|(_, found, wanted)| found != wanted) {
        None => Ok(found.entries),
        Some((what, found, wanted)) => Err(MapsError::Differs {
            map: shape.name,
            path: path.to_owned(),
            what,
            found,
            wanted,
        }),
    }
}

/// Whether a map is pinned: the flows of IPv6 are while it is in use, so that it may be switched on
/// later, when their map gets its size.
pub(crate) fn is_pinned(name: &str, ipv6: bool) -> bool {
    ipv6 || name != name::FLOWS6
}

/// Removes the pin of the flows of IPv6, which is not in use any more.
pub(crate) fn unpin_flows6(folder: &Path) -> Result<(), MapsError> {
    match std::fs::remove_file(folder.join(name::FLOWS6)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(MapsError::Access {
            what: "unpin",
            map: name::FLOWS6,
            source,
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Compares all pins of the folder; one that is not there yet is no difference. Returns the size
/// that the flow map has, or will have; with IPv6 in use that of IPv6 has the same.
pub(crate) fn check_pins(
    folder: &Path,
    flow_entries: FlowEntries,
    ipv6: bool,
) -> Result<u32, MapsError> {
    let (wanted, mut size) = match flow_entries {
        FlowEntries::Exactly(size) => (Some(size), size),
        FlowEntries::IfNew(size) => (None, size),
    };
    for shape in MAPS.iter().filter(|shape| is_pinned(shape.name, ipv6)) {
        let path = folder.join(shape.name);
        match syscall::get_pinned(&path) {
            Ok(map) => {
                let wanted = match shape.name {
                    name::FLOWS6 => Some(size),
                    _ => wanted,
                };
                let found = check(shape, &path, syscall::fd(&map), wanted)?;
                if shape.name == name::FLOWS {
                    size = found;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(MapsError::NotPinned {
                    map: shape.name,
                    path,
                    source,
                });
            }
        }
    }
    Ok(size)
}
