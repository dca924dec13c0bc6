//! IPv4.

use super::{Family, Quoted};
use crate::flow::{NEXT, PacketContext, Verdict};
use crate::maps;
use crate::packet::{Headers, Skb, flow_key4};
use crate::stage::origin;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::warn;
use ebpf_common::conntrack::{Flow4, FlowKey4};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::{Be32, protocol};
use ebpf_logic::checksum::{add, address_delta, apply};
use ebpf_logic::parse::{ETHERNET, HEADERS, L4, Packet, Parsed, TCP, UDP, parse};
use ebpf_logic::{icmp, refuse};

/// Everything but "do not fragment".
const FRAGMENT: u16 = 0xbfffu16.to_be();

/// Offsets in the frame.
const LENGTH: usize = 16;
const FRAGMENTS: usize = 20;
const TTL: usize = 22;
const PROTOCOL: usize = 23;
const CHECK: usize = 24;
const SRC: usize = 26;
const DST: usize = 30;
const PORTS: usize = 34;
/// Of an ICMP message, and the packet that it quotes.
const ICMP_CHECK: usize = 36;
const QUOTED: usize = 42;
const QUOTED_FRAGMENT: usize = 48;
const QUOTED_PROTOCOL: usize = 51;
const QUOTED_CHECK: usize = 52;
const QUOTED_SRC: usize = 54;
const QUOTED_DST: usize = 58;
const QUOTED_PORTS: usize = 62;
const QUOTED_END: usize = 66;

impl Family for Be32 {
    const ECHO: u8 = 8;

    #[inline(always)]
    fn plain<const N: usize>(head: &Headers<'_, Self, N>) -> Option<(u8, u32)> {
        if head.u8::<ETHERNET>() != 0x45 || head.u16::<FRAGMENTS>() & FRAGMENT != 0 {
            return None;
        }
        let total = u16::from_be(head.u16::<LENGTH>()) as u32;
        Some((head.u8::<PROTOCOL>(), total))
    }

    #[inline(always)]
    fn key<const N: usize>(head: &Headers<'_, Self, N>, scope: u32) -> FlowKey4 {
        flow_key4([
            head.u32::<SRC>(),
            head.u32::<DST>(),
            head.u32::<PORTS>(),
            scope,
        ])
    }

    #[inline(always)]
    fn put_addresses<const N: usize>(head: &Headers<'_, Self, N>, flow: &Flow4) {
        head.set_u16::<CHECK>(apply(head.u16::<CHECK>(), flow.addr_delta));
        head.set_u32::<SRC>(flow.src.be);
        head.set_u32::<DST>(flow.dst.be);
    }

