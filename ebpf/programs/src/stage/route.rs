//! Which way a packet goes from here: into a pod, out of an interface, or to the stack.

use crate::flow::{Case, Verdict, Way};
use crate::maps;
use crate::packet::{NEXT, Route, Skb};
use ebpf_common::conntrack::{SCOPE_HOST, action};
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::{Addr, Be32};
use ebpf_common::network;

const PASS: Way = Way {
    action: action::PASS,
    pad: 0,
    peer: 0,
    ifindex: SCOPE_HOST,
    nexthop: Be32 { be: 0 },
};

/// The way to the target.
#[inline(always)]
pub(crate) fn find(skb: &Skb, case: &mut Case) -> Result<Verdict, Drop> {
    let hook = case.hook();
    let dst = case.target.dst;
    let out = &mut case.way;
    *out = PASS;
    if let Some(endpoint) = maps::local(dst) {
        out.action = match hook {
            Hook::FromPod | Hook::FromNetdev => action::PEER,
            // It is on its way there already.
            Hook::ToPod => action::PASS,
            Hook::ToNetdev => action::POD_NEIGH,
        };
        out.ifindex = endpoint.ifindex;
        out.nexthop = dst;
        out.peer = endpoint.id;
        return Ok(Verdict::OPEN);
    }
    match hook {
        // The host's own traffic is no flow of ours: who floods the node evicts no pod's.
        Hook::FromNetdev => return Ok(Verdict::goes(NEXT)),
        Hook::ToPod => return Ok(Verdict::OPEN),
        Hook::FromPod => {
            // What leaves the cluster is the stack's, which may masquerade it.
            let inside = case.target.backend != 0 || maps::network(dst) == network::PODS;
            if !inside || maps::node() == Addr::v4(dst) {
                return Ok(Verdict::OPEN);
            }
        }
        Hook::ToNetdev => {}
    }
    match skb.route(case.packet.src, dst) {
        Route::Forward { ifindex, nexthop } => {
            out.action = action::NEIGH;
            out.ifindex = ifindex;
            out.nexthop = nexthop;
            Ok(Verdict::OPEN)
        }
        Route::Stack if matches!(hook, Hook::FromPod) => Ok(Verdict::OPEN),
        // Nothing behind the service device would take it.
        Route::Stack | Route::None => Err(Drop::NoRoute),
    }
}

/// The way of the answers: back to where this packet came from.
#[inline(always)]
pub(crate) fn back(skb: &Skb, case: &mut Case) {
    let hook = case.hook();
    let out = &mut case.back;
    *out = PASS;
    out.peer = case.endpoint as u16;
    if matches!(hook, Hook::FromPod) {
        // Answers that come by the stack are on their way to the pod already.
        if case.way.action != action::PASS {
            out.action = action::PEER;
        }
        out.ifindex = skb.ifindex();
    }
    if matches!(hook, Hook::ToNetdev) {
        out.action = action::SERVICE;
        out.ifindex = skb.ifindex();
    }
}
