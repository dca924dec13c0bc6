//! The state of a TCP connection after a packet, and how long a flow may be silent.
//!
//! Seen from the middle, so coarser than RFC 9293 3.3.2: the ends keep the real states, this
//! only decides which packets take the fast path and when an entry expires.
//!
//! Sequence numbers are not checked. What a packet with a forged source can do is therefore
//! bounded by these rules:
//! - No packet of one direction alone makes a connection established. Until the other direction
//!   has answered, the entry lives for a minute.
//! - RST removes nothing: packets are forwarded as before. It shortens the silence that the
//!   entry survives to 30 seconds. The next packet without RST raises it to a minute, and an
//!   answer to that one makes the connection established again.
//! - SYN of the direction that has opened the connection begins the states again, as a reused
//!   port does: the entries live for a minute until the other end has answered, which it does
//!   with a challenge ACK. SYN of the other direction changes nothing as long as the connection
//!   is alive or, with a translation, until it expires. Neither takes away a translation.
//! - A connection that is silent for longer loses its entries, both at once: the next packet
//!   of the client is given a backend by its hash, the same one as long as the backends are.
//!
//! Called by `stage/create.rs`, `stage/follow.rs`, `stage/established.rs`, `reply_tuple` and
//! `agent-sys`.

use crate::checksum::{addr_delta, port_delta};
use crate::parse::flag;
use ebpf_common::address::Address;
use ebpf_common::conntrack::{Flow, FlowKey, state};
use ebpf_common::net::protocol;

/// States of both directions after a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Of the direction that the packet went.
    pub own: u8,
    /// Of the other direction.
    pub other: u8,
}

const fn both(state: u8) -> Step {
    Step {
        own: state,
        other: state,
    }
}

/// The other direction has sent nothing yet.
const fn unreplied(own: u8) -> Step {
    Step {
        own,
        other: state::UNREPLIED,
    }
}

const FIN: Step = Step {
    own: state::FIN_SENT,
    other: state::FIN_RECEIVED,
};

/// After the first packet that is seen of a flow.
#[inline(always)]
pub const fn first(protocol: u8, flags: u8) -> Step {
    if protocol != protocol::TCP {
        both(state::STATELESS)
    } else if flags & flag::RST != 0 {
        both(state::CLOSED)
    } else if flags & (flag::SYN | flag::ACK) == flag::SYN {
        unreplied(state::SYN_SENT)
    } else {
        // In the middle of a connection: it began before us, its entries have expired, or it does
        // not exist.
        unreplied(state::PICKED_UP)
    }
}

/// After a packet with `flags` of a flow whose direction is in `own`. Not asked about a SYN
/// without ACK in another state than `SYN_SENT`: it begins a connection.
#[inline(always)]
pub const fn next(own: u8, flags: u8) -> Step {
    if own == state::STATELESS {
        return both(own);
    }
    if flags & flag::RST != 0 {
        return both(state::CLOSED);
    }
    let fin = flags & flag::FIN != 0;
    match own {
        state::SYN_SENT | state::PICKED_UP => unreplied(own),
        // After a genuine RST late packets come here, and the receiver sends another one.
        state::CLOSED => unreplied(state::PICKED_UP),
        state::TIME_WAIT => both(own),
        state::UNREPLIED | state::SYN_RECEIVED if flags & flag::SYN != 0 => {
            both(state::SYN_RECEIVED)
        }
        state::FIN_RECEIVED if fin => both(state::TIME_WAIT),
        state::FIN_RECEIVED => Step {
            own: state::FIN_RECEIVED,
            other: state::FIN_SENT,
        },
        state::FIN_SENT => FIN,
        _ if fin => FIN,
        _ => both(state::ESTABLISHED),
    }
}

