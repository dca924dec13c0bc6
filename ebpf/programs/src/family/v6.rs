//! IPv6.
//!
//! A packet with extension headers is forwarded as it is: its flow is not followed, and one that
//! would have to be translated is dropped.

use super::{Family, Quoted};
use crate::flow::{NEXT, PacketContext, Verdict};
use crate::maps;
use crate::packet::{Headers, Skb, flow_key6};
use crate::stage::origin;
use crate::wire::Wire as _;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::warn;
use ebpf_common::conntrack::{Flow6, FlowKey6};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::{Addr, protocol};
use ebpf_logic::checksum::{add, address_delta, apply};
use ebpf_logic::extension::{Chain, HEAD, MOST};
use ebpf_logic::icmp::{is_error6, is_of_link, is_router_message};
use ebpf_logic::parse::{ETHERNET, HEADERS6, IPV6, L4_6 as L4, Packet, TCP, UDP, addr6, parse6};
use ebpf_logic::refuse;

/// Offsets in the frame.
const LENGTH: usize = 18;
const NEXT_HEADER: usize = 20;
const HOP_LIMIT: usize = 21;
const SRC: usize = 22;
const DST: usize = 38;
const PORTS: usize = 54;
/// Of an ICMPv6 message, and the packet that it quotes.
const ICMP_CHECK: usize = 56;
const QUOTED: usize = 62;
const QUOTED_NEXT_HEADER: usize = 68;
const QUOTED_SRC: usize = 70;
const QUOTED_DST: usize = 86;
const QUOTED_PORTS: usize = 102;
const QUOTED_END: usize = 106;

/// The address in a packet at `AT`.
macro_rules! address {
    ($head:expr, $at:expr) => {
        Addr::from_words([
            $head.u32::<{ $at }>(),
            $head.u32::<{ $at + 4 }>(),
            $head.u32::<{ $at + 8 }>(),
            $head.u32::<{ $at + 12 }>(),
        ])
    };
}

/// Puts an address into a packet at `AT`.
macro_rules! put_address {
    ($head:expr, $at:expr, $address:expr) => {
        let [a, b, c, d] = $address.words;
        $head.set_u32::<{ $at }>(a.be);
        $head.set_u32::<{ $at + 4 }>(b.be);
        $head.set_u32::<{ $at + 8 }>(c.be);
        $head.set_u32::<{ $at + 12 }>(d.be);
    };
}

impl Family for Addr {
    const ECHO: u8 = 128;

    #[inline(always)]
    fn plain<const N: usize>(head: &Headers<'_, Self, N>) -> Option<(u8, u32)> {
        if head.u8::<ETHERNET>() >> 4 != 6 {
            return None;
        }
        let behind = u16::from_be(head.u16::<LENGTH>()) as u32;
        Some((head.u8::<NEXT_HEADER>(), behind + IPV6 as u32))
    }

    #[inline(always)]
    fn key<const N: usize>(head: &Headers<'_, Self, N>, scope: u32) -> FlowKey6 {
        flow_key6([
            head.u32::<{ SRC }>(),
            head.u32::<{ SRC + 4 }>(),
            head.u32::<{ SRC + 8 }>(),
            head.u32::<{ SRC + 12 }>(),
            head.u32::<{ DST }>(),
            head.u32::<{ DST + 4 }>(),
            head.u32::<{ DST + 8 }>(),
            head.u32::<{ DST + 12 }>(),
            head.u32::<PORTS>(),
            scope,
        ])
    }

    #[inline(always)]
    fn put_addresses<const N: usize>(head: &Headers<'_, Self, N>, flow: &Flow6) {
        put_address!(head, SRC, flow.src);
        put_address!(head, DST, flow.dst);
    }

