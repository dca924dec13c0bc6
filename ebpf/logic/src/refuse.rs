//! The packet that tells a sender no: TCP RST (RFC 9293 3.5.2) or an ICMP error (RFC 792), written
//! from the packet that is refused.
//!
//! Called by `stage/service.rs`, which puts it in the refused packet's place.

use crate::checksum;
use crate::parse::{IPV4, IPV6, Packet, TCP, UDP, flag};
use ebpf_common::address::Address;
use ebpf_common::net::{Addr, Be32, protocol};

/// Bytes of IP header and TCP header of a reset.
pub const RESET: usize = IPV4 + TCP;
/// Bytes of IP and UDP header that an ICMP error quotes.
pub const QUOTED: usize = IPV4 + UDP;
/// Bytes of IP header, ICMP header and quotation.
pub const UNREACHABLE: usize = IPV4 + UDP + QUOTED;
/// The same of IPv6.
pub const RESET6: usize = IPV6 + TCP;
/// Bytes of IPv6 and UDP header that an ICMPv6 error quotes here: by them its receiver finds the
/// socket.
pub const QUOTED6: usize = IPV6 + UDP;
/// Bytes of IPv6 header, ICMPv6 header and quotation.
pub const UNREACHABLE6: usize = IPV6 + UDP + QUOTED6;

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
fn ip6_header<const N: usize>(out: &mut [u8; N], packet: &Packet<Addr>, protocol: u8) {
    let [high, low] = ((N - IPV6) as u16).to_be_bytes();
    out[0] = 0x60;
    (out[4], out[5]) = (high, low);
    out[6] = protocol;
    out[7] = TTL;
    put_address(out, 8, packet.dst);
    put_address(out, 24, packet.src);
}

#[inline(always)]
fn put_address<const N: usize>(out: &mut [u8; N], at: usize, address: Addr) {
    let mut word = 0;
    while word < 4 {
        let [a, b, c, d] = address.words[word].octets();
        let at = at + word * 4;
        (out[at], out[at + 1], out[at + 2], out[at + 3]) = (a, b, c, d);
        word += 1;
    }
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
    segment::<Be32, IPV4, RESET>(packet, out, 12);
}

/// The same of IPv6.
#[inline(always)]
pub fn reset6(packet: &Packet<Addr>, out: &mut [u8; RESET6]) {
    ip6_header(out, packet, protocol::TCP);
    segment::<Addr, IPV6, RESET6>(packet, out, 8);
}

/// The TCP header of a reset, at `AT`, behind an IP header with the addresses at `addresses`.
#[inline(always)]
fn segment<A: Address, const AT: usize, const N: usize>(
    packet: &Packet<A>,
    out: &mut [u8; N],
    addresses: usize,
) {
    let [a, b] = packet.dport.be.to_ne_bytes();
    (out[AT], out[AT + 1]) = (a, b);
    let [a, b] = packet.sport.be.to_ne_bytes();
    (out[AT + 2], out[AT + 3]) = (a, b);
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
    (out[AT + 4], out[AT + 5], out[AT + 6], out[AT + 7]) = (a, b, c, d);
    let [a, b, c, d] = acknowledgement.to_be_bytes();
    (out[AT + 8], out[AT + 9], out[AT + 10], out[AT + 11]) = (a, b, c, d);
    out[AT + 12] = 0x50;
    out[AT + 13] = flags;
    // Pseudo header: addresses, protocol, length.
    let mut total = sum(out, addresses);
    total += (protocol::TCP as u16).to_be() as u32 + (TCP as u16).to_be() as u32;
    let [first, second] = (!checksum::fold(total)).to_ne_bytes();
    (out[AT + 16], out[AT + 17]) = (first, second);
}

/// An ICMP error: no server has the port.
pub const PORT_UNREACHABLE: u32 = 0;
/// An ICMP error: the packet has no hop left.
pub const TIME_EXCEEDED: u32 = 1;
/// An ICMP error: no machine has the address.
pub const HOST_UNREACHABLE: u32 = 2;

/// The ICMP error that answers a packet, whose IP header and eight more bytes are in `out` already,
/// behind `IPV4 + UDP` bytes of zeros. It comes from the packet's destination.
#[inline(always)]
pub fn icmp_error(packet: &Packet<Be32>, error: u32, out: &mut [u8; UNREACHABLE]) {
    ip_header(out, packet, protocol::ICMP);
    (out[20], out[21]) = match error {
        // In transit.
        TIME_EXCEEDED => (11, 0),
        HOST_UNREACHABLE => (3, 1),
        _ => (3, 3),
    };
    let [first, second] = (!checksum::fold(sum(out, IPV4))).to_ne_bytes();
    (out[22], out[23]) = (first, second);
}

/// The ICMPv6 error, as above, behind `IPV6 + UDP` bytes of zeros.
#[inline(always)]
pub fn icmp_error6(packet: &Packet<Addr>, error: u32, out: &mut [u8; UNREACHABLE6]) {
    ip6_header(out, packet, protocol::ICMPV6);
    // RFC 4443, 3.1 and 3.3.
    (out[40], out[41]) = match error {
        TIME_EXCEEDED => (3, 0),
        HOST_UNREACHABLE => (1, 3),
        _ => (1, 4),
    };
    let mut total = sum(out, 8);
    let length = (UNREACHABLE6 - IPV6) as u16;
    total += (protocol::ICMPV6 as u16).to_be() as u32 + length.to_be() as u32;
    let [first, second] = (!checksum::fold(total)).to_ne_bytes();
    (out[42], out[43]) = (first, second);
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
        icmp_error(&packet(protocol::UDP, 0), PORT_UNREACHABLE, &mut out);
        assert!(is_valid(&[&out[..20]]) && is_valid(&[&out[20..]]));
        assert_eq!(out[20..22], [3, 3]);
        assert_eq!(out[28..], quoted);
        assert_eq!(u16::from_be_bytes([out[2], out[3]]), 56);
    }

    fn packet6(protocol: u8, flags: u8) -> Packet<Addr> {
        let like = packet(protocol, flags);
        let addr = |last: u8| {
            let mut octets = [0; 16];
            (octets[0], octets[1], octets[15]) = (0xfd, 0xff, last);
            Addr::from_octets(octets)
        };
        Packet {
            src: addr(5),
            dst: addr(7),
            sport: like.sport,
            dport: like.dport,
            protocol,
            flags,
            fragment: like.fragment,
            icmp_type: 0,
            sequence: like.sequence,
            acknowledgement: like.acknowledgement,
            payload: like.payload,
        }
    }

    #[test]
    fn ipv6_is_told_too() {
        let mut out = [0; RESET6];
        reset6(&packet6(protocol::TCP, flag::ACK), &mut out);
        assert_eq!((out[0], out[6], out[23], out[39]), (0x60, 6, 7, 5));
        assert_eq!(u16::from_be_bytes([out[4], out[5]]), 20);
        assert_eq!((out[47], out[53]), (77, flag::RST));
        assert!(is_valid(&[&out[8..], &[0, 6, 0, 20]]));
        let mut out = [0; UNREACHABLE6];
        out[48] = 0x60;
        icmp_error6(&packet6(protocol::UDP, 0), PORT_UNREACHABLE, &mut out);
        assert_eq!(out[40..42], [1, 4]);
        assert!(is_valid(&[&out[8..], &[0, 58, 0, 56]]));
    }
}
