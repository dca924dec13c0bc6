//! `Address`: the two families of addresses, for types and functions that are generic over them.
//!
//! `Be32` is an IPv4 address, `Addr` an IPv6 one. A map that both families share is keyed by
//! `Addr`, in which an IPv4 address is mapped.

use crate::abi::MapType;
use crate::endpoint::MAX_ENDPOINTS;
use crate::net::{Addr, Be32, protocol};
use core::fmt::Debug;
use core::hash::Hash;

/// An address of one family.
pub trait Address: MapType + Debug + Default + Eq + Ord + Hash {
    /// No address: `0.0.0.0`, `::`.
    const UNSPECIFIED: Self;
    /// Bytes of an IP header without options or extension headers.
    const IP_HEADER: usize;
    /// IP protocol of the family's ICMP.
    const ICMP: u8;
    /// Name for people.
    const NAME: &'static str;
    /// Added to an index into `flow_usage`: each family has counts of its own.
    const USAGE: u32;
    /// Named padding of a `Flow`, whose size must be a multiple of eight.
    type FlowPad: MapType + Debug + Default + Eq;

    /// Whether both are the same. Inlined, where `==` may be a call of `memcmp`.
    fn is(self, other: Self) -> bool;

    /// Goes over the words of the address, first word first.
    fn fold_words<T>(self, start: T, each: impl Fn(T, Be32) -> T) -> T;

    /// As key of a map that both families share.
    fn to_addr(self) -> Addr;

    /// From such a key; `None` if it is of the other family.
    fn from_addr(addr: Addr) -> Option<Self>;
}

impl Address for Be32 {
    const UNSPECIFIED: Self = Self { be: 0 };
    const IP_HEADER: usize = 20;
    const ICMP: u8 = protocol::ICMP;
    const NAME: &'static str = "IPv4";
    const USAGE: u32 = 0;
    type FlowPad = [u32; 0];

    #[inline(always)]
    fn is(self, other: Self) -> bool {
        self.be == other.be
    }

    #[inline(always)]
    fn fold_words<T>(self, start: T, each: impl Fn(T, Be32) -> T) -> T {
        each(start, self)
    }

    #[inline(always)]
    fn to_addr(self) -> Addr {
        Addr::v4(self)
    }

    #[inline(always)]
    fn from_addr(addr: Addr) -> Option<Self> {
        addr.as_v4()
    }
}

impl Address for Addr {
    const UNSPECIFIED: Self = Self {
        words: [Be32 { be: 0 }; 4],
    };
    const IP_HEADER: usize = 40;
    const ICMP: u8 = protocol::ICMPV6;
    const NAME: &'static str = "IPv6";
    const USAGE: u32 = MAX_ENDPOINTS as u32;
    type FlowPad = [u32; 1];

    #[inline(always)]
    fn is(self, other: Self) -> bool {
        let [a, b, c, d] = self.words;
        let [e, f, g, h] = other.words;
        a.be == e.be && b.be == f.be && c.be == g.be && d.be == h.be
    }

    #[inline(always)]
    fn fold_words<T>(self, start: T, each: impl Fn(T, Be32) -> T) -> T {
        let [first, second, third, last] = self.words;
        each(each(each(each(start, first), second), third), last)
    }

    #[inline(always)]
    fn to_addr(self) -> Addr {
        self
    }

    #[inline(always)]
    fn from_addr(addr: Addr) -> Option<Self> {
        if addr.as_v4().is_some() {
            None
        } else {
            Some(addr)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Address;
    use crate::net::{Addr, Be32};

    fn is_itself<A: Address>(address: A, other: A) {
        assert!(address.is(address) && !address.is(other));
        assert_eq!(A::from_addr(address.to_addr()), Some(address));
        assert!(!address.is(A::UNSPECIFIED));
        assert_eq!(A::UNSPECIFIED, A::default());
    }

    #[test]
    fn each_family_has_its_own_addresses() {
        let v4 = Be32::from_octets([10, 0, 0, 1]);
        let v6 = Addr::from_octets([0xfd, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]);
        is_itself(v4, Be32::from_octets([10, 0, 0, 2]));
        for word in 0..4 {
            let mut other = v6;
            other.words[word] = Be32::new(9);
            is_itself(v6, other);
        }
        assert_eq!(Addr::from_addr(v4.to_addr()), None);
        assert_eq!(Be32::from_addr(v6.to_addr()), None);
    }

    #[test]
    fn words_come_in_their_order() {
        let address = Addr {
            words: [1, 2, 3, 4].map(Be32::new),
        };
        let all = address.fold_words(0, |so_far, word| so_far * 10 + word.get());
        assert_eq!(all, 1234);
    }
}