    #[inline(always)]
    fn read(skb: &Skb, context: &mut PacketContext<Self>) -> Result<Verdict, Drop> {
        let len = skb.len();
        // Later stages write headers in place.
        let wanted = if len < HEADERS6 as u32 {
            len
        } else {
            HEADERS6 as u32
        };
        if !skb.pull(wanted) {
            return Err(Drop::Truncated);
        }
        let mut bytes = [0u8; HEADERS6];
        if !skb.load::<0, 0, L4, HEADERS6>(&mut bytes) {
            return unread(context, &bytes, len, Drop::Truncated);
        }
        let chain = match walk(skb, bytes[NEXT_HEADER]) {
            Ok(chain) => chain,
            Err(reason) => return unread(context, &bytes, len, reason),
        };
        let behind = L4 as u32 + chain.len;
        // Nothing there leaves zeros, which the lengths then contradict.
        if !skb.load_at::<L4, TCP, HEADERS6>(behind, &mut bytes)
            && !skb.load_at::<L4, UDP, HEADERS6>(behind, &mut bytes)
        {
            bytes[L4] = 0;
        }
        let packet = match parse6(&bytes, chain, len) {
            Ok(packet) => packet,
            Err(reason) => return unread(context, &bytes, len, reason),
        };
        context.packet = packet;
        if packet.protocol != protocol::ICMPV6 {
            return Ok(Verdict::OPEN);
        }
        if matches!(context.hook(), Hook::FromPod) && is_router_message(packet.icmp_type) {
            return Err(Drop::RouterMessage);
        }
        // Whether a pod may send it is judged next, by `stage::origin`.
        if !matches!(context.hook(), Hook::FromPod) && Self::is_of_link(&packet) {
            return Ok(Verdict::goes(NEXT));
        }
        Ok(Verdict::OPEN)
    }

    #[inline(always)]
    fn is_of_link(packet: &Packet<Self>) -> bool {
        packet.protocol == protocol::ICMPV6 && is_of_link(packet.icmp_type, packet.dst)
    }

    #[inline(always)]
    fn is_error(icmp_type: u8) -> bool {
        is_error6(icmp_type)
    }

    #[inline(always)]
    fn quoted(skb: &Skb) -> Option<Quoted<Self>> {
        if !skb.pull(QUOTED_END as u32) {
            return None;
        }
        let head = skb.headers::<Self, { QUOTED_END - L4 }>()?;
        let protocol = head.u8::<QUOTED_NEXT_HEADER>();
        let ported = protocol == protocol::TCP || protocol == protocol::UDP;
        if head.u8::<QUOTED>() >> 4 != 6 || !ported {
            return None;
        }
        Some(Quoted {
            src: address!(head, QUOTED_SRC),
            dst: address!(head, QUOTED_DST),
            ports: head.u32::<QUOTED_PORTS>(),
            protocol,
        })
    }

    #[inline(always)]
    fn rewrite_error(skb: &Skb, packet: &Packet<Self>, flow: &Flow6, own: bool) -> bool {
        let Some(head) = skb.headers::<Self, { QUOTED_END - L4 }>() else {
            return false;
        };
        // Inside; the sum covers the quoted addresses.
        put_address!(head, QUOTED_SRC, flow.dst);
        put_address!(head, QUOTED_DST, flow.src);
        head.set_u32::<QUOTED_PORTS>(flow.dport.be as u32 | (flow.sport.be as u32) << 16);
        let mut check = apply(head.u16::<ICMP_CHECK>(), flow.addr_delta);
        check = apply(check, flow.port_delta);
        // Outside, which it covers as well.
        check = apply(check, address_delta(packet.dst, flow.dst));
        put_address!(head, DST, flow.dst);
        if own {
            check = apply(check, address_delta(packet.src, flow.src));
            put_address!(head, SRC, flow.src);
        }
        head.set_u16::<ICMP_CHECK>(check);
        true
    }

