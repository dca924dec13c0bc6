//! The functions of the program: the slow path's stages, and what several of them call.
//!
//! Global functions: the verifier walks each of them once, with anything that their arguments
//! allow, and not once for each caller. Each is written once, and is there once for each family;
//! `A::find_route(..)` calls the one for addresses of the type `A`. What a stage returns is a
//! `flow::Verdict` as a number.

use crate::family::{Family, Functions};
use crate::flow::{PacketContext, Verdict};
use crate::hook;
use crate::packet::{Skb, borrowed, borrowed_mut};
use crate::stage;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use ebpf_common::conntrack::{Flow, FlowKey};
use ebpf_common::drop::Drop;
use ebpf_logic::reply_tuple::Life;

/// The functions of one family, whose addresses are of the type `A`: what the stages call, and the
/// function of the program that it is.
macro_rules! family {
    ($(
        $(#[doc = $doc:literal])*
        fn $name:ident $symbol:ident($($arg:ident: $ty:ty),*) $body:block
    )*) => {
        impl Functions<A> for A {
            $(
                #[inline(always)]
                fn $name($($arg: $ty),*) -> u32 { self::$symbol($($arg),*) }
            )*
        }

        $(
            $(#[doc = $doc])*
            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $symbol($($arg: $ty),*) -> u32 $body
        )*
    };
}

/// Each function with its names of IPv4 and of IPv6.
macro_rules! functions {
    ($(
        $(#[doc = $doc:literal])*
        fn $name:ident $name6:ident($($arg:ident: $ty:ty),*) $body:block
    )*) => {
        mod v4 {
            use super::*;
            use ebpf_common::net::Be32 as A;

            family! { $( $(#[doc = $doc])* fn $name $name($($arg: $ty),*) $body )* }
        }

        mod v6 {
            use super::*;
            use ebpf_common::net::Addr as A;

            family! { $( $(#[doc = $doc])* fn $name $name6($($arg: $ty),*) $body )* }
        }
    };
}

functions! {
    /// Reads the headers.
    fn read_packet read_packet6(skb: *mut __sk_buff, context: *mut PacketContext<A>) {
        run(skb, context, A::read)
    }

    /// Finds who sent it.
    fn find_origin find_origin6(skb: *mut __sk_buff, context: *mut PacketContext<A>) {
        run(skb, context, stage::origin::find)
    }

    /// Translates and sends an ICMP error about a translated flow.
    fn translate_error translate_error6(skb: *mut __sk_buff, context: *mut PacketContext<A>) {
        run(skb, context, stage::icmp::translate)
    }

    /// Forwards a packet without ports.
    fn forward_other forward_other6(skb: *mut __sk_buff, context: *mut PacketContext<A>) {
        run(skb, context, stage::transit::forward_other)
    }

    /// Forwards a packet of a known flow.
    fn follow_flow follow_flow6(skb: *mut __sk_buff, context: *mut PacketContext<A>) {
        run(skb, context, stage::follow::follow)
    }

    /// Whether the datagrams of a known flow have another frontend, see `stage::follow`.
    fn has_other_frontend has_other_frontend6(context: *const PacketContext<A>) {
        match borrowed(context) {
            Some(context) => stage::follow::has_other_frontend(context) as u32,
            None => 0,
        }
    }

    /// Chooses the backend.
    fn choose_target choose_target6(skb: *mut __sk_buff, context: *mut PacketContext<A>) {
        run(skb, context, stage::service::target)
    }

    /// Finds the route to it.
    fn find_route find_route6(skb: *mut __sk_buff, context: *mut PacketContext<A>) {
        run(skb, context, stage::route::find)
    }

    /// Takes a hop from what is forwarded.
    fn spend_hop spend_hop6(skb: *mut __sk_buff, context: *mut PacketContext<A>) {
        run(skb, context, stage::hop::take)
    }

    /// Makes the flow's entry.
    fn begin_flow begin_flow6(skb: *mut __sk_buff, context: *mut PacketContext<A>) {
        run(skb, context, stage::create::begin)
    }

    /// Writes the direction of the answers.
    fn write_answers write_answers6(skb: *mut __sk_buff, context: *mut PacketContext<A>) {
        run(skb, context, |_, context| stage::reply_tuple::write(context))
    }

    /// Writes the packet's own direction.
    fn write_flow write_flow6(skb: *mut __sk_buff, context: *mut PacketContext<A>) {
        run(skb, context, stage::create::write)
    }

    /// Writes the other direction of a known flow again.
    fn restore_other restore_other6(context: *mut PacketContext<A>) {
        match borrowed_mut(context) {
            Some(context) => Verdict::of(stage::reply_tuple::restore(context)).number(),
            None => NO_MEMORY,
        }
    }

    /// Finds another source port, see `stage::reply_tuple`; 0 if there is none.
    fn find_port find_port6(context: *mut PacketContext<A>) {
        match borrowed_mut(context) {
            Some(context) => stage::reply_tuple::find_port(context),
            None => 0,
        }
    }

    /// Writes the entry of the answers if its tuple may be taken, see `stage::reply_tuple`.
    fn take_tuple take_tuple6(context: *const PacketContext<A>, least: u32) {
        match borrowed(context) {
            Some(context) => {
                Verdict::of(stage::reply_tuple::take_tuple(context, least)).number()
            }
            None => NO_MEMORY,
        }
    }

    /// Makes an entry, or replaces it, see `stage::entry`; 0 if there is none for it.
    fn put_entry put_entry6(key: *const FlowKey<A>, flow: *const Flow<A>) {
        match (borrowed(key), borrowed(flow)) {
            (Some(key), Some(flow)) => stage::entry::put(key, flow) as u32,
            (Some(_) | None, _) => 0,
        }
    }

    /// Removes an entry, see `stage::entry`.
    fn remove_entry remove_entry6(key: *const FlowKey<A>) {
        match borrowed(key) {
            Some(key) => stage::entry::remove(key) as u32,
            None => 0,
        }
    }

    /// `Life` of the other connection that has a reply tuple, see `stage::reply_tuple`.
    fn life_of_owner life_of_owner6(context: *const PacketContext<A>) {
        match borrowed(context) {
            Some(context) => stage::reply_tuple::owner(context),
            None => Life::Alive as u32,
        }
    }

    /// Translates a packet and sends it as its flow says.
    fn send_packet send_packet6(skb: *mut __sk_buff, flow: *const Flow<A>, protocol: u32) {
        let skb = Skb::new(skb);
        match borrowed(flow) {
            Some(flow) => Verdict::of(stage::send::translated(&skb, flow, protocol as u8)).number(),
            None => NO_MEMORY,
        }
    }

    /// Puts a reset in the place of the packet that is refused; 0 if that failed.
    fn write_reset write_reset6(skb: *mut __sk_buff, context: *mut PacketContext<A>) {
        match borrowed_mut(context) {
            Some(context) => A::reset(&Skb::new(skb), context) as u32,
            None => 0,
        }
    }

    /// Puts an ICMP error in the place of the packet that is refused; 0 if that failed.
    fn write_icmp_error write_icmp_error6(
        skb: *mut __sk_buff,
        context: *mut PacketContext<A>,
        error: u32
    ) {
        match borrowed_mut(context) {
            Some(context) => A::icmp_error(&Skb::new(skb), context, error) as u32,
            None => 0,
        }
    }

    /// Puts an event into the ring.
    fn report_event report_event6(
        skb: *mut __sk_buff,
        context: *const PacketContext<A>,
        kind: u32,
        reason: u32
    ) {
        if let Some(context) = borrowed(context) {
            hook::finish::report(&Skb::new(skb), context, kind as u8, reason as u8);
        }
        0
    }

    /// Logs a drop that says something about the node.
    fn log_unexpected log_unexpected6(skb: *mut __sk_buff, context: *const PacketContext<A>, reason: u32) {
        if let Some(context) = borrowed(context) {
            let skb = core::hint::black_box(skb);
            A::log(&TcContext::new(skb), &context.packet, reason);
        }
        0
    }
}

/// Runs a stage.
#[inline(always)]
fn run<A: Family>(
    skb: *mut __sk_buff,
    context: *mut PacketContext<A>,
    stage: impl Fn(&Skb, &mut PacketContext<A>) -> Result<Verdict, Drop>,
) -> u32 {
    // A stage that has no use for it would be called without it, and the verifier wants every
    // argument that the signature names.
    let skb = &Skb::new(core::hint::black_box(skb));
    match borrowed_mut(context) {
        Some(context) => Verdict::of(stage(skb, context)).number(),
        None => NO_MEMORY,
    }
}

/// What cannot be: a caller without memory for what it asks. The packet is dropped.
const NO_MEMORY: u32 = Verdict::dropped(Drop::NoFlowEntry).number();
