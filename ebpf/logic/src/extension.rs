//! The walk over IPv6 extension headers (RFC 8200, 4) to what is behind them.
//!
//! Called by `family/v6.rs`, which copies the headers out of the packet one by one.

/// Headers that are walked over; a packet with more of them is dropped.
pub const MOST: u32 = 6;
/// Bytes of a header that `step` looks at, and the least that any has.
pub const HEAD: usize = 8;

/// Hop-by-hop options.
const HOP_BY_HOP: u8 = 0;
/// Routing.
const ROUTING: u8 = 43;
/// Fragment.
const FRAGMENT: u8 = 44;
/// Authentication (RFC 4302).
const AUTHENTICATION: u8 = 51;
/// Destination options.
const DESTINATION: u8 = 60;

/// What part of a datagram the packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// Its beginning, with the ports.
    First,
    /// Something behind that, without ports.
    Later,
    /// All of it, but behind IPv6 extension headers, where no translation looks for ports.
    Extended,
}

/// How far the walk has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// Bytes of the headers so far.
    pub len: u32,
    /// What is behind them.
    pub protocol: u8,
    /// Part of a datagram.
    pub fragment: Fragment,
}

impl Chain {
    /// At the header that the IPv6 header names.
    #[inline(always)]
    pub const fn begin(protocol: u8) -> Self {
        Self {
            len: 0,
            protocol,
            fragment: Fragment::Whole,
        }
    }

    /// Whether what is behind is another extension header. Behind the header of a later fragment is
    /// its data.
    #[inline(always)]
    pub const fn goes_on(self) -> bool {
        let known = matches!(
            self.protocol,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
        );
        known && !matches!(self.fragment, Fragment::Later)
    }

    /// Over a header, of which `head` is the beginning.
    #[inline(always)]
    pub const fn step(self, head: [u8; HEAD]) -> Self {
        let len = match self.protocol {
            FRAGMENT => 8,
            AUTHENTICATION => (head[1] as u32 + 2) * 4,
            _ => (head[1] as u32 + 1) * 8,
        };
        let offset = u16::from_be_bytes([head[2], head[3]]);
        let fragment = match (self.protocol, self.fragment) {
            (FRAGMENT, _) if offset & 0xfff8 != 0 => Fragment::Later,
            (FRAGMENT, _) if offset & 1 != 0 => Fragment::First,
            (_, Fragment::First) => Fragment::First,
            (_, Fragment::Whole | Fragment::Extended | Fragment::Later) => Fragment::Extended,
        };
        Self {
            len: self.len + len,
            protocol: head[0],
            fragment,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_common::net::protocol::{TCP, UDP};

    const fn head(next: u8, second: u8, offset: u16) -> [u8; HEAD] {
        let [high, low] = offset.to_be_bytes();
        [next, second, high, low, 0, 0, 0, 0]
    }

    fn walk(first: u8, heads: &[[u8; HEAD]]) -> Chain {
        heads.iter().fold(Chain::begin(first), |chain, head| {
            assert!(chain.goes_on());
            chain.step(*head)
        })
    }

    #[test]
    fn a_chain_ends_at_what_it_carries() {
        // (first header, heads, length, protocol, part)
        for (first, heads, len, protocol, fragment) in [
            (TCP, &[][..], 0, TCP, Fragment::Whole),
            (HOP_BY_HOP, &[head(UDP, 0, 0)], 8, UDP, Fragment::Extended),
            (
                HOP_BY_HOP,
                &[
                    head(ROUTING, 1, 0),
                    head(DESTINATION, 2, 0),
                    head(TCP, 0, 0),
                ],
                48,
                TCP,
                Fragment::Extended,
            ),
            (
                AUTHENTICATION,
                &[head(TCP, 4, 0)],
                24,
                TCP,
                Fragment::Extended,
            ),
            (FRAGMENT, &[head(UDP, 0, 1)], 8, UDP, Fragment::First),
            (FRAGMENT, &[head(UDP, 0, 8)], 8, UDP, Fragment::Later),
            // A fragment that is the whole datagram (RFC 6946).
            (FRAGMENT, &[head(UDP, 0, 0)], 8, UDP, Fragment::Extended),
            (
                FRAGMENT,
                &[head(DESTINATION, 0, 1), head(TCP, 0, 0)],
                16,
                TCP,
                Fragment::First,
            ),
        ] {
            let chain = walk(first, heads);
            assert!(!chain.goes_on(), "{first} {heads:?}");
            let found = (chain.len, chain.protocol, chain.fragment);
            assert_eq!(found, (len, protocol, fragment), "{first} {heads:?}");
        }
    }

    /// What follows the header of a later fragment is data, also if it is said to be a header.
    #[test]
    fn a_later_fragment_ends_the_walk() {
        let chain = walk(FRAGMENT, &[head(DESTINATION, 0, 8)]);
        assert!(!chain.goes_on());
    }
}
