//! Links of the programs on sockets: attached to the control group of the node's pods, pinned as
//! `links/PROGRAM`.
//!
//! As with tcx links, the pin is the record. Called by `Datapath`.

use super::probe::CGROUP_INET4_CONNECT;
use super::{BpfError, syscall};
use ebpf_common::program;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// `BPF_LINK_DETACH`
const LINK_DETACH: i64 = 34;

/// `BPF_LINK_TYPE_CGROUP`
const LINK_TYPE_CGROUP: u32 = 3;

/// The programs and their attach types (`BPF_CGROUP_INET4_GETPEERNAME`, ...), in the order in which
/// they are attached: a connection that is translated has its service's address as peer.
pub(super) const PROGRAMS: [(&str, u32); 4] = [
    (program::SOCK_GETPEER4, 29),
    (program::SOCK_GETPEER6, 30),
    (program::SOCK_CONNECT4, CGROUP_INET4_CONNECT),
    (program::SOCK_CONNECT6, 11),
];

/// One attached program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SocketAttachment {
    /// Its name.
    pub program: &'static str,
    /// The kernel's number of the control group, which is the inode number of its folder.
    pub group: u64,
    /// The kernel's number of the loaded program.
    pub program_id: u32,
}

fn path_of(folder: &Path, program: &str) -> PathBuf {
    folder.join("links").join(program)
}

fn error(what: &'static str, program: &'static str) -> impl FnOnce(io::Error) -> BpfError {
    move |source| BpfError::Socket {
        what,
        program,
        source,
    }
}

/// Group and program of a link (the start of the kernel's `struct bpf_link_info`); `None` when it is
/// not one to a group, or its group is gone.
fn place(link: &OwnedFd) -> io::Result<Option<(u64, u32)>> {
    // type, id, prog_id, (alignment), cgroup.cgroup_id (two words), cgroup.attach_type
    let mut words = [0u32; 8];
    syscall::info(syscall::fd(link), &mut words)?;
    let [kind, _id, program_id, _, low, high, ..] = words;
    let [a, b, c, d] = low.to_ne_bytes();
    let [e, f, g, h] = high.to_ne_bytes();
    let group = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    Ok((kind == LINK_TYPE_CGROUP && group != 0).then_some((group, program_id)))
}

/// The pinned link with its group and program, if it is there and its group is.
fn live(path: &Path) -> io::Result<Option<(OwnedFd, u64, u32)>> {
    let link = match syscall::get_pinned(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let place = place(&link)?;
    Ok(place.map(|(group, program_id)| (link, group, program_id)))
}

#[repr(C)]
struct Detach {
    link_fd: u32,
}

/// Takes the link off its group, at once, and removes its pin. Without a descriptor the kernel
/// frees a link some time after its pin is gone.
fn remove(path: &Path) -> io::Result<()> {
    if let Some((link, ..)) = live(path)? {
        let mut attr = Detach {
            link_fd: link.as_raw_fd() as u32,
        };
        syscall::bpf(LINK_DETACH, &mut attr)?;
    }
    syscall::unpin(path)
}

/// Attaches all of them to the group with this folder; what is attached to another one is moved.
pub(super) fn attach(
    folder: &Path,
    programs: &BTreeMap<&'static str, OwnedFd>,
    group: &Path,
) -> Result<(), BpfError> {
    for (name, attach_type) in PROGRAMS {
        let opened = std::fs::File::open(group).and_then(|opened| {
            let id = opened.metadata()?.ino();
            Ok((opened, id))
        });
        let (opened, id) = opened.map_err(error("open the group of", name))?;
        let path = path_of(folder, name);
        let found = live(&path).map_err(error("open the link of", name))?;
        if found.is_some_and(|(_, group, _)| group == id) {
            continue;
        }
        let program = programs.get(name).ok_or(BpfError::NoProgram { name })?;
        remove(&path).map_err(error("detach", name))?;
        let target = opened.as_raw_fd() as u32;
        let link = syscall::link_create(syscall::fd(program), target, attach_type)
            .map_err(error("attach", name))?;
        syscall::pin(syscall::fd(&link), &path).map_err(error("pin the link of", name))?;
    }
    Ok(())
}

/// Detaches all of them, in the reverse order.
pub(super) fn detach(folder: &Path) -> Result<(), BpfError> {
    for (name, _) in PROGRAMS.into_iter().rev() {
        remove(&path_of(folder, name)).map_err(error("detach", name))?;
    }
    Ok(())
}

pub(super) fn attached(folder: &Path) -> Result<Vec<SocketAttachment>, BpfError> {
    let mut all = Vec::new();
    for (program, _) in PROGRAMS {
        let found = live(&path_of(folder, program)).map_err(error("open the link of", program))?;
        all.extend(found.map(|(_, group, program_id)| SocketAttachment {
            program,
            group,
            program_id,
        }));
    }
    Ok(all)
}

/// Puts the newly loaded programs behind the links that are there.
pub(super) fn swap_all(
    folder: &Path,
    programs: &BTreeMap<&'static str, OwnedFd>,
) -> Result<(), BpfError> {
    for (name, _) in PROGRAMS {
        let path = path_of(folder, name);
        match live(&path).map_err(error("open the link of", name))? {
            Some((link, _, _)) => {
                let program = programs.get(name).ok_or(BpfError::NoProgram { name })?;
                syscall::link_update(syscall::fd(&link), syscall::fd(program))
                    .map_err(error("swap", name))?;
            }
            None => syscall::unpin(&path).map_err(error("unpin", name))?,
        }
    }
    Ok(())
}

/// Cookie of the calling thread's network namespace, by which programs know it.
pub(super) fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` has the `len` bytes that are written, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `SO_NETNS_COOKIE` (Linux 5.14)
const SO_NETNS_COOKIE: libc::c_int = 71;
