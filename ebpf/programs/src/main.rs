//! The programs of the data plane: one object file, loaded once, attached many times.
//!
//! Each hook is two things: a fast path for packets of flows that are decided already (one
//! lookup), and behind it `slow_path`, one function for all hooks, verified once, which
//! decides the others. Hooks are in `hook/`, what they do step by step in `stage/`, and what
//! IPv4 and IPv6 have of their own in `family/`.
//! Loaded by `agent-sys`, built by `cargo xtask build`.
//!
//! Unsafe code is in `packet`, `socket` and `maps` only.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![expect(
    unsafe_code,
    reason = "the kernel finds programs by symbol and section, which only unsafe attributes set"
)]

#[forbid(unsafe_code)]
mod family;
#[forbid(unsafe_code)]
mod flow;
mod function;
#[forbid(unsafe_code)]
mod hook;
mod maps;
mod packet;
mod socket;
#[forbid(unsafe_code)]
mod stage;
#[forbid(unsafe_code)]
mod wire;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::{cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, TcContext};
use ebpf_common::net::{Addr, Be32};
use packet::Skb;
use socket::{Family, SockAddr};

/// Packets that leave a pod: ingress of the host side of its veth.
#[classifier]
fn tc_from_pod(context: TcContext) -> i32 {
    hook::tc_from_pod::run(&Skb::new(context.skb.skb))
}

/// Packets from the host's stack to a pod: egress of the host side of its veth.
#[classifier]
fn tc_to_pod(context: TcContext) -> i32 {
    hook::tc_to_pod::run(&Skb::new(context.skb.skb))
}

/// Packets from other nodes and from outside: ingress of an uplink.
#[classifier]
fn tc_from_netdev(context: TcContext) -> i32 {
    hook::tc_from_netdev::run(&Skb::new(context.skb.skb))
}

/// Packets of the node itself: egress of an uplink and of the service device.
#[classifier]
fn tc_to_netdev(context: TcContext) -> i32 {
    hook::tc_to_netdev::run(&Skb::new(context.skb.skb))
}

/// TCP connections of pods to a service become connections to a backend.
#[cgroup_sock_addr(connect4)]
fn sock_connect4(context: SockAddrContext) -> i32 {
    hook::sock_connect::run(&SockAddr::new(context.sock_addr, Family::V4));
    ALLOWED
}

/// The same of IPv6 sockets.
#[cgroup_sock_addr(connect6)]
fn sock_connect6(context: SockAddrContext) -> i32 {
    hook::sock_connect::run(&SockAddr::new(context.sock_addr, Family::V6));
    ALLOWED
}

/// `getpeername` of such connections tells the service's address.
#[cgroup_sock_addr(getpeername4)]
fn sock_getpeer4(context: SockAddrContext) -> i32 {
    hook::sock_getpeer::run(&SockAddr::new(context.sock_addr, Family::V4));
    ALLOWED
}

/// The same of IPv6 sockets.
#[cgroup_sock_addr(getpeername6)]
fn sock_getpeer6(context: SockAddrContext) -> i32 {
    hook::sock_getpeer::run(&SockAddr::new(context.sock_addr, Family::V6));
    ALLOWED
}

/// Removes expired flows; the agent runs it, it is attached nowhere.
#[classifier]
fn flow_sweep(context: TcContext) -> i32 {
    hook::flow_sweep::run::<Be32>(&Skb::new(context.skb.skb))
}

/// The same for IPv6.
#[classifier]
fn flow_sweep6(context: TcContext) -> i32 {
    hook::flow_sweep::run::<Addr>(&Skb::new(context.skb.skb))
}

/// What the others are measured against.
#[classifier]
fn tc_empty(_context: TcContext) -> i32 {
    0
}

/// Forwards an IPv6 packet of a flow that is decided.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn established6(skb: *mut __sk_buff, from: u32, hook: u32) -> i32 {
    stage::established::known6(&Skb::new(skb), from, hook)
}

/// Decides a packet that the fast path does not know.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn slow_path(skb: *mut __sk_buff, hook: u32) -> i32 {
    hook::slow_path(&Skb::new(skb), hook)
}

/// What a hook on sockets returns so that the system call goes on.
const ALLOWED: i32 = 1;

/// bpf_redirect_peer and others are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

// A panic cannot happen: the loop makes the verifier refuse a program that could reach it.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// On the host there is nothing to run; the crate compiles there so that it can be linted.
#[cfg(not(target_arch = "bpf"))]
fn main() {
    println!("These programs run in the kernel: cargo xtask build");
}
