//! One file per attach point, and the slow path that they share.

pub(crate) mod finish;
pub(crate) mod flow_sweep;
pub(crate) mod tc_from_netdev;
pub(crate) mod tc_from_pod;
pub(crate) mod tc_to_netdev;
pub(crate) mod tc_to_pod;

use crate::flow::{Verdict, key_of};
use crate::packet::Skb;
use crate::stage::{conntrack, origin, parse, route, send, service, transit};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_logic::parse::{Packet, Parsed};

/// Decides a packet. Stages in order; each either goes on or ends it with a reason.
#[inline(always)]
pub(crate) fn slow_path(skb: &Skb, hook: u32) -> i32 {
    let Some(hook) = Hook::from_u8(hook as u8) else {
        return crate::packet::NEXT;
    };
    let verdict = match parse::headers(skb) {
        Err(reason) => Verdict::Dropped(reason),
        Ok(Parsed::Arp) => Verdict::Pass,
        Ok(Parsed::Ipv4(packet)) => {
            let verdict = match decide(skb, hook, &packet) {
                Ok(verdict) => verdict,
                Err(reason) => Verdict::Dropped(reason),
            };
            return finish::finish(skb, hook, Some(&packet), verdict);
        }
    };
    finish::finish(skb, hook, None, verdict)
}

#[inline(always)]
fn decide(skb: &Skb, hook: Hook, packet: &Packet) -> Result<Verdict, Drop> {
    let origin = origin::of(skb, hook, packet)?;
    if !packet.has_ports() {
        return transit::carry(skb, &origin, packet);
    }
    let key = key_of(packet, origin.from);
    if let Some(verdict) = conntrack::known(skb, &origin, packet, &key)? {
        return Ok(verdict);
    }
    let target = match service::target(&origin, packet, &key) {
        Ok(target) => target,
        Err(reason) => return service::refuse(skb, &origin, packet, reason),
    };
    let way = route::to(skb, &origin, packet.src, &target)?;
    let flow = conntrack::begin(skb, &origin, packet, &key, &target, &way)?;
    send::translated(skb, &key, &flow)
}
