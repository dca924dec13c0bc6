//! The programs of the data plane: one object file, loaded once, attached many times.
//!
//! Each hook is two things: a fast path for packets of flows that are decided already (one
//! lookup), and behind it `slow_path`, one function for all hooks, verified once, which
//! decides the others. Hooks are in `hook/`, what they do step by step in `stage/`.
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
mod flow;
#[forbid(unsafe_code)]
mod hook;
mod maps;
mod packet;
mod socket;
#[forbid(unsafe_code)]
mod stage;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::{cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, TcContext};
use ebpf_common::conntrack::{Flow, FlowKey4};
use ebpf_common::drop::Drop;
use ebpf_logic::parse::Packet;
use ebpf_logic::reply_tuple::Life;
use flow::{PacketContext, Verdict};
use packet::{Skb, borrowed, borrowed_mut};
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
    hook::flow_sweep::run(&Skb::new(context.skb.skb))
}

/// What the others are measured against.
#[classifier]
fn tc_empty(_context: TcContext) -> i32 {
    0
}

// The slow path and its stages. Global functions: the verifier walks each of them once, with
// anything that their arguments allow, and not once for each caller. What a stage returns is a
// `flow::Verdict` as a number.

/// Decides a packet that the fast path does not know.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn slow_path(skb: *mut __sk_buff, hook: u32) -> i32 {
    hook::slow_path(&Skb::new(skb), hook)
}

macro_rules! stages {
    ($( $(#[$doc:meta])* $name:ident = |$skb:ident, $context:ident| $run:expr; )*) => {$(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(skb: *mut __sk_buff, context: *mut PacketContext) -> u32 {
            // A stage that has no use for it would be called without it, and the verifier wants
            // every argument that the signature names.
            let $skb = &Skb::new(core::hint::black_box(skb));
            match borrowed_mut(context) {
                Some($context) => Verdict::of($run).number(),
                None => NO_MEMORY,
            }
        }
    )*};
}

stages! {
    /// Reads the headers.
    read_packet = |skb, context| stage::parse::read(skb, context);
    /// Finds who sent it.
    find_origin = |skb, context| stage::origin::find(skb, context);
    /// Translates and sends an ICMP error about a translated flow.
    translate_error = |skb, context| stage::icmp::translate(skb, context);
    /// Forwards a packet without ports.
    forward_other = |skb, context| stage::transit::forward_other(skb, context);
    /// Forwards a packet of a known flow.
    follow_flow = |skb, context| stage::follow::follow(skb, context);
    /// Chooses the backend.
    choose_target = |skb, context| stage::service::target(skb, context);
    /// Finds the route to it.
    find_route = |skb, context| stage::route::find(skb, context);
    /// Makes the flow's entry.
    begin_flow = |skb, context| stage::create::begin(skb, context);
    /// Writes the direction of the answers.
    write_answers = |_skb, context| stage::reply_tuple::write(context);
    /// Writes the packet's own direction.
    write_flow = |skb, context| stage::create::write(skb, context);
}

/// Writes the other direction of a known flow again.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn restore_other(context: *mut PacketContext) -> u32 {
    match borrowed_mut(context) {
        Some(context) => Verdict::of(stage::reply_tuple::restore(context)).number(),
        None => NO_MEMORY,
    }
}

/// Finds another source port, see `stage::reply_tuple`; 0 if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_port(context: *const PacketContext, key: *mut FlowKey4) -> u32 {
    match (borrowed(context), borrowed_mut(key)) {
        (Some(context), Some(key)) => stage::reply_tuple::find_port(context, key),
        (Some(_) | None, _) => 0,
    }
}

/// Writes the entry of the answers if its tuple may be taken, see `stage::reply_tuple`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take_tuple(
    context: *const PacketContext,
    key: *const FlowKey4,
    answer: *const Flow,
    least: u32,
) -> u32 {
    match (borrowed(context), borrowed(key), borrowed(answer)) {
        (Some(context), Some(key), Some(answer)) => {
            Verdict::of(stage::reply_tuple::take_tuple(context, key, answer, least)).number()
        }
        (Some(_) | None, _, _) => NO_MEMORY,
    }
}

/// Makes an entry, or replaces it, see `stage::entry`; 0 if there is none for it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn put_entry(key: *const FlowKey4, flow: *const Flow) -> u32 {
    match (borrowed(key), borrowed(flow)) {
        (Some(key), Some(flow)) => stage::entry::put(key, flow) as u32,
        (Some(_) | None, _) => 0,
    }
}

/// Removes an entry, see `stage::entry`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remove_entry(key: *const FlowKey4) -> u32 {
    match borrowed(key) {
        Some(key) => stage::entry::remove(key) as u32,
        None => 0,
    }
}

/// `Life` of the other connection that has a reply tuple, see `stage::reply_tuple`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn life_of_owner(context: *const PacketContext, key: *const FlowKey4) -> u32 {
    match (borrowed(context), borrowed(key)) {
        (Some(context), Some(key)) => stage::reply_tuple::owner(context, key),
        (Some(_) | None, _) => Life::Alive as u32,
    }
}

/// Translates a packet and sends it as its flow says.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_packet(skb: *mut __sk_buff, flow: *const Flow, protocol: u32) -> u32 {
    let skb = Skb::new(skb);
    match borrowed(flow) {
        Some(flow) => Verdict::of(stage::send::translated(&skb, flow, protocol as u8)).number(),
        None => NO_MEMORY,
    }
}

/// Puts a reset in the place of the packet that is refused; 0 if that failed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn write_reset(skb: *mut __sk_buff, packet: *const Packet) -> u32 {
    match borrowed(packet) {
        Some(packet) => stage::service::reset(&Skb::new(skb), packet) as u32,
        None => 0,
    }
}

/// Puts an ICMP error in the place of the packet that is refused; 0 if that failed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn write_unreachable(skb: *mut __sk_buff, packet: *const Packet) -> u32 {
    match borrowed(packet) {
        Some(packet) => stage::service::unreachable(&Skb::new(skb), packet) as u32,
        None => 0,
    }
}

/// Puts an event into the ring.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn report_event(
    skb: *mut __sk_buff,
    context: *const PacketContext,
    kind: u32,
    reason: u32,
) -> u32 {
    if let Some(context) = borrowed(context) {
        hook::finish::report(&Skb::new(skb), context, kind as u8, reason as u8);
    }
    0
}

/// Logs a drop that says something about the node.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn log_unexpected(
    skb: *mut __sk_buff,
    context: *const PacketContext,
    reason: u32,
) -> u32 {
    if let Some(context) = borrowed(context) {
        let skb = core::hint::black_box(skb);
        hook::finish::log(&TcContext::new(skb), context, reason);
    }
    0
}

/// What a hook on sockets returns so that the system call goes on.
const ALLOWED: i32 = 1;

/// What cannot be: a caller without memory for what it asks. The packet is dropped.
const NO_MEMORY: u32 = Verdict::dropped(Drop::NoFlowEntry).number();

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
