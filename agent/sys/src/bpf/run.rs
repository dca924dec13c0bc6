//! Runs a loaded program on a packet, without an interface (BPF_PROG_TEST_RUN).
//!
//! Called by `Datapath::test_run` and by `sweep`.

use super::syscall::{address, address_mut, bpf};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

const PROG_TEST_RUN: i64 = 10;

#[repr(C)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

/// What a test run gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// `TC_ACT_*` as the program returned it.
    pub verdict: i32,
    /// The packet afterwards, from its Ethernet header.
    pub packet: Vec<u8>,
    /// Its mark.
    pub mark: u32,
    /// Nanoseconds of one repeat, on average.
    pub nanoseconds: u32,
}

/// Runs a program on a packet `repeat` times, as if it had come in on `ifindex` (which must be
/// an interface of the calling thread's namespace; 0 or 1: loopback).
///
/// The packet is not put back between repeats. Interrupted by a signal, it begins again.
pub(crate) fn test_run(
    program: BorrowedFd<'_>,
    packet: &[u8],
    ifindex: u32,
    mark: u32,
    repeat: u32,
) -> io::Result<Ran> {
    // struct __sk_buff: mark is word 2, ifindex word 10.
    let mut context = [0u32; 48];
    context[2] = mark;
    context[10] = ifindex;
    let mut context_out = context;
    let mut out = vec![0u8; packet.len() + 256];
    let mut attr = TestRun {
        prog_fd: program.as_raw_fd() as u32,
        retval: 0,
        data_size_in: packet.len() as u32,
        data_size_out: out.len() as u32,
        data_in: address(packet),
        data_out: address_mut(out.as_mut_slice()),
        repeat,
        duration: 0,
        ctx_size_in: size_of_val(&context) as u32,
        ctx_size_out: size_of_val(&context) as u32,
        ctx_in: address(&context),
        ctx_out: address_mut(&mut context_out),
    };
    // Between two repeats the kernel looks for a pending signal, and gives up with EINTR.
    while let Err(error) = bpf(PROG_TEST_RUN, &mut attr) {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    out.truncate(attr.data_size_out as usize);
    Ok(Ran {
        verdict: attr.retval as i32,
        packet: out,
        mark: context_out[2],
        nanoseconds: attr.duration,
    })
}