    #[inline(always)]
    fn read(skb: &Skb, context: &mut PacketContext<Self>) -> Result<Verdict, Drop> {
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

    /// They are ARP's, and no IPv4 packets.
    #[inline(always)]
    fn is_of_link(_packet: &Packet<Self>) -> bool {
        false
    }

    #[inline(always)]
    fn is_error(icmp_type: u8) -> bool {
        icmp::is_error(icmp_type)
    }

    #[inline(always)]
    fn quoted(skb: &Skb) -> Option<Quoted<Self>> {
        if !skb.pull(QUOTED_END as u32) {
            return None;
        }
        let head = skb.headers::<Self, { QUOTED_END - L4 }>()?;
        let protocol = head.u8::<QUOTED_PROTOCOL>();
        let ported = protocol == protocol::TCP || protocol == protocol::UDP;
        let later = head.u16::<QUOTED_FRAGMENT>() & 0x1fffu16.to_be() != 0;
        if head.u8::<QUOTED>() != 0x45 || !ported || later {
            return None;
        }
        Some(Quoted {
            src: Self {
                be: head.u32::<QUOTED_SRC>(),
            },
            dst: Self {
                be: head.u32::<QUOTED_DST>(),
            },
            ports: head.u32::<QUOTED_PORTS>(),
            protocol,
        })
    }

    #[inline(always)]
    fn rewrite_error(skb: &Skb, packet: &Packet<Self>, flow: &Flow4, own: bool) -> bool {
        let Some(head) = skb.headers::<Self, { QUOTED_END - L4 }>() else {
            return false;
        };
        // Inside: the header's own sum stays what it was, so that only the ports move the ICMP sum.
        head.set_u32::<QUOTED_SRC>(flow.dst.be);
        head.set_u32::<QUOTED_DST>(flow.src.be);
        head.set_u16::<QUOTED_CHECK>(apply(head.u16::<QUOTED_CHECK>(), flow.addr_delta));
        head.set_u32::<QUOTED_PORTS>(flow.dport.be as u32 | (flow.sport.be as u32) << 16);
        head.set_u16::<ICMP_CHECK>(apply(head.u16::<ICMP_CHECK>(), flow.port_delta));
        // Outside.
        let mut check = apply(head.u16::<CHECK>(), address_delta(packet.dst, flow.dst));
        head.set_u32::<DST>(flow.dst.be);
        if own {
            check = apply(check, address_delta(packet.src, flow.src));
            head.set_u32::<SRC>(flow.src.be);
        }
        head.set_u16::<CHECK>(check);
        true
    }

    #[inline(always)]
    fn reset(skb: &Skb, context: &mut PacketContext<Self>) -> bool {
        let Some(bytes) = context.refusal.first_chunk_mut::<{ refuse::RESET }>() else {
            return false;
        };
        refuse::reset(&context.packet, bytes);
        skb.resize(HEADERS as u32) && skb.store(ETHERNET as u32, bytes)
    }

    #[inline(always)]
    fn take_hop(skb: &Skb) -> bool {
        let Some(head) = skb.headers::<Self, 0>() else {
            return false;
        };
        let hops = head.u8::<TTL>();
        if hops <= 1 {
            return false;
        }
        let before = head.u16::<TTL>();
        let after = u16::from_ne_bytes([hops - 1, head.u8::<PROTOCOL>()]);
        head.set_u16::<TTL>(after);
        head.set_u16::<CHECK>(apply(head.u16::<CHECK>(), add(after, !before)));
        true
    }

    #[inline(always)]
    fn icmp_error(skb: &Skb, context: &mut PacketContext<Self>, error: u32) -> bool {
        const QUOTE: usize = refuse::UNREACHABLE - refuse::QUOTED;
        let Some(bytes) = context.refusal.first_chunk_mut::<{ refuse::UNREACHABLE }>() else {
            return false;
        };
        if !skb.load::<ETHERNET, QUOTE, { refuse::QUOTED }, _>(bytes) {
            return false;
        }
        refuse::icmp_error(&context.packet, error, bytes);
        let len = (ETHERNET + refuse::UNREACHABLE) as u32;
        skb.resize(len) && skb.store(ETHERNET as u32, bytes)
    }

    #[inline(always)]
    fn log(skb: &TcContext, packet: &Packet<Self>, reason: u32) {
        let (src, dst) = (packet.src.get(), packet.dst.get());
        let port = packet.dport.get();
        if reason == Drop::NoRoute as u32 {
            warn!(skb, "no route from {:i} to {:i} port {}", src, dst, port);
        } else if reason == Drop::NoFlowEntry as u32 {
            warn!(
                skb,
                "flow table refuses {:i} to {:i} port {}", src, dst, port
            );
        } else {
            warn!(
                skb,
                "packet of {:i} to {:i} port {} cannot be changed", src, dst, port
            );
        }
    }
}

/// A packet that could not be read, or has options: dropped if a pod has sent it or it is for
/// one. The host judges all others, its IGMP among them, unless it takes their addresses for its
/// own.
#[inline(always)]
fn unread(
    context: &PacketContext<Be32>,
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
