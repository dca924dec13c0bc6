//! The programs of the data plane: one object file, loaded once, attached many times.
//!
//! Each hook is two things: a fast path for packets of flows that are decided already (one
//! lookup), and behind it `slow_path`, one function for all hooks, verified once, which
//! decides the others. Hooks are in `hook/`, what they do step by step in `stage/`.
//! Loaded by `agent-sys`, built by `cargo xtask build`.
//!
//! Unsafe code is in `packet` and `maps` only.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod flow;
mod hook;
mod maps;
mod packet;
mod stage;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use packet::Skb;

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

/// Removes flows that are over; the agent runs it, it is attached nowhere.
#[classifier]
fn flow_sweep(_context: TcContext) -> i32 {
    hook::flow_sweep::run()
}

/// What the others are measured against.
#[classifier]
fn tc_empty(_context: TcContext) -> i32 {
    0
}

/// Decides a packet that the fast path does not know. A global function: the verifier walks
/// it once, not once for each hook.
#[unsafe(no_mangle)]
pub extern "C" fn slow_path(context: *mut __sk_buff, hook: u32) -> i32 {
    hook::slow_path(&Skb::new(context), hook)
}

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
