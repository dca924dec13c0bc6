//! Where a TCP connection stands after a packet, and how long silence may last.
//!
//! Seen from the middle, so coarser than RFC 9293 3.3.2: the ends keep the real states, this
//! only decides what may take the fast path and when an entry is over. Called by
//! `stage/conntrack.rs` and by `hook/flow_sweep.rs`.

use crate::parse::flag;
use ebpf_common::conntrack::{Flow, state};
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

/// After the first packet that we see of a flow.
#[inline(always)]
pub const fn first(protocol: u8, flags: u8) -> Step {
    if protocol != protocol::TCP {
        both(state::STATELESS)
    } else if flags & flag::RST != 0 {
        both(state::CLOSED)
    } else if flags & flag::SYN != 0 {
        both(if flags & flag::ACK != 0 {
            state::SYN_RECEIVED
        } else {
            state::SYN_SENT
        })
    } else {
        // In the middle of a connection: it began before us, or its entry was evicted.
        next(state::ESTABLISHED, flags)
    }
}

/// After a packet with `flags` of a flow whose direction is in `own`.
#[inline(always)]
pub const fn next(own: u8, flags: u8) -> Step {
    if own == state::STATELESS {
        return both(own);
    }
    if flags & flag::RST != 0 {
        return both(state::CLOSED);
    }
    if own == state::TIME_WAIT || own == state::CLOSED {
        return both(own);
    }
    if flags & flag::FIN != 0 {
        return match own {
            state::FIN_RECEIVED => both(state::TIME_WAIT),
            _ => Step {
                own: state::FIN_SENT,
                other: state::FIN_RECEIVED,
            },
        };
    }
    if flags & flag::SYN != 0 {
        return both(if flags & flag::ACK != 0 {
            state::SYN_RECEIVED
        } else {
            own
        });
    }
    match own {
        state::SYN_SENT | state::SYN_RECEIVED => both(state::ESTABLISHED),
        state::FIN_SENT => Step {
            own: state::FIN_SENT,
            other: state::FIN_RECEIVED,
        },
        state::FIN_RECEIVED => Step {
            own: state::FIN_RECEIVED,
            other: state::FIN_SENT,
        },
        _ => both(own),
    }
}

/// Seconds of silence after which an entry in this state is over.
///
/// Netfilter's defaults, but a day for established connections as kube-proxy sets it, an hour
/// half closed as well, and less after the end: the ends themselves wait, we need not.
#[inline(always)]
pub const fn timeout(state: u8) -> u32 {
    match state {
        state::ESTABLISHED => 86_400,
        state::FIN_SENT | state::FIN_RECEIVED => 3_600,
        state::TIME_WAIT => 30,
        state::CLOSED => 10,
        state::STATELESS => 120,
        _ => 60,
    }
}

/// Whether the connection is over for all but late packets.
#[inline(always)]
pub const fn is_over(state: u8) -> bool {
    state == state::TIME_WAIT || state == state::CLOSED
}

/// Whether the entry was silent for too long. Jiffies are 32 bits and may wrap.
#[inline(always)]
pub const fn is_expired(flow: &Flow, now: u32, jiffies_per_second: u32) -> bool {
    let silent = now.wrapping_sub(flow.last_seen) as u64;
    silent >= timeout(flow.state) as u64 * jiffies_per_second as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_common::abi::MapType as _;
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

    #[test]
    fn a_connection_from_beginning_to_end() {
        let open = [(true, SYN), (false, SYN | ACK), (true, ACK)];
        check(&open[..1], state::SYN_SENT, state::SYN_SENT);
        check(
            &[(true, SYN), (true, SYN)],
            state::SYN_SENT,
            state::SYN_SENT,
        );
        check(&open[..2], state::SYN_RECEIVED, state::SYN_RECEIVED);
        check(&open, state::ESTABLISHED, state::ESTABLISHED);
        let mut packets = open.to_vec();
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

    #[test]
    fn a_refused_connection_is_closed() {
        check(
            &[(true, SYN), (false, RST | ACK)],
            state::CLOSED,
            state::CLOSED,
        );
    }

    #[test]
    fn what_began_before_us_is_established() {
        check(&[(true, ACK)], state::ESTABLISHED, state::ESTABLISHED);
        check(&[(true, FIN | ACK)], state::FIN_SENT, state::FIN_RECEIVED);
        check(&[(true, RST)], state::CLOSED, state::CLOSED);
    }

    #[test]
    fn silence_is_measured_across_the_wrap() {
        let flow = Flow {
            state: state::CLOSED,
            last_seen: u32::MAX - 10,
            ..Flow::zeroed()
        };
        assert!(!is_expired(&flow, 2_000, 250));
        assert!(is_expired(&flow, 2_500, 250));
    }
}
