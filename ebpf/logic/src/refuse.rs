//! The packet that tells a sender no: TCP RST (RFC 9293 3.5.2) or ICMP port unreachable
//! (RFC 792), written from the packet that is refused.
//!
//! Called by `stage/service.rs`, which puts it in the refused packet's place.

use crate::checksum;
use crate::parse::{IPV4, Packet, TCP, UDP, flag};
use ebpf_common::net::{Be32, protocol};

/// Bytes of IP header and TCP header of a reset.
pub const RESET: usize = IPV4 + TCP;
/// Bytes of IP and UDP header that an ICMP error quotes.
pub const QUOTED: usize = IPV4 + UDP;
/// Bytes of IP header, ICMP header and quotation.
pub const UNREACHABLE: usize = IPV4 + UDP + QUOTED;

const TTL: u8 = 64;

/// Ones' complement sum of all bytes of an array of even length; the loop is over a constant
/// so that it unrolls without bounds.
#[inline(always)]
fn sum<const N: usize>(bytes: &[u8; N], from: usize) -> u32 {
    let mut total = 0u32;
    let mut at = from;
    while at + 1 < N {
        total += u16::from_ne_bytes([bytes[at], bytes[at + 1]]) as u32;
        at += 2;
    }
    total
}

#[inline(always)]
fn ip_header<const N: usize>(out: &mut [u8; N], packet: &Packet<Be32>, protocol: u8) {
    let [total_high, total_low] = (N as u16).to_be_bytes();
    out[0] = 0x45;
    out[2] = total_high;
    out[3] = total_low;
    // Do not fragment.
    out[6] = 0x40;
    out[8] = TTL;
    out[9] = protocol;
    let [a, b, c, d] = packet.dst.octets();
    (out[12], out[13], out[14], out[15]) = (a, b, c, d);
    let [a, b, c, d] = packet.src.octets();
    (out[16], out[17], out[18], out[19]) = (a, b, c, d);
    let mut total = 0u32;
    let mut at = 0;
    while at < IPV4 {
        total += u16::from_ne_bytes([out[at], out[at + 1]]) as u32;
        at += 2;
    }
    let [first, second] = (!checksum::fold(total)).to_ne_bytes();
    (out[10], out[11]) = (first, second);
}

/// The reset that answers a TCP packet, into zeros; its receiver drops the connection at once.
#[inline(always)]
pub fn reset(packet: &Packet<Be32>, out: &mut [u8; RESET]) {
    ip_header(out, packet, protocol::TCP);
    let [a, b] = packet.dport.be.to_ne_bytes();
    (out[20], out[21]) = (a, b);
    let [a, b] = packet.sport.be.to_ne_bytes();
    (out[22], out[23]) = (a, b);
    // What acknowledges nothing is answered by what acknowledges it, else by a sequence number
    // that the sender expects.
    let (sequence, acknowledgement, flags) = if packet.flags & flag::ACK != 0 {
        (packet.acknowledgement, 0, flag::RST)
    } else {
        let length = packet.payload
            + (packet.flags & flag::SYN != 0) as u32
            + (packet.flags & flag::FIN != 0) as u32;
        (
            0,
            packet.sequence.wrapping_add(length),
            flag::RST | flag::ACK,
        )
    };
    let [a, b, c, d] = sequence.to_be_bytes();
    (out[24], out[25], out[26], out[27]) = (a, b, c, d);
    let [a, b, c, d] = acknowledgement.to_be_bytes();
    (out[28], out[29], out[30], out[31]) = (a, b, c, d);
    out[32] = 0x50;
    out[33] = flags;
    // Pseudo header: addresses, protocol, length; the addresses stand at 12..20.
    let mut total = sum(out, 12);
    total += (protocol::TCP as u16).to_be() as u32 + (TCP as u16).to_be() as u32;
    let [first, second] = (!checksum::fold(total)).to_ne_bytes();
    (out[36], out[37]) = (first, second);
}

/// The ICMP error that answers a UDP packet, whose IP and UDP headers are in `out` already,
/// behind `IPV4 + UDP` bytes of zeros.
#[inline(always)]
pub fn port_unreachable(packet: &Packet<Be32>, out: &mut [u8; UNREACHABLE]) {
    ip_header(out, packet, protocol::ICMP);
    // Destination unreachable, port.
    (out[20], out[21]) = (3, 3);
    let [first, second] = (!checksum::fold(sum(out, IPV4))).to_ne_bytes();
    (out[22], out[23]) = (first, second);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::Fragment;
    use ebpf_common::net::Be16;

    fn packet(protocol: u8, flags: u8) -> Packet<Be32> {
        Packet {
            src: Be32::from_octets([10, 244, 1, 5]),
            dst: Be32::from_octets([10, 96, 0, 7]),
            sport: Be16::new(40_000),
            dport: Be16::new(80),
            protocol,
            flags,
            fragment: Fragment::Whole,
            icmp_type: 0,
            sequence: u32::MAX,
            acknowledgement: 77,
            payload: 3,
        }
    }

    fn reset_of(packet: &Packet<Be32>) -> [u8; RESET] {
        let mut out = [0; RESET];
        reset(packet, &mut out);
        out
    }

    /// A sum over bytes that include their checksum is zero.
    fn is_valid(parts: &[&[u8]]) -> bool {
        let total = parts.iter().map(|part| checksum::sum(part) as u32).sum();
        checksum::fold(total) == 0xffff
    }

    #[test]
    fn a_syn_is_refused_by_acknowledging_it() {
        let mut syn = packet(protocol::TCP, flag::SYN);
        syn.payload = 0;
        let out = reset_of(&syn);
        assert!(is_valid(&[&out[..20]]));
        assert!(is_valid(&[&out[12..], &[0, 6, 0, 20]]));
        assert_eq!(out[12..20], [10, 96, 0, 7, 10, 244, 1, 5]);
        assert_eq!(out[20..24], [0, 80, 0x9c, 0x40]);
        assert_eq!(out[24..32], [0; 8], "the acknowledgement wraps to 0");
        assert_eq!(out[33], flag::RST | flag::ACK);
    }

    #[test]
    fn an_established_sender_is_reset_where_it_reads() {
        let out = reset_of(&packet(protocol::TCP, flag::ACK));
        assert_eq!(out[24..28], [0, 0, 0, 77]);
        assert_eq!(out[33], flag::RST);
        assert!(is_valid(&[&out[12..], &[0, 6, 0, 20]]));
    }

    #[test]
    fn udp_is_told_by_icmp() {
        let mut out = [0; UNREACHABLE];
        let mut quoted = [0; QUOTED];
        for (at, byte) in quoted.iter_mut().enumerate() {
            *byte = at as u8;
        }
        out[28..].copy_from_slice(&quoted);
        port_unreachable(&packet(protocol::UDP, 0), &mut out);
        assert!(is_valid(&[&out[..20]]) && is_valid(&[&out[20..]]));
        assert_eq!(out[20..22], [3, 3]);
        assert_eq!(out[28..], quoted);
        assert_eq!(u16::from_be_bytes([out[2], out[3]]), 56);
    }
}