/// Whether a copy of an entry is that of the flow with `key`, and was copied whole: its addresses
/// and ports are the key's, or differ by what the entry says that they do.
///
/// The kernel gives the memory of a removed entry to another flow at once, also while a program
/// holds a pointer to it.
#[inline(always)]
pub fn is_copy_of<A: Address>(key: &FlowKey<A>, flow: &Flow<A>) -> bool {
    if flow.translates() {
        flow.addr_delta == addr_delta(key, flow) && flow.port_delta == port_delta(key, flow)
    } else {
        flow.src.is(key.src)
            && flow.dst.is(key.dst)
            && flow.sport.be == key.sport.be
            && flow.dport.be == key.dport.be
    }
}

/// Datagrams of one direction by which it is a stream: a question, also one for two kinds of
/// records (A and AAAA), has fewer.
const STREAM: u64 = 3;

/// Seconds of silence after which an entry in this state, of so many packets, expires.
///
/// Netfilter's defaults, but a day for established connections as kube-proxy sets it, an hour
/// for half closed ones as well, and less after the end: the ends themselves wait. A question and
/// its answer hold their ports for 30 seconds, a stream of datagrams for 120.
#[inline(always)]
pub const fn timeout(state: u8, packets: u64) -> u32 {
    match state {
        state::ESTABLISHED => 86_400,
        state::FIN_SENT | state::FIN_RECEIVED => 3_600,
        state::TIME_WAIT | state::CLOSED => 30,
        state::STATELESS if packets < STREAM => 30,
        state::STATELESS => 120,
        _ => 60,
    }
}

/// Whether another connection may take the ports.
#[inline(always)]
pub const fn is_over(state: u8) -> bool {
    state == state::TIME_WAIT || state == state::CLOSED
}

/// Ticks from `then` to `now`, both the low 32 bits of jiffies; 0 if `then` is later.
///
/// The difference is signed, as in the kernel's `time_after`: another CPU may have read its
/// clock after `now` was read here. So times may be 2^31 ticks apart, 24 days at 1000 Hz.
#[inline(always)]
pub const fn elapsed(now: u32, then: u32) -> u32 {
    let ticks = now.wrapping_sub(then) as i32;
    if ticks < 0 { 0 } else { ticks as u32 }
}

/// Whether the other direction's entry is to be looked for again: in the first packet after
/// each 4,096 ticks (4 to 41 seconds), and so in the first one after a longer silence. A lookup
/// with each write of `last_seen` would cost as much as the packet's own.
#[inline(always)]
pub const fn is_quiet(now: u32, last_seen: u32) -> bool {
    (now ^ last_seen) >> 12 != 0
}