    #[inline(always)]
    fn reset(skb: &Skb, context: &mut PacketContext<Self>) -> bool {
        let Some(bytes) = context.refusal.first_chunk_mut::<{ refuse::RESET6 }>() else {
            return false;
        };
        refuse::reset6(&context.packet, bytes);
        skb.resize(HEADERS6 as u32) && skb.store(ETHERNET as u32, bytes)
    }

    #[inline(always)]
    fn take_hop(skb: &Skb) -> bool {
        let Some(head) = skb.headers::<Self, 0>() else {
            return false;
        };
        let hops = head.u8::<HOP_LIMIT>();
        if hops <= 1 {
            return false;
        }
        let before = head.u16::<NEXT_HEADER>();
        let after = u16::from_ne_bytes([head.u8::<NEXT_HEADER>(), hops - 1]);
        head.set_u16::<NEXT_HEADER>(after);
        // No checksum in the packet makes up for it in that of the device.
        skb.add_to_sum(add(after, !before));
        true
    }

    #[inline(always)]
    fn icmp_error(skb: &Skb, context: &mut PacketContext<Self>, error: u32) -> bool {
        const QUOTE: usize = refuse::UNREACHABLE6 - refuse::QUOTED6;
        let Some(bytes) = context
            .refusal
            .first_chunk_mut::<{ refuse::UNREACHABLE6 }>()
        else {
            return false;
        };
        if !skb.load::<ETHERNET, QUOTE, { refuse::QUOTED6 }, _>(bytes) {
            return false;
        }
        refuse::icmp_error6(&context.packet, error, bytes);
        let len = (ETHERNET + refuse::UNREACHABLE6) as u32;
        skb.resize(len) && skb.store(ETHERNET as u32, bytes)
    }

    #[inline(always)]
    fn log(skb: &TcContext, packet: &Packet<Self>, reason: u32) {
        let words = packet.dst.words;
        let (first, last) = (words[0].get(), words[3].get());
        let port = packet.dport.get();
        if reason == Drop::NoRoute as u32 {
            warn!(skb, "no route to {:x}..{:x} port {}", first, last, port);
        } else if reason == Drop::NoFlowEntry as u32 {
            warn!(
                skb,
                "IPv6 flow table refuses {:x}..{:x} port {}", first, last, port
            );
        } else {
            warn!(
                skb,
                "packet to {:x}..{:x} port {} cannot be changed", first, last, port
            );
        }
    }
}

/// Over the extension headers.
#[inline(always)]
fn walk(skb: &Skb, protocol: u8) -> Result<Chain, Drop> {
    let mut chain = Chain::begin(protocol);
    let mut steps = 0;
    while chain.goes_on() {
        if steps == MOST {
            return Err(Drop::ExtensionHeaders);
        }
        let Some(head) = skb.load_value::<[u8; HEAD]>(L4 as u32 + chain.len) else {
            return Err(Drop::ExtensionHeaders);
        };
        chain = chain.step(head);
        steps += 1;
    }
    Ok(chain)
}

/// A packet that could not be read: dropped if a pod has sent it or it is for one. The host judges
/// all others, unless it takes their addresses for its own.
#[inline(always)]
fn unread(
    context: &PacketContext<Addr>,
    bytes: &[u8; HEADERS6],
    len: u32,
    reason: Drop,
) -> Result<Verdict, Drop> {
    let hook = context.hook();
    if matches!(hook, Hook::FromPod) {
        return Err(reason);
    }
    if len >= L4 as u32 {
        // A mapped address would be that of an IPv4 pod.
        let dst = addr6(bytes, DST);
        if dst.as_v4().is_none() && maps::local(dst).is_some() {
            return Err(reason);
        }
        let src = addr6(bytes, SRC);
        if matches!(hook, Hook::FromNetdev)
            && src.as_v4().is_none()
            && let Some(spoofed) = origin::spoofed(src)
        {
            return Err(spoofed);
        }
    }
    Ok(Verdict::goes(NEXT))
}
