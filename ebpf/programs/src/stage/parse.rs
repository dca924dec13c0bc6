//! Copies the headers out of the packet and has them judged.

use crate::flow::{NEXT, PacketContext, Verdict};
use crate::maps;
use crate::packet::Skb;
use crate::stage::origin;
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::Be32;
use ebpf_logic::parse::{ETHERNET, HEADERS, L4, Parsed, TCP, UDP, parse};

/// Reads a packet of any length.
#[inline(always)]
pub(crate) fn read(skb: &Skb, context: &mut PacketContext) -> Result<Verdict, Drop> {
    let len = skb.len();
    // Later stages write headers in place.
    let wanted = if len < HEADERS as u32 {
        len
    } else {
        HEADERS as u32
    };
    if !skb.pull(wanted) {
        return Err(Drop::Truncated);
    }
    let mut bytes = [0u8; HEADERS];
    if skb.load::<0, 0, L4, HEADERS>(&mut bytes) {
        // Nothing behind the IP header leaves zeros there, which the lengths then contradict.
        if !skb.load::<L4, L4, TCP, HEADERS>(&mut bytes)
            && !skb.load::<L4, L4, UDP, HEADERS>(&mut bytes)
        {
            bytes[L4] = 0;
        }
    } else if !skb.load::<0, 0, ETHERNET, HEADERS>(&mut bytes) {
        return Err(Drop::Truncated);
    }
    match parse(&bytes, len) {
        Ok(Parsed::Ipv4(packet)) => {
            context.packet = packet;
            Ok(Verdict::OPEN)
        }
        Ok(Parsed::Arp) => Ok(Verdict::goes(NEXT)),
        Err(reason) => unread(context, &bytes, len, reason),
    }
}

/// A packet that could not be read, or has options: dropped if a pod has sent it or it is for
/// one. The host judges all others, its IPv6 and its IGMP, unless it takes their addresses for
/// its own.
#[inline(always)]
fn unread(
    context: &PacketContext,
    bytes: &[u8; HEADERS],
    len: u32,
    reason: Drop,
) -> Result<Verdict, Drop> {
    let hook = context.hook();
    if matches!(hook, Hook::FromPod) {
        return Err(reason);
    }
    // Addresses where an IPv4 header has them, also if its version or length is wrong.
    if len >= L4 as u32 && bytes[12] == 0x08 && bytes[13] == 0x00 {
        let src = Be32::from_octets([bytes[26], bytes[27], bytes[28], bytes[29]]);
        let dst = Be32::from_octets([bytes[30], bytes[31], bytes[32], bytes[33]]);
        if maps::local(dst).is_some() {
            return Err(reason);
        }
        if matches!(hook, Hook::FromNetdev)
            && let Some(spoofed) = origin::spoofed(src)
        {
            return Err(spoofed);
        }
    }
    Ok(Verdict::goes(NEXT))
}
