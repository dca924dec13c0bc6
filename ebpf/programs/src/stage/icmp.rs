//! ICMP errors belong to the flow that they quote: translated outside and inside, so that path
//! MTU discovery and refused datagrams work through every address.
//!
//! The quotation is a packet that went the other way, so its tuple turned round is the key of a
//! flow of this hook: the one whose packets get the same translation that the error needs.

use crate::flow::{PacketContext, Verdict};
use crate::maps;
use crate::packet::Skb;
use crate::stage::send;
use ebpf_common::conntrack::FlowKey4;
use ebpf_common::drop::Drop;
use ebpf_common::net::{Be16, Be32, protocol};
use ebpf_logic::checksum::{apply, word_delta};
use ebpf_logic::icmp::is_error;

/// Offsets in the frame: outer header, ICMP header, quoted IP header, quoted ports.
const OUTER_CHECK: usize = 24;
const OUTER_SRC: usize = 26;
const OUTER_DST: usize = 30;
const CHECK: usize = 36;
const QUOTED: usize = 42;
const QUOTED_FRAGMENT: usize = 48;
const QUOTED_PROTOCOL: usize = 51;
const QUOTED_CHECK: usize = 52;
const QUOTED_SRC: usize = 54;
const QUOTED_DST: usize = 58;
const QUOTED_PORTS: usize = 62;
const END: usize = 66;

/// Sends an error as the flow that it is about, translated as that is; an error about no flow is
/// left to the next stage.
#[inline(always)]
pub(crate) fn translate(skb: &Skb, context: &mut PacketContext) -> Result<Verdict, Drop> {
    let packet = &context.packet;
    if packet.protocol != protocol::ICMP || !is_error(packet.icmp_type) || !skb.pull(END as u32) {
        return Ok(Verdict::OPEN);
    }
    let Some(head) = skb.headers::<END>() else {
        return Ok(Verdict::OPEN);
    };
    let quoted_protocol = head.u8::<QUOTED_PROTOCOL>();
    let ported = quoted_protocol == protocol::TCP || quoted_protocol == protocol::UDP;
    let later = head.u16::<QUOTED_FRAGMENT>() & 0x1fffu16.to_be() != 0;
    if head.u8::<QUOTED>() != 0x45 || !ported || later {
        return Ok(Verdict::OPEN);
    }
    let ports = head.u32::<QUOTED_PORTS>();
    let key = FlowKey4 {
        src: Be32 {
            be: head.u32::<QUOTED_DST>(),
        },
        dst: Be32 {
            be: head.u32::<QUOTED_SRC>(),
        },
        sport: Be16 {
            be: (ports >> 16) as u16,
        },
        dport: Be16 { be: ports as u16 },
        scope: FlowKey4::scope(context.key.from(), quoted_protocol),
    };
    let Some(flow) = maps::flow(&key) else {
        return Ok(Verdict::OPEN);
    };
    if !flow.translates() {
        // Unchanged, but by the flow's route: a router's address says nothing about it.
        let to_its_end = packet.dst.be == flow.dst.be;
        return Ok(if to_its_end {
            Verdict::goes(send::out(skb, flow))
        } else {
            Verdict::OPEN
        });
    }
    // Inside: the header's own sum stays what it was, so that only the ports move the ICMP sum.
    head.set_u32::<QUOTED_SRC>(flow.dst.be);
    head.set_u32::<QUOTED_DST>(flow.src.be);
    head.set_u16::<QUOTED_CHECK>(apply(head.u16::<QUOTED_CHECK>(), flow.addr_delta));
    head.set_u32::<QUOTED_PORTS>(flow.dport.be as u32 | (flow.sport.be as u32) << 16);
    head.set_u16::<CHECK>(apply(head.u16::<CHECK>(), flow.port_delta));
    // Outside: a router that sent the error keeps its address, the flow's end does not.
    let mut check = apply(head.u16::<OUTER_CHECK>(), word_delta(packet.dst, flow.dst));
    head.set_u32::<OUTER_DST>(flow.dst.be);
    if packet.src.be == key.src.be {
        check = apply(check, word_delta(packet.src, flow.src));
        head.set_u32::<OUTER_SRC>(flow.src.be);
    }
    head.set_u16::<OUTER_CHECK>(check);
    Ok(Verdict::goes(send::out(skb, flow)))
}
