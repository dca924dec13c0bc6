//! Rewrites addresses and ports in place, and the checksums with them.
//!
//! A packet that was made on this machine is CHECKSUM_PARTIAL: its field holds the sum of the
//! pseudo header only, and the device adds the rest, if one is on its path. A whole checksum changes by
//! the addresses and by the ports, a partial one by the addresses alone and in the other
//! direction. One helper call tells which it is: after a difference d of the addresses a whole one
//! is c - d. A partial one is c + d for IPv4, and still c for IPv6 (`Wire::CHECKSUM`); these differ
//! unless d is zero.

use crate::family::Family;
use crate::packet::{MANGLED_ZERO, Skb};
use ebpf_common::conntrack::Flow;
use ebpf_common::drop::Drop;
use ebpf_common::net::protocol;
use ebpf_logic::checksum::{add, apply, is_zero};

/// Offset of the TCP checksum behind the IP header, and its end.
const TCP_AT: usize = 16;
const TCP_END: usize = 18;
/// The same for UDP.
const UDP_AT: usize = 6;
const UDP_END: usize = 8;

/// Translates a packet as its flow says. The headers must be in the linear part.
#[inline(always)]
pub(crate) fn rewrite<A: Family>(skb: &Skb, flow: &Flow<A>, protocol: u8) -> Result<(), Drop> {
    let head = skb.headers::<A, UDP_END>().ok_or(Drop::RewriteFailed)?;
    A::put_addresses(&head, flow);
    head.set_l4_u32::<0>(flow.sport.be as u32 | (flow.dport.be as u32) << 16);
    if protocol == protocol::TCP {
        let head = skb.headers::<A, TCP_END>().ok_or(Drop::RewriteFailed)?;
        let before = head.l4_u16::<TCP_AT>();
        check::<A, TCP_AT, TCP_END>(skb, flow, before, false)
    } else {
        let before = head.l4_u16::<UDP_AT>();
        if before == 0 {
            zero(skb, flow)
        } else {
            check::<A, UDP_AT, UDP_END>(skb, flow, before, true)
        }
    }
}

#[inline(always)]
fn replace<A: Family>(skb: &Skb, at: usize, delta: u16, flags: u64) -> Result<(), Drop> {
    let at = (A::L4 + at) as u32;
    if skb.l4_checksum(at, delta, flags) {
        Ok(())
    } else {
        Err(Drop::RewriteFailed)
    }
}

#[inline(always)]
fn check<A: Family, const AT: usize, const END: usize>(
    skb: &Skb,
    flow: &Flow<A>,
    before: u16,
    udp: bool,
) -> Result<(), Drop> {
    if is_zero(flow.addr_delta) {
        // The addresses change nothing, and a partial checksum has no ports in it: the helper
        // leaves it alone when it is told that they are not of the pseudo header.
        let flags = if udp { MANGLED_ZERO } else { 0 };
        return replace::<A>(skb, AT, flow.port_delta, flags);
    }
    replace::<A>(skb, AT, flow.addr_delta, A::CHECKSUM)?;
    let head = skb.headers::<A, END>().ok_or(Drop::RewriteFailed)?;
    let now = head.l4_u16::<AT>();
    if now == apply(before, flow.addr_delta) {
        let check = apply(now, flow.port_delta);
        // For UDP zero means "no checksum"; all ones is the same number (RFC 768).
        head.set_l4_u16::<AT>(if udp && check == 0 { 0xffff } else { check });
    } else if !A::CHANGES_PARTIAL {
        head.set_l4_u16::<AT>(add(before, flow.addr_delta));
    }
    Ok(())
}

/// A UDP field of zero: mostly no checksum at all, which must stay so, but one sum in 65,536
/// of a partial one.
#[inline(always)]
fn zero<A: Family>(skb: &Skb, flow: &Flow<A>) -> Result<(), Drop> {
    if is_zero(flow.addr_delta) {
        return Ok(());
    }
    replace::<A>(skb, UDP_AT, flow.addr_delta, A::CHECKSUM)?;
    let head = skb.headers::<A, UDP_END>().ok_or(Drop::RewriteFailed)?;
    let now = head.l4_u16::<UDP_AT>();
    if !A::CHANGES_PARTIAL {
        let whole = now == apply(0, flow.addr_delta);
        head.set_l4_u16::<UDP_AT>(if whole { 0 } else { add(0, flow.addr_delta) });
        return Ok(());
    }
    if now == add(0, flow.addr_delta) {
        return Ok(());
    }
    replace::<A>(skb, UDP_AT, !flow.addr_delta, A::CHECKSUM)?;
    let head = skb.headers::<A, UDP_END>().ok_or(Drop::RewriteFailed)?;
    head.set_l4_u16::<UDP_AT>(0);
    Ok(())
}
