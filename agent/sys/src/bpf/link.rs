//! tcx links: attached per interface and hook, pinned as `links/IFINDEX_HOOK`.
//!
//! The pin is the record: what is attached is read from the pinned links, and whether they
//! still hold an interface is asked of the kernel. Called by `Datapath`.

use super::{BpfError, syscall};
use ebpf_common::counter::Hook;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// What an interface is to the data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Host side of a pod's veth.
    Pod,
    /// A network device that leads to other nodes.
    Uplink,
    /// `foil0`, over which the node's own processes reach services.
    Service,
}

/// One side of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Ingress,
    Egress,
}

impl Role {
    /// The programs of the role.
    pub(super) fn programs(self) -> &'static [(Hook, Side)] {
        match self {
            Self::Pod => &[(Hook::FromPod, Side::Ingress), (Hook::ToPod, Side::Egress)],
            Self::Uplink => &[
                (Hook::FromNetdev, Side::Ingress),
                (Hook::ToNetdev, Side::Egress),
            ],
            Self::Service => &[(Hook::ToNetdev, Side::Egress)],
        }
    }
}

/// One attached program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// Interface, in the namespace of the agent.
    pub ifindex: u32,
    /// Program.
    pub hook: Hook,
    /// The kernel's number of the loaded program.
    pub program_id: u32,
}

fn folder_of(folder: &Path) -> PathBuf {
    folder.join("links")
}

fn path_of(folder: &Path, ifindex: u32, hook: Hook) -> PathBuf {
    folder_of(folder).join(format!("{ifindex}_{}", hook.text()))
}

fn parse(name: &str) -> Option<(u32, Hook)> {
    let (ifindex, text) = name.split_once('_')?;
    let hook = Hook::ALL.into_iter().find(|hook| hook.text() == text)?;
    Some((ifindex.parse().ok()?, hook))
}

fn error(what: &'static str, ifindex: u32, hook: Hook) -> impl FnOnce(io::Error) -> BpfError {
    move |source| BpfError::Link {
        what,
        hook: hook.text(),
        ifindex,
        source,
    }
}

/// The pinned link, if it is there and still holds its interface.
fn live(path: &Path, ifindex: u32) -> io::Result<Option<(OwnedFd, u32)>> {
    let link = match syscall::get_pinned(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let place = syscall::tcx_link(syscall::fd(&link))?;
    Ok(place
        .filter(|place| place.ifindex == ifindex)
        .map(|place| (link, place.program_id)))
}

pub(super) fn attach(
    folder: &Path,
    programs: &BTreeMap<&'static str, OwnedFd>,
    ifindex: u32,
    hook: Hook,
    side: Side,
) -> Result<(), BpfError> {
    let path = path_of(folder, ifindex, hook);
    if live(&path, ifindex)
        .map_err(error("open the link of", ifindex, hook))?
        .is_some()
    {
        return Ok(());
    }
    let name = hook.text();
    let program = programs.get(name).ok_or(BpfError::NoProgram { name })?;
    let attach_type = match side {
        Side::Ingress => syscall::TCX_INGRESS,
        Side::Egress => syscall::TCX_EGRESS,
    };
    // A pin of that name whose interface is gone.
    syscall::unpin(&path).map_err(error("unpin", ifindex, hook))?;
    let link = syscall::link_create(syscall::fd(program), ifindex, attach_type)
        .map_err(error("attach", ifindex, hook))?;
    syscall::pin(syscall::fd(&link), &path).map_err(error("pin the link of", ifindex, hook))
}

pub(super) fn is_attached(folder: &Path, ifindex: u32, hook: Hook) -> Result<bool, BpfError> {
    live(&path_of(folder, ifindex, hook), ifindex)
        .map(|found| found.is_some())
        .map_err(error("open the link of", ifindex, hook))
}

pub(super) fn detach(folder: &Path, ifindex: u32, hook: Hook) -> Result<(), BpfError> {
    syscall::unpin(&path_of(folder, ifindex, hook)).map_err(error("unpin", ifindex, hook))
}

/// Names of the pinned links.
fn pins(folder: &Path) -> Result<Vec<(u32, Hook)>, BpfError> {
    let folder = folder_of(folder);
    let failed = |source| BpfError::Folder {
        what: "list",
        path: folder.clone(),
        source,
    };
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        all.extend(name.to_str().and_then(parse));
    }
    all.sort_unstable();
    Ok(all)
}

pub(super) fn attached(folder: &Path) -> Result<Vec<Attachment>, BpfError> {
    let mut all = Vec::new();
    for (ifindex, hook) in pins(folder)? {
        let link = live(&path_of(folder, ifindex, hook), ifindex).map_err(error(
            "open the link of",
            ifindex,
            hook,
        ))?;
        all.extend(link.map(|(_, program_id)| Attachment {
            ifindex,
            hook,
            program_id,
        }));
    }
    Ok(all)
}

/// Puts the newly loaded programs behind all links that are there.
pub(super) fn swap_all(
    folder: &Path,
    programs: &BTreeMap<&'static str, OwnedFd>,
) -> Result<(), BpfError> {
    for (ifindex, hook) in pins(folder)? {
        let path = path_of(folder, ifindex, hook);
        match live(&path, ifindex).map_err(error("open the link of", ifindex, hook))? {
            Some((link, _)) => {
                let name = hook.text();
                let program = programs.get(name).ok_or(BpfError::NoProgram { name })?;
                syscall::link_update(syscall::fd(&link), syscall::fd(program))
                    .map_err(error("swap", ifindex, hook))?;
            }
            None => syscall::unpin(&path).map_err(error("unpin", ifindex, hook))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Hook, parse, path_of};
    use std::path::Path;

    #[test]
    fn a_pin_says_interface_and_program() {
        for hook in Hook::ALL {
            let path = path_of(Path::new("/x"), 17, hook);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(parse(name), Some((17, hook)));
        }
        assert_eq!(parse("17_other"), None);
        assert_eq!(parse("tc_from_pod"), None);
    }
}
