//! What differs between the two families: where things are in a packet, and what has no checksum
//! or another one. Stages are generic over it, by the type of an address.

mod functions;
mod v4;
mod v6;

pub(crate) use functions::Functions;

use crate::flow::{PacketContext, Verdict};
use crate::maps::Maps;
use crate::packet::{Headers, Skb};
use crate::wire::Wire;
use aya_ebpf::programs::TcContext;
use ebpf_common::conntrack::{Flow, FlowKey};
use ebpf_common::drop::Drop;
use ebpf_logic::parse::Packet;

/// A family of addresses, as the programs need it.
pub(crate) trait Family: Wire + Maps + Functions<Self> {
    /// Whether the packet has a plain IP header: its protocol, and the length in it, header
    /// included.
    fn plain<const N: usize>(head: &Headers<'_, Self, N>) -> Option<(u8, u32)>;

    /// Key of the flow of a packet with such a header.
    fn key<const N: usize>(head: &Headers<'_, Self, N>, scope: u32) -> FlowKey<Self>;

    /// Puts the addresses of a flow into the IP header.
    fn put_addresses<const N: usize>(head: &Headers<'_, Self, N>, flow: &Flow<Self>);

    /// Reads the headers of a packet of any length.
    fn read(skb: &Skb, context: &mut PacketContext<Self>) -> Result<Verdict, Drop>;

    /// Whether it is a message between neighbours on a link.
    fn is_of_link(packet: &Packet<Self>) -> bool;

    /// Type of the ICMP message that asks for an echo.
    const ECHO: u8;

    /// Whether an ICMP message of this type is an error, which quotes a packet.
    fn is_error(icmp_type: u8) -> bool;

    /// The packet that an ICMP error is about, if it is a plain one with ports.
    fn quoted(skb: &Skb) -> Option<Quoted<Self>>;

    /// Translates an ICMP error whose quoted packet `flow` answers: the quotation, the receiver,
    /// and the sender if it is the flow's own. `quoted` was asked before.
    fn rewrite_error(skb: &Skb, packet: &Packet<Self>, flow: &Flow<Self>, own: bool) -> bool;

    /// Puts a TCP reset in the packet's place.
    fn reset(skb: &Skb, context: &mut PacketContext<Self>) -> bool;

    /// Puts an ICMP error in the packet's place: `refuse::PORT_UNREACHABLE` or `TIME_EXCEEDED`.
    fn icmp_error(skb: &Skb, context: &mut PacketContext<Self>, error: u32) -> bool;

    /// Takes a hop from the packet; false if it has none left, or cannot be read.
    fn take_hop(skb: &Skb) -> bool;

    /// Logs a drop that should not happen on a node that is set up right.
    fn log(skb: &TcContext, packet: &Packet<Self>, reason: u32);
}

/// What an ICMP error says of the packet that it is about.
#[derive(Clone, Copy)]
pub(crate) struct Quoted<A> {
    pub(crate) src: A,
    pub(crate) dst: A,
    /// Source and destination port as they are loaded together.
    pub(crate) ports: u32,
    pub(crate) protocol: u8,
}
