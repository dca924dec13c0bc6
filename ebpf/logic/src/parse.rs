//! Which packet this is: bounds and lengths over the bytes of its headers.
//!
//! Not the fast path's parser, which only asks whether a packet is the plain case and hands on
//! what is not. Called by `family/v4.rs`, which copies the headers out of the packet.

use crate::extension::Chain;
pub use crate::extension::Fragment;
use ebpf_common::address::Address;
use ebpf_common::drop::Drop;
use ebpf_common::net::{Addr, Be16, Be32, protocol};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Bytes of a TCP header without options.
pub const TCP: usize = 20;
/// Bytes of a UDP or ICMP header.
pub const UDP: usize = 8;
/// Offset of what follows the IP header.
pub const L4: usize = ETHERNET + IPV4;
/// Bytes that `parse` looks at.
pub const HEADERS: usize = L4 + TCP;
/// Bytes of an IPv6 header.
pub const IPV6: usize = 40;
/// Offset of what follows the IPv6 header.
pub const L4_6: usize = ETHERNET + IPV6;
/// Bytes that `parse6` looks at: the headers as they are without extension headers in between.
pub const HEADERS6: usize = L4_6 + TCP;

/// EtherType of IPv4, host order.
const TYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP, host order.
const TYPE_ARP: u16 = 0x0806;

/// TCP flags (RFC 9293 3.1).
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number is valid.
    pub const ACK: u8 = 0x10;
}

/// A packet that is what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Packet<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port; 0 without TCP or UDP and in later fragments.
    pub sport: Be16,
    /// Destination port, likewise.
    pub dport: Be16,
    /// IP protocol.
    pub protocol: u8,
    /// `flag::*`; 0 without TCP.
    pub flags: u8,
    /// Part of a datagram.
    pub fragment: Fragment,
    /// Type of an ICMP message; 0 without ICMP, which is that of an echo reply as well.
    pub icmp_type: u8,
    /// TCP sequence number, host order.
    pub sequence: u32,
    /// TCP acknowledgement number, host order.
    pub acknowledgement: u32,
    /// Bytes behind the TCP header.
    pub payload: u32,
}

impl<A: Address> Packet<A> {
    /// Whether it has ports that can be translated.
    #[inline(always)]
    pub const fn has_ports(&self) -> bool {
        matches!(self.fragment, Fragment::Whole)
            && (self.protocol == protocol::TCP || self.protocol == protocol::UDP)
    }

    /// Whether it opens a TCP connection.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.protocol == protocol::TCP && self.flags & (flag::SYN | flag::ACK) == flag::SYN
    }
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// Not ours to judge: the host answers for its addresses.
    Arp,
    /// An IPv4 packet.
    Ipv4(Packet<Be32>),
}

#[inline(always)]
const fn be16(high: u8, low: u8) -> u16 {
    u16::from_be_bytes([high, low])
}

/// Reads the headers. `bytes` is the start of the frame with zeros where the frame ends
/// earlier; `len` is the frame's true length.
///
/// # Errors
/// The reason for which a packet like this is dropped.
#[inline(always)]
pub const fn parse(bytes: &[u8; HEADERS], len: u32) -> Result<Parsed, Drop> {
    let b = bytes;
    if len < ETHERNET as u32 {
        return Err(Drop::Truncated);
    }
    match be16(b[12], b[13]) {
        TYPE_IPV4 => {}
        TYPE_ARP => return Ok(Parsed::Arp),
        _ => return Err(Drop::NotIp),
    }
    if len < L4 as u32 {
        return Err(Drop::Truncated);
    }
    let header = ((b[14] & 0x0f) as u32) * 4;
    if b[14] >> 4 != 4 || header < IPV4 as u32 {
        return Err(Drop::BadIpHeader);
    }
    let total = be16(b[16], b[17]) as u32;
    if total < header || total > len - ETHERNET as u32 {
        return Err(Drop::BadIpLength);
    }
    if header > IPV4 as u32 {
        return Err(Drop::IpOptions);
    }
    let fragment = be16(b[20], b[21]);
    let packet = Packet {
        src: Be32::from_octets([b[26], b[27], b[28], b[29]]),
        dst: Be32::from_octets([b[30], b[31], b[32], b[33]]),
        sport: Be16::new(0),
        dport: Be16::new(0),
        protocol: b[23],
        flags: 0,
        fragment: if fragment & 0x1fff != 0 {
            Fragment::Later
        } else if fragment & 0x2000 != 0 {
            Fragment::First
        } else {
            Fragment::Whole
        },
        icmp_type: 0,
        sequence: 0,
        acknowledgement: 0,
        payload: 0,
    };
    match transport::<Be32, L4, HEADERS>(b, total - IPV4 as u32, packet) {
        Ok(packet) => Ok(Parsed::Ipv4(packet)),
        Err(reason) => Err(reason),
    }
}

