//! Whose a reply tuple is: how much a connection still needs its two entries.
//!
//! The tuple of the answers (receiver, sender) can be the same for several connections: through
//! two services with one backend, or through a service and directly. One judgement says whether
//! a connection may lose it: to another connection, or to the sweep.
//! Called by `stage/reply_tuple.rs`, `stage/follow.rs` and `hook/flow_sweep.rs`.

use crate::conntrack::{is_expired, is_over};
use ebpf_common::address::Address;
use ebpf_common::conntrack::{Flow, FlowKey, state};

/// How much a connection, or one direction of it, needs its entries; the later, the more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Life {
    /// Silent for longer than its state allows: the sweep removes it.
    Expired = 0,
    /// It has ended, or its backend was removed: another connection may take its tuple.
    Over = 1,
    /// One direction was seen, and not its beginning: a connection that needs its own reply
    /// entry again may take it, a new one may not.
    PickedUp = 2,
    /// It keeps its tuple.
    Alive = 3,
}

impl Life {
    /// Whether a new connection has to take another tuple.
    #[inline(always)]
    pub const fn keeps_tuple(self) -> bool {
        self as u8 >= Self::PickedUp as u8
    }

    /// Whether a SYN with the tuple of the answers is forwarded as a packet of the connection. A
    /// translation is kept until it expires, because the end that was seen may be forged.
    #[inline(always)]
    pub const fn keeps_answers(self, translates: bool) -> bool {
        self.keeps_tuple() || translates && self as u8 != Self::Expired as u8
    }
}

/// What the judgement is made from.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Now, low 32 bits of jiffies.
    pub now: u32,
    /// Ticks in a second.
    pub jiffies_per_second: u32,
    /// Generation that the connection's backend has now.
    pub backend_gen: u32,
}

/// The judgement about a connection: of `flow`, and of the other direction's entry if there is
/// one. The connection is as alive as the direction of it that is more alive, because the
/// other one may be silent for long (a stream of datagrams) and is needed all the same.
#[inline(always)]
pub const fn life<A: Address>(flow: &Flow<A>, other: Option<&Flow<A>>, at: Moment) -> Life {
    let own = one(flow, at);
    match other {
        Some(other) => {
            let other = one(other, at);
            if (other as u8) > (own as u8) {
                other
            } else {
                own
            }
        }
        None => own,
    }
}

#[inline(always)]
const fn one<A: Address>(flow: &Flow<A>, at: Moment) -> Life {
    if is_expired(flow, at.now, at.jiffies_per_second) {
        Life::Expired
    } else if is_over(flow.state) || flow.backend_gen != at.backend_gen {
        Life::Over
    } else if flow.state == state::PICKED_UP || flow.state == state::UNREPLIED {
        Life::PickedUp
    } else {
        Life::Alive
    }
}

/// Whether `other`, an entry under `other_key`, is the other direction of the flow with `key`.
#[inline(always)]
pub fn is_other<A: Address>(key: &FlowKey<A>, other: &Flow<A>, other_key: &FlowKey<A>) -> bool {
    let answered = other.answer_key(other_key);
    same_connection(key, &answered) && key.scope == answered.scope
}

