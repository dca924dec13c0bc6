//! Where a packet leaves the node: into a pod, out of an interface, or by the host's stack.
//!
//! Packets between two pods bypass the host's stack, in both directions. All others between a
//! pod and the network pass it in both directions: netfilter's connection tracking sees all of
//! a connection or nothing of it. Which of the two it is follows from the addresses alone, so
//! that both directions, and the ICMP errors about them, come to the same result.

use crate::family::Family;
use crate::flow::{NEXT, PacketContext, Route, Verdict};
use crate::maps;
use crate::packet::{Fib, Skb};
use ebpf_common::address::Address;
use ebpf_common::conntrack::action;
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::network;
use ebpf_logic::generation::route_gen;

#[inline(always)]
const fn pass<A: Address>() -> Route<A> {
    Route {
        action: action::PASS | action::ANSWERS_HOST,
        pad: 0,
        peer: 0,
        ifindex: 0,
        nexthop: A::UNSPECIFIED,
    }
}

#[inline(always)]
pub(crate) fn is_pod(addr: impl Address) -> bool {
    maps::network(addr) == network::PODS
}

/// Finds the route to `target.dst`, and its generations, which are read first. Ends with a
/// verdict when the packet goes to the stack without a flow.
#[inline(always)]
pub(crate) fn find<A: Family>(skb: &Skb, context: &mut PacketContext<A>) -> Result<Verdict, Drop> {
    let hook = context.hook();
    let dst = context.target.dst;
    // Of a connection from outside to a service, or the answer of a backend to one.
    let of_service = context.target.backend != 0;
    context.node_gen = maps::node_gen();
    // Without an endpoint: that of endpoint 0, which is always 0.
    context.route_gen = route_gen(0, context.node_gen);
    let out = &mut context.route;
    *out = pass();
    if let Some((endpoint, generation)) = maps::with_generation(|| maps::local(dst)) {
        out.action = match hook {
            Hook::FromNetdev if !of_service && !is_pod(context.packet.src) => {
                return Ok(Verdict::goes(NEXT));
            }
            Hook::FromPod | Hook::FromNetdev => action::PEER,
            // As are the questions of these answers.
            Hook::ToPod if maps::network(context.packet.src) == network::LOCAL => {
                return Ok(Verdict::goes(NEXT));
            }
            // It is on its way there already.
            Hook::ToPod => action::PASS,
            Hook::ToNetdev => action::POD_NEIGH,
        };
        out.ifindex = endpoint.ifindex;
        out.nexthop = dst;
        out.peer = endpoint.id;
        context.route_gen = route_gen(generation, context.node_gen);
        return Ok(Verdict::OPEN);
    }
    match hook {
        // The host's own traffic has no flow entries: a flood at the node takes none from pods.
        Hook::FromNetdev if !of_service => return Ok(Verdict::goes(NEXT)),
        Hook::ToPod => return Ok(Verdict::OPEN),
        // The node answers this packet, and thousands like it that each would be a flow.
        Hook::FromPod if maps::network(dst) == network::LOCAL => return Ok(Verdict::goes(NEXT)),
        // What leaves the cluster may be masqueraded by the stack. Not the answers of a service to
        // a client outside: their source is an address of the node, or none of any route.
        Hook::FromPod if !is_pod(dst) && context.target.src.is(context.packet.src) => {
            return Ok(Verdict::OPEN);
        }
        Hook::FromPod | Hook::FromNetdev | Hook::ToNetdev => {}
    }
    match skb.fib_lookup(context.packet.src, dst) {
        Fib::Forward { ifindex, nexthop } => {
            out.action = action::NEIGH | action::ANSWERS_NETDEV;
            out.ifindex = ifindex;
            out.nexthop = nexthop;
            if matches!(hook, Hook::FromNetdev) {
                // The answers of another node have to come past here.
                context.target.src = A::node();
            }
            Ok(Verdict::OPEN)
        }
        // A backend in the host network of this node. With the client's address its answers would
        // not come past here.
        Fib::Local if matches!(hook, Hook::ToNetdev | Hook::FromNetdev) => {
            out.action = action::SERVICE | action::ANSWERS_HOST;
            out.ifindex = maps::service_ifindex();
            context.target.src = A::hairpin();
            Ok(Verdict::OPEN)
        }
        // The stack tells the sender, which it can if the packet is as it was sent.
        Fib::Unreachable if matches!(hook, Hook::FromPod) && context.target.backend == 0 => {
            Ok(Verdict::goes(NEXT))
        }
        Fib::Local | Fib::Stack if matches!(hook, Hook::FromPod) => Ok(Verdict::OPEN),
        Fib::Local | Fib::Stack | Fib::Unreachable => Err(Drop::NoRoute),
    }
}

/// The route of the answers: back to where this packet came from.
#[inline(always)]
pub(crate) fn back<A: Family>(context: &mut PacketContext<A>) {
    let hook = context.hook();
    let out = &mut context.back;
    *out = pass();
    out.peer = context.endpoint;
    if matches!(hook, Hook::FromPod) {
        // Answers that come by the stack are on their way to the pod already.
        out.action = if context.route.action & action::MASK == action::PASS {
            action::PASS
        } else {
            action::PEER
        };
        out.ifindex = context.ifindex;
        // As `find` has it for an address of this node.
        out.nexthop = context.key.src;
    }
    if matches!(hook, Hook::ToNetdev) {
        out.action = action::SERVICE | action::ANSWERS_HOST;
        out.ifindex = context.ifindex;
    }
    if matches!(hook, Hook::FromNetdev) {
        // The first answer finds its route, at its own hook.
        out.action = action::PASS | action::ANSWERS_NETDEV;
    }
}