/// The same of an IPv6 packet, which its EtherType says that it is. `chain` has walked over its
/// extension headers; what is behind them stands in `bytes` directly behind the IPv6 header.
///
/// # Errors
/// As `parse`.
#[inline(always)]
pub const fn parse6(bytes: &[u8; HEADERS6], chain: Chain, len: u32) -> Result<Packet<Addr>, Drop> {
    let b = bytes;
    if len < L4_6 as u32 {
        return Err(Drop::Truncated);
    }
    if b[14] >> 4 != 6 {
        return Err(Drop::BadIpHeader);
    }
    let behind = be16(b[18], b[19]) as u32;
    if behind > len - L4_6 as u32 || chain.len > behind {
        return Err(Drop::BadIpLength);
    }
    let packet = Packet {
        src: addr6(b, 22),
        dst: addr6(b, 38),
        sport: Be16::new(0),
        dport: Be16::new(0),
        protocol: chain.protocol,
        flags: 0,
        fragment: chain.fragment,
        icmp_type: 0,
        sequence: 0,
        acknowledgement: 0,
        payload: 0,
    };
    // Such an address is one of IPv4 in the maps that both families share.
    if packet.src.as_v4().is_some() || packet.dst.as_v4().is_some() {
        return Err(Drop::MappedAddress);
    }
    transport::<Addr, L4_6, HEADERS6>(b, behind - chain.len, packet)
}

/// The IPv6 address at `at`.
#[inline(always)]
pub const fn addr6(b: &[u8; HEADERS6], at: usize) -> Addr {
    Addr {
        words: [
            Be32::from_octets([b[at], b[at + 1], b[at + 2], b[at + 3]]),
            Be32::from_octets([b[at + 4], b[at + 5], b[at + 6], b[at + 7]]),
            Be32::from_octets([b[at + 8], b[at + 9], b[at + 10], b[at + 11]]),
            Be32::from_octets([b[at + 12], b[at + 13], b[at + 14], b[at + 15]]),
        ],
    }
}

/// Reads what is behind the IP header: `behind` bytes of it, at `AT` in `b`.
#[inline(always)]
const fn transport<A: Address, const AT: usize, const N: usize>(
    b: &[u8; N],
    behind: u32,
    mut packet: Packet<A>,
) -> Result<Packet<A>, Drop> {
    if matches!(packet.fragment, Fragment::Later) {
        return Ok(packet);
    }
    if packet.protocol == A::ICMP {
        if behind < UDP as u32 {
            return Err(Drop::Truncated);
        }
        packet.icmp_type = b[AT];
        return Ok(packet);
    }
    match packet.protocol {
        protocol::TCP => {
            if behind < TCP as u32 {
                return Err(Drop::Truncated);
            }
            let offset = ((b[AT + 12] >> 4) as u32) * 4;
            if offset < TCP as u32 || offset > behind {
                return Err(Drop::BadTcpHeader);
            }
            packet.flags = b[AT + 13];
            if !sensible(packet.flags) {
                return Err(Drop::BadTcpFlags);
            }
            packet.sequence = u32::from_be_bytes([b[AT + 4], b[AT + 5], b[AT + 6], b[AT + 7]]);
            packet.acknowledgement =
                u32::from_be_bytes([b[AT + 8], b[AT + 9], b[AT + 10], b[AT + 11]]);
            packet.payload = behind - offset;
        }
        protocol::UDP => {
            if behind < UDP as u32 {
                return Err(Drop::Truncated);
            }
            let length = be16(b[AT + 4], b[AT + 5]) as u32;
            let fits = matches!(packet.fragment, Fragment::First) || length <= behind;
            if length < UDP as u32 || !fits {
                return Err(Drop::BadUdpLength);
            }
        }
        _ => return Ok(packet),
    }
    packet.sport = Be16 {
        be: u16::from_ne_bytes([b[AT], b[AT + 1]]),
    };
    packet.dport = Be16 {
        be: u16::from_ne_bytes([b[AT + 2], b[AT + 3]]),
    };
    Ok(packet)
}

