//! What the stages call: functions of the program, which `function.rs` writes, once for each
//! family. Apart from them, because they call the stages.

use crate::flow::PacketContext;
use aya_ebpf::bindings::__sk_buff;
use ebpf_common::address::Address;
use ebpf_common::conntrack::{Flow, FlowKey};

/// The functions for addresses of the type `A`, which is the type that has them.
pub(crate) trait Functions<A: Address> {
    /// Reads the headers.
    fn read_packet(skb: *mut __sk_buff, context: *mut PacketContext<A>) -> u32;

    /// Finds who sent it.
    fn find_origin(skb: *mut __sk_buff, context: *mut PacketContext<A>) -> u32;

    /// Translates and sends an ICMP error about a translated flow.
    fn translate_error(skb: *mut __sk_buff, context: *mut PacketContext<A>) -> u32;

    /// Forwards a packet without ports.
    fn forward_other(skb: *mut __sk_buff, context: *mut PacketContext<A>) -> u32;

    /// Forwards a packet of a known flow.
    fn follow_flow(skb: *mut __sk_buff, context: *mut PacketContext<A>) -> u32;

    /// Whether the datagrams of a known flow have another frontend, see `stage::follow`.
    fn has_other_frontend(context: *const PacketContext<A>) -> u32;

    /// Chooses the backend.
    fn choose_target(skb: *mut __sk_buff, context: *mut PacketContext<A>) -> u32;

    /// Finds the route to it.
    fn find_route(skb: *mut __sk_buff, context: *mut PacketContext<A>) -> u32;

    /// Takes a hop from what is forwarded.
    fn spend_hop(skb: *mut __sk_buff, context: *mut PacketContext<A>) -> u32;

    /// Makes the flow's entry.
    fn begin_flow(skb: *mut __sk_buff, context: *mut PacketContext<A>) -> u32;

    /// Writes the direction of the answers.
    fn write_answers(skb: *mut __sk_buff, context: *mut PacketContext<A>) -> u32;

    /// Writes the packet's own direction.
    fn write_flow(skb: *mut __sk_buff, context: *mut PacketContext<A>) -> u32;

    /// Writes the other direction of a known flow again.
    fn restore_other(context: *mut PacketContext<A>) -> u32;

    /// Finds another source port, see `stage::reply_tuple`; 0 if there is none.
    fn find_port(context: *mut PacketContext<A>) -> u32;

    /// Writes the entry of the answers if its tuple may be taken, see `stage::reply_tuple`.
    fn take_tuple(context: *const PacketContext<A>, least: u32) -> u32;

    /// Makes an entry, or replaces it, see `stage::entry`; 0 if there is none for it.
    fn put_entry(key: *const FlowKey<A>, flow: *const Flow<A>) -> u32;

    /// Removes an entry, see `stage::entry`.
    fn remove_entry(key: *const FlowKey<A>) -> u32;

    /// `Life` of the other connection that has a reply tuple, see `stage::reply_tuple`.
    fn life_of_owner(context: *const PacketContext<A>) -> u32;

    /// Translates a packet and sends it as its flow says.
    fn send_packet(skb: *mut __sk_buff, flow: *const Flow<A>, protocol: u32) -> u32;

    /// Puts a reset in the place of the packet that is refused; 0 if that failed.
    fn write_reset(skb: *mut __sk_buff, context: *mut PacketContext<A>) -> u32;

    /// Puts an ICMP error in the place of the packet that is refused; 0 if that failed.
    fn write_icmp_error(skb: *mut __sk_buff, context: *mut PacketContext<A>, error: u32) -> u32;

    /// Puts an event into the ring.
    fn report_event(
        skb: *mut __sk_buff,
        context: *const PacketContext<A>,
        kind: u32,
        reason: u32,
    ) -> u32;

    /// Logs a drop that says something about the node.
    fn log_unexpected(skb: *mut __sk_buff, context: *const PacketContext<A>, reason: u32) -> u32;
}
