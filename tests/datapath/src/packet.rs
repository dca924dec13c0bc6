//! Packets: built by etherparse, and judged by it and by sums from scratch.

use ebpf_common::conntrack::{self, FlowKey4};
use ebpf_common::net::{Be16, protocol};
use ebpf_logic::parse::flag;
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{
    Icmpv4Type, Ipv4Header, NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice,
};
use std::net::{Ipv4Addr, SocketAddrV4};

/// `TC_ACT_UNSPEC`, also `TCX_NEXT`: on to the stack.
pub const NEXT: i32 = -1;
/// `TC_ACT_SHOT`, also `TCX_DROP`.
pub const SHOT: i32 = 2;
/// `TC_ACT_REDIRECT`, also `TCX_REDIRECT`.
pub const REDIRECT: i32 = 7;

/// A place on the network.
pub type At = SocketAddrV4;

/// An address and a port.
pub fn at(addr: Ipv4Addr, port: u16) -> At {
    SocketAddrV4::new(addr, port)
}

/// What an Ethernet frame of a pod begins with.
fn ethernet() -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
}

/// A TCP segment with these flags.
///
/// # Panics
/// If it cannot be built.
pub fn tcp(from: At, to: At, flags: u8, payload: &[u8]) -> Vec<u8> {
    let header = TcpHeader {
        syn: flags & flag::SYN != 0,
        ack: flags & flag::ACK != 0,
        fin: flags & flag::FIN != 0,
        rst: flags & flag::RST != 0,
        acknowledgment_number: 77,
        ..TcpHeader::new(from.port(), to.port(), 1_000, 4_096)
    };
    let builder = ethernet()
        .ipv4(from.ip().octets(), to.ip().octets(), 64)
        .tcp_header(header);
    let mut out = Vec::new();
    builder.write(&mut out, payload).expect("build TCP");
    out
}

/// A UDP datagram.
///
/// # Panics
/// If it cannot be built.
pub fn udp(from: At, to: At, payload: &[u8]) -> Vec<u8> {
    let builder = ethernet()
        .ipv4(from.ip().octets(), to.ip().octets(), 64)
        .udp(from.port(), to.port());
    let mut out = Vec::new();
    builder.write(&mut out, payload).expect("build UDP");
    out
}

/// The packet with so many hops left.
///
/// # Panics
/// If it is not IPv4.
pub fn with_hops(mut frame: Vec<u8>, hops: u8) -> Vec<u8> {
    let (mut header, _) = Ipv4Header::from_slice(&frame[14..]).expect("an IPv4 header");
    header.time_to_live = hops;
    header.header_checksum = header.calc_header_checksum();
    frame[14..34].copy_from_slice(&header.to_bytes());
    frame
}

/// The hops that a packet has left.
pub fn hops(frame: &[u8]) -> u8 {
    frame[22]
}

/// An ICMP echo request.
///
/// # Panics
/// If it cannot be built.
pub fn echo(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let builder = ethernet()
        .ipv4(from.octets(), to.octets(), 64)
        .icmpv4_echo_request(7, 1);
    let mut out = Vec::new();
    builder.write(&mut out, b"ping").expect("build ICMP");
    out
}

/// An ICMP error "port unreachable" about `frame`, of which it quotes what an error quotes.
///
/// # Panics
/// If it cannot be built.
pub fn error(from: Ipv4Addr, to: Ipv4Addr, frame: &[u8]) -> Vec<u8> {
    let kind = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
    let builder = ethernet().ipv4(from.octets(), to.octets(), 64).icmpv4(kind);
    let mut out = Vec::new();
    builder.write(&mut out, &frame[14..42]).expect("build ICMP");
    out
}

/// What an ICMP error says, after its checksums were found right: from, to, and what it quotes.
///
/// # Panics
/// If it is none, or a checksum is wrong.
pub fn see_error(frame: &[u8]) -> (Ipv4Addr, Ipv4Addr, At, At) {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a frame");
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) =
        (&sliced.net, &sliced.transport)
    else {
        panic!("not ICMP: {frame:02x?}");
    };
    let header = ip.header().to_header();
    assert_eq!(
        header.header_checksum,
        header.calc_header_checksum(),
        "IP checksum"
    );
    let right = icmp.icmp_type().calc_checksum(icmp.payload());
    assert_eq!(icmp.header().checksum, right, "ICMP checksum");
    let (quoted, rest) = Ipv4Header::from_slice(icmp.payload()).expect("a quotation");
    assert_eq!(
        quoted.header_checksum,
        quoted.calc_header_checksum(),
        "quoted IP checksum"
    );
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    (
        ip.header().source_addr(),
        ip.header().destination_addr(),
        at(quoted.source.into(), port(0)),
        at(quoted.destination.into(), port(2)),
    )
}

/// What a packet says, after all its checksums were computed from scratch and found right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Source.
    pub from: At,
    /// Destination.
    pub to: At,
    /// IP protocol.
    pub protocol: u8,
    /// TCP flags.
    pub flags: u8,
}

/// Reads a TCP or UDP packet and checks every checksum in it.
///
/// # Panics
/// If it is neither, or a checksum is wrong.
pub fn see(frame: &[u8]) -> Seen {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a frame");
    let Some(NetSlice::Ipv4(ip)) = &sliced.net else {
        panic!("not IPv4: {frame:02x?}");
    };
    let header = ip.header().to_header();
    assert_eq!(
        header.header_checksum,
        header.calc_header_checksum(),
        "IP checksum"
    );
    let (src, dst) = (ip.header().source_addr(), ip.header().destination_addr());
    match &sliced.transport {
        Some(TransportSlice::Tcp(slice)) => {
            let tcp = slice.to_header();
            let right = tcp
                .calc_checksum_ipv4(&header, slice.payload())
                .expect("length");
            assert_eq!(tcp.checksum, right, "TCP checksum");
            Seen {
                from: at(src, tcp.source_port),
                to: at(dst, tcp.destination_port),
                protocol: protocol::TCP,
                flags: frame[47],
            }
        }
        Some(TransportSlice::Udp(slice)) => {
            let udp = slice.to_header();
            let right = udp
                .calc_checksum_ipv4(&header, slice.payload())
                .expect("length");
            assert!(
                udp.checksum == right || udp.checksum == 0,
                "UDP checksum {:04x}, {right:04x} is right",
                udp.checksum
            );
            Seen {
                from: at(src, udp.source_port),
                to: at(dst, udp.destination_port),
                protocol: protocol::UDP,
                flags: 0,
            }
        }
        other => panic!("neither TCP nor UDP: {other:?}"),
    }
}

/// Key of the flow of a packet that came from `scope` (ifindex of a pod, or `SCOPE_*`).
pub fn key(scope: u32, protocol: u8, from: At, to: At) -> FlowKey4 {
    FlowKey4 {
        src: (*from.ip()).into(),
        dst: (*to.ip()).into(),
        sport: Be16::new(from.port()),
        dport: Be16::new(to.port()),
        scope: conntrack::scope(scope, protocol),
    }
}
