//! Copies the headers out of the packet and has them judged.

use crate::packet::Skb;
use ebpf_common::drop::Drop;
use ebpf_logic::parse::{HEADERS, L4, Parsed, TCP, UDP, parse};

/// Reads a packet of any length.
#[inline(always)]
pub(crate) fn headers(skb: &Skb) -> Result<Parsed, Drop> {
    let len = skb.len();
    // What is written later is written in place.
    let wanted = if len < HEADERS as u32 {
        len
    } else {
        HEADERS as u32
    };
    if !skb.pull(wanted) {
        return Err(Drop::Truncated);
    }
    let mut bytes = [0u8; HEADERS];
    let mut head = [0u8; L4];
    if skb.load(0, &mut head) {
        let mut at = 0;
        while at < L4 {
            bytes[at] = head[at];
            at += 1;
        }
        let mut tcp = [0u8; TCP];
        let mut udp = [0u8; UDP];
        if skb.load(L4 as u32, &mut tcp) {
            let mut at = 0;
            while at < TCP {
                bytes[L4 + at] = tcp[at];
                at += 1;
            }
        } else if skb.load(L4 as u32, &mut udp) {
            let mut at = 0;
            while at < UDP {
                bytes[L4 + at] = udp[at];
                at += 1;
            }
        }
    } else {
        let mut ethernet = [0u8; 14];
        if skb.load(0, &mut ethernet) {
            bytes[12] = ethernet[12];
            bytes[13] = ethernet[13];
        }
    }
    parse(&bytes, len)
}
