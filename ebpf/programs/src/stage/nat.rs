//! Rewrites addresses and ports in place, and the checksums with them.
//!
//! A packet that was made on this machine is CHECKSUM_PARTIAL: its field holds the sum of the
//! pseudo header only, and the device adds the rest, if one is on its path. A whole checksum changes by
//! the addresses and by the ports, a partial one by the addresses alone and in the other
//! direction. One helper call tells which it is: after a pseudo header difference d the field
//! is c + d if partial and c - d otherwise, and these differ unless d is zero.

use crate::packet::{MANGLED_ZERO, PSEUDO_HEADER, Skb};
use ebpf_common::conntrack::Flow;
use ebpf_common::drop::Drop;
use ebpf_common::net::protocol;
use ebpf_logic::checksum::{add, apply, is_zero};

/// Offset of the TCP checksum in the frame, and its end.
const TCP_AT: usize = 50;
const TCP_END: usize = 52;
/// The same for UDP.
const UDP_AT: usize = 40;
const UDP_END: usize = 42;

/// Translates a packet as its flow says. The headers must be in the linear part.
#[inline(always)]
pub(crate) fn rewrite(skb: &Skb, flow: &Flow, protocol: u8) -> Result<(), Drop> {
    let head = skb.headers::<UDP_END>().ok_or(Drop::RewriteFailed)?;
    head.set_u16::<24>(apply(head.u16::<24>(), flow.addr_delta));
    head.set_u32::<26>(flow.src.be);
    head.set_u32::<30>(flow.dst.be);
    head.set_u32::<34>(flow.sport.be as u32 | (flow.dport.be as u32) << 16);
    if protocol == protocol::TCP {
        let head = skb.headers::<TCP_END>().ok_or(Drop::RewriteFailed)?;
        let before = head.u16::<TCP_AT>();
        check::<TCP_AT, TCP_END>(skb, flow, before, false)
    } else {
        let before = head.u16::<UDP_AT>();
        if before == 0 {
            zero(skb, flow)
        } else {
            check::<UDP_AT, UDP_END>(skb, flow, before, true)
        }
    }
}

#[inline(always)]
fn replace(skb: &Skb, at: usize, delta: u16, flags: u64) -> Result<(), Drop> {
    if skb.l4_checksum(at as u32, delta, flags) {
        Ok(())
    } else {
        Err(Drop::RewriteFailed)
    }
}

#[inline(always)]
fn check<const AT: usize, const END: usize>(
    skb: &Skb,
    flow: &Flow,
    before: u16,
    udp: bool,
) -> Result<(), Drop> {
    if is_zero(flow.addr_delta) {
        // The addresses change nothing, and a partial checksum has no ports in it: the helper
        // leaves it alone when it is told that they are not of the pseudo header.
        let flags = if udp { MANGLED_ZERO } else { 0 };
        return replace(skb, AT, flow.port_delta, flags);
    }
    replace(skb, AT, flow.addr_delta, PSEUDO_HEADER)?;
    let head = skb.headers::<END>().ok_or(Drop::RewriteFailed)?;
    let now = head.u16::<AT>();
    if now == apply(before, flow.addr_delta) {
        let check = apply(now, flow.port_delta);
        // For UDP zero means "no checksum"; all ones is the same number (RFC 768).
        head.set_u16::<AT>(if udp && check == 0 { 0xffff } else { check });
    }
    Ok(())
}

/// A UDP field of zero: mostly no checksum at all, which must stay so, but one sum in 65,536
/// of a partial one.
#[inline(always)]
fn zero(skb: &Skb, flow: &Flow) -> Result<(), Drop> {
    if is_zero(flow.addr_delta) {
        return Ok(());
    }
    replace(skb, UDP_AT, flow.addr_delta, PSEUDO_HEADER)?;
    let head = skb.headers::<UDP_END>().ok_or(Drop::RewriteFailed)?;
    if head.u16::<UDP_AT>() == add(0, flow.addr_delta) {
        return Ok(());
    }
    replace(skb, UDP_AT, !flow.addr_delta, PSEUDO_HEADER)?;
    let head = skb.headers::<UDP_END>().ok_or(Drop::RewriteFailed)?;
    head.set_u16::<UDP_AT>(0);
    Ok(())
}