/// Whether two keys have the same addresses and ports: one connection, also if it comes by
/// another interface than before, as after a pod's link was made anew.
#[inline(always)]
pub fn same_connection<A: Address>(a: &FlowKey<A>, b: &FlowKey<A>) -> bool {
    a.src.is(b.src)
        && a.dst.is(b.dst)
        && a.sport.be == b.sport.be
        && a.dport.be == b.dport.be
        && a.protocol() == b.protocol()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_common::abi::MapType as _;
    use ebpf_common::conntrack::{Flow4, FlowKey4, SCOPE_HOST, action, scope};
    use ebpf_common::net::{Be16, Be32, protocol};

    const AT: Moment = Moment {
        now: 1_000_000,
        jiffies_per_second: 100,
        backend_gen: 7,
    };

    /// A direction in a state that was silent for so many seconds.
    fn flow(state: u8, silent: u32) -> Flow4 {
        Flow4 {
            state,
            last_seen: AT.now.wrapping_sub(silent * AT.jiffies_per_second),
            packets: 9,
            backend_gen: AT.backend_gen,
            ..Flow4::zeroed()
        }
    }

    #[test]
    fn a_connection_is_as_alive_as_its_livelier_direction() {
        use state::*;
        const DAY: u32 = 86_400;
        // (state and seconds of silence of one direction, of the other, judgement)
        for (own, other, wanted) in [
            ((ESTABLISHED, 0), Some((ESTABLISHED, 0)), Life::Alive),
            ((ESTABLISHED, DAY), Some((ESTABLISHED, 1)), Life::Alive),
            ((ESTABLISHED, DAY), Some((ESTABLISHED, DAY)), Life::Expired),
            ((ESTABLISHED, DAY - 1), None, Life::Alive),
            ((ESTABLISHED, DAY), None, Life::Expired),
            // Datagrams one way only.
            ((STATELESS, 119), None, Life::Alive),
            ((STATELESS, 121), Some((STATELESS, 1)), Life::Alive),
            ((STATELESS, 121), Some((STATELESS, 121)), Life::Expired),
            // Half closed.
            ((FIN_SENT, 3_599), Some((FIN_RECEIVED, 0)), Life::Alive),
            (
                (FIN_SENT, 3_600),
                Some((FIN_RECEIVED, 3_600)),
                Life::Expired,
            ),
            // Ended: its tuple is free, its entries stay for late packets.
            ((TIME_WAIT, 0), Some((TIME_WAIT, 0)), Life::Over),
            ((TIME_WAIT, 30), Some((TIME_WAIT, 29)), Life::Over),
            ((TIME_WAIT, 30), Some((TIME_WAIT, 30)), Life::Expired),
            ((CLOSED, 0), None, Life::Over),
            // Two CPUs have written the two states of one packet each.
            ((CLOSED, 0), Some((ESTABLISHED, 0)), Life::Alive),
            // Handshakes.
            ((SYN_SENT, 0), Some((UNREPLIED, 0)), Life::Alive),
            ((SYN_SENT, 60), Some((UNREPLIED, 60)), Life::Expired),
            ((SYN_RECEIVED, 59), Some((SYN_RECEIVED, 59)), Life::Alive),
            // In the middle, one direction alone.
            ((PICKED_UP, 0), Some((UNREPLIED, 0)), Life::PickedUp),
            ((UNREPLIED, 0), None, Life::PickedUp),
            ((PICKED_UP, 60), None, Life::Expired),
        ] {
            let (own, other) = (
                flow(own.0, own.1),
                other.map(|(state, silent)| flow(state, silent)),
            );
            let found = life(&own, other.as_ref(), AT);
            assert_eq!(found, wanted, "{own:?} {other:?}");
            if let Some(other) = other {
                assert_eq!(life(&other, Some(&own), AT), wanted, "{other:?} {own:?}");
            }
            let free = matches!(wanted, Life::Expired | Life::Over);
            assert_eq!(found.keeps_tuple(), !free);
            assert_eq!(found.keeps_answers(false), !free);
            assert_eq!(found.keeps_answers(true), wanted != Life::Expired);
        }
    }

    /// The next packet of a connection whose backend was removed is refused.
    #[test]
    fn a_removed_backend_ends_the_connection() {
        let both = flow(state::ESTABLISHED, 0);
        let at = Moment {
            backend_gen: AT.backend_gen + 1,
            ..AT
        };
        assert_eq!(life(&both, Some(&both), at), Life::Over);
        let silent = flow(state::ESTABLISHED, 86_400);
        assert_eq!(life(&silent, None, at), Life::Expired);
    }

    /// Another CPU has seen the flow after this one has read its clock.
    #[test]
    fn a_flow_of_the_next_tick_is_alive() {
        let mut flow = flow(state::ESTABLISHED, 0);
        flow.last_seen = AT.now.wrapping_add(1);
        assert_eq!(life(&flow, None, AT), Life::Alive);
    }

    fn key(src: (u32, u16), dst: (u32, u16), from: u32) -> FlowKey4 {
        FlowKey4 {
            src: Be32::new(src.0),
            dst: Be32::new(dst.0),
            sport: Be16::new(src.1),
            dport: Be16::new(dst.1),
            scope: scope(from, protocol::TCP),
        }
    }

    #[test]
    fn directions_know_each_other_by_tuple_and_origin() {
        const CLIENT: (u32, u16) = (1, 40_000);
        const SERVICE: (u32, u16) = (2, 80);
        const SERVER: (u32, u16) = (3, 8080);
        let forward = key(CLIENT, SERVICE, 5);
        let reply_key = key(SERVER, CLIENT, 6);
        let reply = Flow4 {
            src: Be32::new(SERVICE.0),
            dst: Be32::new(CLIENT.0),
            sport: Be16::new(SERVICE.1),
            dport: Be16::new(CLIENT.1),
            ifindex: 5,
            action: action::PEER | action::NAT | action::REPLY,
            ..Flow4::zeroed()
        };
        assert!(is_other(&forward, &reply, &reply_key));
        // The client's link was made anew: the same connection, but not this entry's.
        let anew = key(CLIENT, SERVICE, 9);
        assert!(same_connection(&forward, &anew));
        assert!(!is_other(&anew, &reply, &reply_key));
        for another in [
            key(CLIENT, (4, 80), 5),
            key((1, 40_001), SERVICE, 5),
            key(CLIENT, SERVER, 5),
        ] {
            assert!(!same_connection(&forward, &another));
            assert!(!is_other(&another, &reply, &reply_key));
        }
        let passed = Flow4 {
            action: action::NEIGH | action::ANSWERS_NETDEV,
            ..reply
        };
        assert!(!is_other(&forward, &passed, &reply_key));
        assert_eq!(key(CLIENT, SERVICE, SCOPE_HOST).from(), SCOPE_HOST);
    }
}
