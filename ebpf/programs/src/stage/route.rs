//! Which way a packet goes from here: into a pod, out of an interface, or to the stack.

use crate::flow::{Origin, Target, Way};
use crate::maps;
use crate::packet::{Route, Skb};
use ebpf_common::conntrack::action;
use ebpf_common::counter::Hook;
use ebpf_common::drop::Drop;
use ebpf_common::net::{Addr, Be32};
use ebpf_common::network;

const PASS: Way = Way {
    action: action::PASS,
    ifindex: 0,
    nexthop: Be32 { be: 0 },
    peer: 0,
};

/// The way to a target. `src` is the packet's own source address.
#[inline(always)]
pub(crate) fn to(skb: &Skb, origin: &Origin, src: Be32, target: &Target) -> Result<Way, Drop> {
    let dst = target.dst;
    if let Some(endpoint) = maps::local(dst) {
        let action = match origin.hook {
            Hook::FromPod | Hook::FromNetdev => action::PEER,
            // It is on its way there already.
            Hook::ToPod => action::PASS,
            Hook::ToNetdev => action::POD_NEIGH,
        };
        return Ok(Way {
            action,
            ifindex: endpoint.ifindex,
            nexthop: dst,
            peer: endpoint.id,
        });
    }
    match origin.hook {
        Hook::FromNetdev | Hook::ToPod => return Ok(PASS),
        Hook::FromPod => {
            // What leaves the cluster is the stack's, which may masquerade it.
            let inside = target.backend != 0 || maps::network(dst) == network::PODS;
            if !inside || maps::config().node == Addr::v4(dst) {
                return Ok(PASS);
            }
        }
        Hook::ToNetdev => {}
    }
    match skb.route(src, dst) {
        Route::Forward { ifindex, nexthop } => Ok(Way {
            action: action::NEIGH,
            ifindex,
            nexthop,
            peer: 0,
        }),
        Route::Stack if matches!(origin.hook, Hook::FromPod) => Ok(PASS),
        // Nothing behind the service device would take it.
        Route::Stack | Route::None => Err(Drop::NoRoute),
    }
}

/// The way of the answers: back to where this packet came from.
#[inline(always)]
pub(crate) fn back(skb: &Skb, origin: &Origin, way: &Way) -> Way {
    match origin.hook {
        // Answers out of the host's stack are on their way to the pod already.
        Hook::FromPod if way.action & action::MASK != action::PASS => Way {
            action: action::PEER,
            ifindex: skb.ifindex(),
            nexthop: Be32 { be: 0 },
            peer: origin.endpoint,
        },
        Hook::ToNetdev => Way {
            action: action::SERVICE,
            ifindex: skb.ifindex(),
            nexthop: Be32 { be: 0 },
            peer: 0,
        },
        Hook::FromPod | Hook::FromNetdev | Hook::ToPod => Way {
            peer: origin.endpoint,
            ..PASS
        },
    }
}
