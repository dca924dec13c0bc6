//! What the kernel must have, asked by trying it, before anything is loaded.
//!
//! Called by `Datapath::open`; the agent prints what is missing and stops.

use super::syscall;
use ebpf_common::maps::Kind;
use std::os::fd::OwnedFd;

/// Something that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// What, and since which kernel it is there.
    pub what: &'static str,
    /// What the kernel answered.
    pub answer: String,
}

fn lack<T>(what: &'static str, tried: std::io::Result<T>) -> Option<Lack> {
    tried.err().map(|error| Lack {
        what,
        answer: error.to_string(),
    })
}

fn ring() -> std::io::Result<OwnedFd> {
    syscall::create_map(Kind::RingBuf as u32, 0, 0, 4096, 0)
}

/// A link to an interface that cannot exist: a kernel with tcx looks for the interface, one
/// without does not know the attach type.
fn tcx() -> std::io::Result<()> {
    let program = syscall::load_nothing()?;
    match syscall::link_create(syscall::fd(&program), i32::MAX as u32, syscall::TCX_INGRESS) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(error),
        _ => Ok(()),
    }
}

fn btf() -> std::io::Result<()> {
    if aya::features().btf().is_some() {
        Ok(())
    } else {
        Err(std::io::Error::other("BPF_BTF_LOAD is refused"))
    }
}

/// Everything that is missing, each by name; empty when the data plane can run.
pub fn probe() -> Vec<Lack> {
    let hash = syscall::create_map(Kind::Hash as u32, 4, 4, 1, 0);
    if let Err(error) = hash {
        // Without bpf(2) all other answers would only say the same.
        return vec![Lack {
            what: "BPF maps (bpf(2), CAP_BPF or root)",
            answer: error.to_string(),
        }];
    }
    [
        lack("BPF ring buffers (5.8)", ring()),
        lack(
            "LRU hash maps (4.10)",
            syscall::create_map(Kind::LruHash as u32, 4, 4, 2, 0),
        ),
        lack(
            "LPM tries (4.11)",
            syscall::create_map(Kind::LpmTrie as u32, 8, 4, 1, 1),
        ),
        lack(
            "inner arrays of different length (5.10)",
            syscall::create_map(Kind::Array as u32, 4, 4, 1, ebpf_common::maps::INNER_MAP),
        ),
        lack("BTF of programs and maps (4.18)", btf()),
        lack("tcx links (6.6)", tcx()),
    ]
    .into_iter()
    .flatten()
    .collect()
}
