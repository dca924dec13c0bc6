//! Packets of IPv6, as `packet` has those of IPv4: built by etherparse, judged by sums from scratch.

use ebpf_common::net::protocol;
use ebpf_logic::checksum::{add, sum};
use ebpf_logic::parse::flag;
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{Icmpv6Type, PacketBuilder, TcpHeader};
use std::net::{Ipv6Addr, SocketAddrV6};

/// A place on the network.
pub type At6 = SocketAddrV6;

/// Offset of what follows an IPv6 header without extension headers.
pub const L4: usize = 54;

/// An address and a port.
pub fn at6(addr: Ipv6Addr, port: u16) -> At6 {
    SocketAddrV6::new(addr, port, 0, 0)
}

fn ip(from: Ipv6Addr, to: Ipv6Addr) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv6(
        from.octets(),
        to.octets(),
        255,
    )
}

/// A TCP segment with these flags.
pub fn tcp6(from: At6, to: At6, flags: u8, payload: &[u8]) -> Vec<u8> {
    let header = TcpHeader {
        syn: flags & flag::SYN != 0,
        ack: flags & flag::ACK != 0,
        fin: flags & flag::FIN != 0,
        rst: flags & flag::RST != 0,
        acknowledgment_number: 77,
        ..TcpHeader::new(from.port(), to.port(), 1_000, 4_096)
    };
    let mut out = Vec::new();
    let builder = ip(*from.ip(), *to.ip()).tcp_header(header);
    builder.write(&mut out, payload).expect("build TCP");
    out
}

/// A UDP datagram.
pub fn udp6(from: At6, to: At6, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let builder = ip(*from.ip(), *to.ip()).udp(from.port(), to.port());
    builder.write(&mut out, payload).expect("build UDP");
    out
}

/// An ICMPv6 message of this type, with eight bytes behind its header.
pub fn icmp6(from: Ipv6Addr, to: Ipv6Addr, kind: u8) -> Vec<u8> {
    let mut out = Vec::new();
    let builder = ip(from, to).icmpv6_raw(kind, 0, [0; 4]);
    builder.write(&mut out, &[0; 16]).expect("build ICMPv6");
    out
}

/// An ICMPv6 error "port unreachable" about `frame`, of which it quotes all.
pub fn error6(from: Ipv6Addr, to: Ipv6Addr, frame: &[u8]) -> Vec<u8> {
    let kind = Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port);
    let mut out = Vec::new();
    let builder = ip(from, to).icmpv6(kind);
    builder.write(&mut out, &frame[14..]).expect("build ICMPv6");
    out
}

/// The packet with an extension header of type `kind` put behind its IPv6 header.
pub fn extended(frame: &[u8], kind: u8, header: [u8; 8]) -> Vec<u8> {
    let mut out = frame[..L4].to_vec();
    out.extend(header);
    out[L4] = frame[20];
    out[20] = kind;
    out.extend(&frame[L4..]);
    let behind = (out.len() - L4) as u16;
    out[18..20].copy_from_slice(&behind.to_be_bytes());
    out
}

fn addr(frame: &[u8], at: usize) -> Ipv6Addr {
    let octets: [u8; 16] = frame[at..at + 16].try_into().expect("an address");
    octets.into()
}

fn port(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// What a packet says, after its checksum was found right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen6 {
    /// Source.
    pub from: At6,
    /// Destination.
    pub to: At6,
    /// IP protocol.
    pub protocol: u8,
    /// TCP flags.
    pub flags: u8,
}

/// The length is right, and so is the checksum over pseudo header and all behind the IP header.
fn verify(frame: &[u8]) {
    assert_eq!((frame[12], frame[13], frame[14] >> 4), (0x86, 0xdd, 6));
    assert_eq!(port(frame, 18) as usize, frame.len() - L4, "length");
    let [high, low] = ((frame.len() - L4) as u16).to_be_bytes();
    let pseudo = add(sum(&frame[22..L4]), sum(&[high, low, 0, frame[20]]));
    assert_eq!(add(pseudo, sum(&frame[L4..])), 0xffff, "{frame:02x?}");
}

/// Reads a TCP or UDP packet.
///
/// # Panics
/// If it is neither, or its checksum is wrong.
pub fn see6(frame: &[u8]) -> Seen6 {
    verify(frame);
    let flags = match frame[20] {
        protocol::TCP => frame[67],
        protocol::UDP => 0,
        other => panic!("neither TCP nor UDP: {other}"),
    };
    Seen6 {
        from: at6(addr(frame, 22), port(frame, L4)),
        to: at6(addr(frame, 38), port(frame, L4 + 2)),
        protocol: frame[20],
        flags,
    }
}

/// What an ICMPv6 error says: its type and code, from, to, and what it quotes.
///
/// # Panics
/// If it is none, or its checksum is wrong.
pub fn see_error6(frame: &[u8]) -> ((u8, u8), Ipv6Addr, Ipv6Addr, At6, At6) {
    verify(frame);
    assert_eq!(frame[20], protocol::ICMPV6);
    (
        (frame[L4], frame[L4 + 1]),
        addr(frame, 22),
        addr(frame, 38),
        at6(addr(frame, 70), port(frame, 102)),
        at6(addr(frame, 86), port(frame, 104)),
    )
}
