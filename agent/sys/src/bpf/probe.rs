//! What the kernel must have, asked by trying it, before anything is loaded.
//!
//! Called by `Datapath::open`; the agent prints what is missing and stops.

use super::syscall::{self, address, bpf, is_interrupted, owned, verified};
use ebpf_common::maps::Kind;
use std::io;
use std::os::fd::OwnedFd;

const PROG_LOAD: i64 = 5;

/// Something that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// What, and since which kernel it is there.
    pub what: &'static str,
    /// What the kernel answered.
    pub answer: String,
}

fn lack<T>(what: &'static str, tried: io::Result<T>) -> Option<Lack> {
    tried.err().map(|error| Lack {
        what,
        answer: error.to_string(),
    })
}

fn ring() -> io::Result<OwnedFd> {
    syscall::create_map(Kind::RingBuf as u32, 0, 0, 4096, 0)
}

#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// `BPF_PROG_TYPE_SCHED_CLS`
const SCHED_CLS: u32 = 3;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`
const CGROUP_SOCK_ADDR: u32 = 18;
/// `BPF_CGROUP_INET4_CONNECT`
pub(super) const CGROUP_INET4_CONNECT: u32 = 10;

/// A program that returns 1, for asking the kernel what it can attach.
fn load_nothing(prog_type: u32, attach_type: u32) -> io::Result<OwnedFd> {
    // r0 = 1; exit
    let code: [u64; 2] = [1 << 32 | 0xb7, 0x95];
    let license = c"Dual MIT/GPL";
    let mut attr = Load {
        prog_type,
        insn_cnt: code.len() as u32,
        insns: address(&code),
        license: address(license.to_bytes_with_nul()),
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: [0; 16],
        prog_ifindex: 0,
        expected_attach_type: attach_type,
    };
    owned(verified(|| bpf(PROG_LOAD, &mut attr), is_interrupted)?)
}

/// A link to an interface that cannot exist: a kernel with tcx looks for the interface, one
/// without does not know the attach type.
fn tcx() -> io::Result<()> {
    let program = load_nothing(SCHED_CLS, 0)?;
    match syscall::link_create(syscall::fd(&program), i32::MAX as u32, syscall::TCX_INGRESS) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(error),
        _ => Ok(()),
    }
}

fn btf() -> io::Result<()> {
    if aya::features().btf().is_some() {
        Ok(())
    } else {
        Err(io::Error::other("BPF_BTF_LOAD is refused"))
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
        lack(
            "programs on connects of a control group (CONFIG_CGROUP_BPF)",
            load_nothing(CGROUP_SOCK_ADDR, CGROUP_INET4_CONNECT),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}
