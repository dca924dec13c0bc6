//! Which packet this is: bounds and lengths over the bytes of its headers.
//!
//! Not the fast path's parser, which only asks whether a packet is the plain case and hands on
//! what is not. Called by `family/v4.rs`, which copies the headers out of the packet.

use ebpf_common::address::Address;
use ebpf_common::drop::Drop;
use ebpf_common::net::{Be16, Be32, protocol};

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

/// What part of a datagram the packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// Its beginning, with the ports.
    First,
    /// Something behind that, without ports.
    Later,
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
    let mut packet = Packet {
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
    if matches!(packet.fragment, Fragment::Later) {
        return Ok(Parsed::Ipv4(packet));
    }
    let behind = total - IPV4 as u32;
    match packet.protocol {
        protocol::TCP => {
            if behind < TCP as u32 {
                return Err(Drop::Truncated);
            }
            let offset = ((b[46] >> 4) as u32) * 4;
            if offset < TCP as u32 || offset > behind {
                return Err(Drop::BadTcpHeader);
            }
            packet.flags = b[47];
            if !sensible(packet.flags) {
                return Err(Drop::BadTcpFlags);
            }
            packet.sequence = u32::from_be_bytes([b[38], b[39], b[40], b[41]]);
            packet.acknowledgement = u32::from_be_bytes([b[42], b[43], b[44], b[45]]);
            packet.payload = behind - offset;
        }
        protocol::UDP => {
            if behind < UDP as u32 {
                return Err(Drop::Truncated);
            }
            let length = be16(b[38], b[39]) as u32;
            let fits = if matches!(packet.fragment, Fragment::Whole) {
                length <= behind
            } else {
                true
            };
            if length < UDP as u32 || !fits {
                return Err(Drop::BadUdpLength);
            }
        }
        protocol::ICMP => {
            if behind < UDP as u32 {
                return Err(Drop::Truncated);
            }
            packet.icmp_type = b[34];
            return Ok(Parsed::Ipv4(packet));
        }
        _ => return Ok(Parsed::Ipv4(packet)),
    }
    packet.sport = Be16 {
        be: u16::from_ne_bytes([b[34], b[35]]),
    };
    packet.dport = Be16 {
        be: u16::from_ne_bytes([b[36], b[37]]),
    };
    Ok(Parsed::Ipv4(packet))
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
}