/// Whether the entry was silent for too long.
#[inline(always)]
pub const fn is_expired<A: Address>(flow: &Flow<A>, now: u32, jiffies_per_second: u32) -> bool {
    let silent = elapsed(now, flow.last_seen) as u64;
    silent >= timeout(flow.state, flow.packets) as u64 * jiffies_per_second as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_common::abi::MapType as _;
    use ebpf_common::conntrack::{Flow4, FlowKey4, action, scope};
    use ebpf_common::net::{Be16, Be32};
    use flag::{ACK, FIN, RST, SYN};

    /// Packets (from the client?, flags), then the states of client's and server's direction.
    fn check(packets: &[(bool, u8)], client: u8, server: u8) {
        let mut states: Option<[u8; 2]> = None;
        for (from_client, flags) in packets {
            let (own, other) = if *from_client { (0, 1) } else { (1, 0) };
            let step = match states {
                None => first(protocol::TCP, *flags),
                Some(states) => next(states[own], *flags),
            };
            let mut after = [0; 2];
            after[own] = step.own;
            after[other] = step.other;
            states = Some(after);
        }
        assert_eq!(states, Some([client, server]), "{packets:?}");
    }

    const OPEN: [(bool, u8); 3] = [(true, SYN), (false, SYN | ACK), (true, ACK)];

    #[test]
    fn a_connection_from_beginning_to_end() {
        check(&OPEN[..1], state::SYN_SENT, state::UNREPLIED);
        check(
            &[(true, SYN), (true, SYN)],
            state::SYN_SENT,
            state::UNREPLIED,
        );
        check(&OPEN[..2], state::SYN_RECEIVED, state::SYN_RECEIVED);
        check(&OPEN, state::ESTABLISHED, state::ESTABLISHED);
        let mut packets = OPEN.to_vec();
        packets.extend([(true, ACK), (false, ACK), (false, FIN | ACK)]);
        check(&packets, state::FIN_RECEIVED, state::FIN_SENT);
        // The client still sends, the server acknowledges: half closed.
        packets.extend([(true, ACK), (false, ACK)]);
        check(&packets, state::FIN_RECEIVED, state::FIN_SENT);
        packets.push((true, FIN | ACK));
        check(&packets, state::TIME_WAIT, state::TIME_WAIT);
        packets.push((false, ACK));
        check(&packets, state::TIME_WAIT, state::TIME_WAIT);
        packets.push((true, RST));
        check(&packets, state::CLOSED, state::CLOSED);
    }

    /// Both directions of a half-closed connection take the fast path, until the end.
    #[test]
    fn half_closed_is_fast() {
        for state in [state::FIN_SENT, state::FIN_RECEIVED] {
            assert_ne!(state & state::FAST, 0, "{}", state::text(state));
        }
        for state in [state::TIME_WAIT, state::PICKED_UP, state::UNREPLIED] {
            assert_eq!(state & state::FAST, 0, "{}", state::text(state));
        }
    }

    #[test]
    fn a_refused_connection_is_closed() {
        check(
            &[(true, SYN), (false, RST | ACK)],
            state::CLOSED,
            state::CLOSED,
        );
    }

    /// An entry of which one direction was seen lives for a minute at most.
    #[test]
    fn one_direction_alone_is_not_established() {
        for begin in [SYN, SYN | ACK, ACK, FIN | ACK, RST] {
            for more in [ACK, SYN | ACK, FIN | ACK, RST] {
                let step = first(protocol::TCP, begin);
                let step = next(step.own, more);
                let step = next(step.own, ACK);
                assert!(timeout(step.own, 9) <= 60 && timeout(step.other, 9) <= 60);
                assert_eq!((step.own | step.other) & state::FAST, 0);
            }
        }
    }

    #[test]
    fn what_began_before_us_is_established_by_an_answer() {
        check(&[(true, ACK)], state::PICKED_UP, state::UNREPLIED);
        check(
            &[(true, ACK), (true, ACK)],
            state::PICKED_UP,
            state::UNREPLIED,
        );
        check(
            &[(true, ACK), (false, ACK)],
            state::ESTABLISHED,
            state::ESTABLISHED,
        );
        check(
            &[(true, ACK), (false, FIN | ACK)],
            state::FIN_RECEIVED,
            state::FIN_SENT,
        );
        check(
            &[(false, SYN | ACK), (true, ACK)],
            state::ESTABLISHED,
            state::ESTABLISHED,
        );
        check(&[(true, RST)], state::CLOSED, state::CLOSED);
    }

    /// A forged RST shortens the timeout; the connection itself goes on and undoes it.
    #[test]
    fn a_connection_survives_a_forged_reset() {
        let mut packets = OPEN.to_vec();
        packets.push((false, RST));
        check(&packets, state::CLOSED, state::CLOSED);
        packets.push((true, ACK));
        check(&packets, state::PICKED_UP, state::UNREPLIED);
        packets.push((false, ACK));
        check(&packets, state::ESTABLISHED, state::ESTABLISHED);
    }

    /// A SYN-ACK that comes late does not undo a connection.
    #[test]
    fn a_late_syn_ack_changes_nothing() {
        let mut packets = OPEN.to_vec();
        packets.push((false, SYN | ACK));
        check(&packets, state::ESTABLISHED, state::ESTABLISHED);
    }

    #[test]
    fn a_copy_of_another_flow_is_told() {
        let key = |sport: u16, dst: u32| FlowKey4 {
            src: Be32::new(0x0af4_0105),
            dst: Be32::new(dst),
            sport: Be16::new(sport),
            dport: Be16::new(80),
            scope: scope(7, protocol::TCP),
        };
        let flow = |key: &FlowKey4, dst: u32, dport: u16| {
            let mut flow = Flow4 {
                src: key.src,
                dst: Be32::new(dst),
                sport: key.sport,
                dport: Be16::new(dport),
                ..Flow4::zeroed()
            };
            if flow.dst != key.dst || flow.dport != key.dport {
                flow.action |= action::NAT;
                flow.addr_delta = addr_delta(key, &flow);
                flow.port_delta = port_delta(key, &flow);
            }
            flow
        };
        let (service, direct) = (0x0a60_0007, 0x0af4_0106);
        let own = key(40_000, service);
        let translated = flow(&own, direct, 8080);
        assert!(is_copy_of(&own, &translated));
        let plain = key(40_000, direct);
        assert!(is_copy_of(&plain, &flow(&plain, direct, 80)));
        for other in [key(40_001, service), key(40_000, service + 1), plain] {
            assert!(!is_copy_of(&other, &translated), "{other:?}");
            assert!(
                !is_copy_of(&own, &flow(&other, direct + 9, 9090)),
                "{other:?}"
            );
        }
        // Half of the next owner's entry.
        let mut torn = translated;
        torn.dst = Be32::new(direct + 1);
        assert!(!is_copy_of(&own, &torn));
    }

    #[test]
    fn elapsed_is_signed_and_wraps() {
        for (now, then, ticks) in [
            (100, 90, 10),
            (100, 100, 0),
            (100, 101, 0),
            (100, 5_000, 0),
            (5, u32::MAX - 4, 10),
            (u32::MAX - 4, 5, 0),
            (0, 1, 0),
            (1 << 31, 1, i32::MAX as u32),
            (1 << 31, 0, 0),
        ] {
            assert_eq!(elapsed(now, then), ticks, "{now} {then}");
        }
    }

    /// A flow with a packet in each second looks for its other direction now and then, one that
    /// was silent at once.
    #[test]
    fn quiet_flows_are_found() {
        for hz in [100u32, 250, 1_000] {
            let start = u32::MAX - 5 * hz;
            let seconds = (1..=60).map(|second| start.wrapping_add(second * hz));
            let checks = seconds
                .filter(|now| is_quiet(*now, now.wrapping_sub(hz)))
                .count();
            assert!((1..=15).contains(&checks), "{hz}: {checks}");
            assert!(is_quiet(start.wrapping_add(4_096), start));
        }
    }

    #[test]
    fn silence_is_measured_across_the_wrap() {
        let flow = Flow4 {
            state: state::CLOSED,
            last_seen: u32::MAX - 10,
            ..Flow4::zeroed()
        };
        assert!(!is_expired(&flow, 7_000, 250));
        assert!(is_expired(&flow, 7_500, 250));
    }

    /// One question and its answer, or two, need their ports for less long than a stream does.
    #[test]
    fn questions_expire_before_streams() {
        for (packets, seconds) in [(0, 30), (1, 30), (2, 30), (3, 120), (u64::MAX, 120)] {
            let flow = Flow4 {
                state: state::STATELESS,
                packets,
                ..Flow4::zeroed()
            };
            assert!(!is_expired(&flow, seconds * 250 - 1, 250), "{packets}");
            assert!(is_expired(&flow, seconds * 250, 250), "{packets}");
        }
    }

    /// Another CPU has seen the flow after this one has read its clock.
    #[test]
    fn a_flow_of_the_next_tick_is_not_expired() {
        for state in 0..=u8::MAX {
            for last_seen in [101, 0x8000_0000, u32::MAX] {
                let flow = Flow4 {
                    state,
                    last_seen,
                    ..Flow4::zeroed()
                };
                let now = last_seen.wrapping_sub(1);
                assert!(!is_expired(&flow, now, 250), "{state} {last_seen}");
            }
        }
    }
}