/// Whether any TCP sends such flags: one of SYN, RST, ACK (FIN comes with ACK) at least, and
/// SYN neither with FIN nor with RST.
#[inline(always)]
const fn sensible(flags: u8) -> bool {
    if flags & flag::SYN != 0 {
        flags & (flag::FIN | flag::RST) == 0
    } else {
        flags & (flag::RST | flag::ACK) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(flags: u8) -> [u8; HEADERS] {
        let mut b = [0; HEADERS];
        b[12] = 8;
        b[14] = 0x45;
        b[17] = 40;
        b[23] = protocol::TCP;
        b[26..30].copy_from_slice(&[10, 0, 0, 1]);
        b[30..34].copy_from_slice(&[10, 0, 0, 2]);
        b[34..38].copy_from_slice(&[0x12, 0x34, 0, 80]);
        b[46] = 0x50;
        b[47] = flags;
        b
    }

    fn udp() -> [u8; HEADERS] {
        let mut b = tcp(0);
        b[17] = 28;
        b[23] = protocol::UDP;
        b[39] = 8;
        b[46] = 0;
        b
    }

    #[test]
    fn a_plain_packet_is_read() {
        let Ok(Parsed::Ipv4(packet)) = parse(&tcp(flag::SYN), 54) else {
            panic!("not read");
        };
        assert_eq!(packet.src.octets(), [10, 0, 0, 1]);
        assert_eq!((packet.sport.get(), packet.dport.get()), (0x1234, 80));
        assert!(packet.opens() && packet.has_ports());
        assert!(parse(&udp(), 42).is_ok());
    }

    /// One change to a good packet each, and what comes of it.
    #[test]
    fn malformed_packets_have_their_reason() {
        type Row = (
            &'static str,
            [u8; HEADERS],
            fn(&mut [u8; HEADERS]),
            u32,
            Drop,
        );
        let rows: [Row; 15] = [
            ("no Ethernet header", tcp(2), |_| (), 13, Drop::Truncated),
            (
                "IPv6",
                tcp(2),
                |b| (b[12], b[13]) = (0x86, 0xdd),
                54,
                Drop::NotIp,
            ),
            ("half an IP header", tcp(2), |_| (), 33, Drop::Truncated),
            ("version 6", tcp(2), |b| b[14] = 0x65, 54, Drop::BadIpHeader),
            (
                "header of 16 bytes",
                tcp(2),
                |b| b[14] = 0x44,
                54,
                Drop::BadIpHeader,
            ),
            (
                "total under header",
                tcp(2),
                |b| b[17] = 19,
                54,
                Drop::BadIpLength,
            ),
            (
                "total over frame",
                tcp(2),
                |b| b[17] = 41,
                54,
                Drop::BadIpLength,
            ),
            ("options", tcp(2), |b| b[14] = 0x46, 54, Drop::IpOptions),
            (
                "half a TCP header",
                tcp(2),
                |b| b[17] = 39,
                54,
                Drop::Truncated,
            ),
            (
                "TCP offset 4",
                tcp(2),
                |b| b[46] = 0x40,
                54,
                Drop::BadTcpHeader,
            ),
            (
                "TCP offset over end",
                tcp(2),
                |b| b[46] = 0x60,
                54,
                Drop::BadTcpHeader,
            ),
            ("SYN and FIN", tcp(3), |_| (), 54, Drop::BadTcpFlags),
            ("no flag", tcp(0), |_| (), 54, Drop::BadTcpFlags),
            ("UDP over IP", udp(), |b| b[39] = 9, 42, Drop::BadUdpLength),
            ("UDP under 8", udp(), |b| b[39] = 7, 42, Drop::BadUdpLength),
        ];
        for (what, mut bytes, change, len, reason) in rows {
            assert!(parse(&bytes, 54).is_ok() || bytes[47] != 2, "{what}");
            change(&mut bytes);
            assert_eq!(parse(&bytes, len), Err(reason), "{what}");
        }
    }

    #[test]
    fn fragments_have_ports_only_at_their_beginning() {
        let mut first = udp();
        first[20] = 0x20;
        let Ok(Parsed::Ipv4(packet)) = parse(&first, 42) else {
            panic!("not read");
        };
        assert_eq!((packet.fragment, packet.dport.get()), (Fragment::First, 80));
        let mut later = udp();
        later[21] = 1;
        let Ok(Parsed::Ipv4(packet)) = parse(&later, 42) else {
            panic!("not read");
        };
        assert_eq!((packet.fragment, packet.dport.get()), (Fragment::Later, 0));
        assert!(!packet.has_ports());
    }

    fn tcp6(flags: u8) -> [u8; HEADERS6] {
        let mut b = [0; HEADERS6];
        (b[12], b[13]) = (0x86, 0xdd);
        b[14] = 0x60;
        b[19] = 20;
        b[20] = protocol::TCP;
        (b[22], b[37], b[38], b[53]) = (0xfd, 1, 0xfd, 2);
        b[54..58].copy_from_slice(&[0x12, 0x34, 0, 80]);
        b[66] = 0x50;
        b[67] = flags;
        b
    }

    const PLAIN: Chain = Chain::begin(protocol::TCP);

    #[test]
    fn a_plain_ipv6_packet_is_read() {
        let packet = parse6(&tcp6(flag::SYN), PLAIN, 74).expect("read");
        assert_eq!(packet.src.octets()[0], 0xfd);
        assert_eq!((packet.src.octets()[15], packet.dst.octets()[15]), (1, 2));
        assert_eq!((packet.sport.get(), packet.dport.get()), (0x1234, 80));
        assert!(packet.opens() && packet.has_ports());
    }

    #[test]
    fn malformed_ipv6_packets_have_their_reason() {
        type Row = (&'static str, fn(&mut [u8; HEADERS6]), Chain, u32, Drop);
        let mapped = |b: &mut [u8; HEADERS6]| {
            b[22] = 0;
            (b[32], b[33]) = (0xff, 0xff);
        };
        let behind = Chain { len: 24, ..PLAIN };
        let rows: [Row; 8] = [
            ("half a header", |_| (), PLAIN, 53, Drop::Truncated),
            ("version 4", |b| b[14] = 0x45, PLAIN, 74, Drop::BadIpHeader),
            (
                "longer than the frame",
                |b| b[19] = 21,
                PLAIN,
                74,
                Drop::BadIpLength,
            ),
            (
                "extensions longer than it",
                |_| (),
                behind,
                98,
                Drop::BadIpLength,
            ),
            (
                "half a TCP header",
                |b| b[19] = 19,
                PLAIN,
                74,
                Drop::Truncated,
            ),
            (
                "TCP offset 4",
                |b| b[66] = 0x40,
                PLAIN,
                74,
                Drop::BadTcpHeader,
            ),
            ("SYN and FIN", |b| b[67] = 3, PLAIN, 74, Drop::BadTcpFlags),
            ("a mapped source", mapped, PLAIN, 74, Drop::MappedAddress),
        ];
        for (what, change, chain, len, reason) in rows {
            let mut bytes = tcp6(flag::SYN);
            change(&mut bytes);
            assert_eq!(parse6(&bytes, chain, len), Err(reason), "{what}");
        }
    }
}
