//! Internet checksums, incrementally (RFC 1624): what a translation adds to a sum.
//!
//! All numbers are 16-bit words as they are loaded from the packet (network order, loaded
//! natively): ones' complement sums do not care about byte order as long as all are the same
//! (RFC 1071 2.B). Called by `stage/nat.rs`, `refuse` and tests.

use ebpf_common::address::Address;
use ebpf_common::conntrack::{Flow, FlowKey};

/// Ones' complement sum of a 32-bit accumulator, as 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Ones' complement sum.
#[inline(always)]
pub const fn add(a: u16, b: u16) -> u16 {
    fold(a as u32 + b as u32)
}

/// The sum of a 32-bit word's halves, unfolded.
#[inline(always)]
const fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// The checksum field after the words that it covers changed by `delta`.
#[inline(always)]
pub const fn apply(check: u16, delta: u16) -> u16 {
    !add(!check, delta)
}

/// Whether a difference changes nothing (zero has two forms).
#[inline(always)]
pub const fn is_zero(delta: u16) -> bool {
    delta == 0 || delta == 0xffff
}

/// The sum of an address's halves of words, unfolded: of IPv6 less than 2^19.
#[inline(always)]
fn of<A: Address>(address: A) -> u32 {
    address.fold_words(0, |sum, word| sum + halves(word.be))
}

/// The same of its complement.
#[inline(always)]
fn of_complement<A: Address>(address: A) -> u32 {
    address.fold_words(0, |sum, word| sum + halves(!word.be))
}

/// What an address adds to a sum that it takes another's place in.
#[inline(always)]
pub fn address_delta<A: Address>(old: A, new: A) -> u16 {
    fold(of(new) + of_complement(old))
}

/// What the new addresses of `flow` add to the sums over the old ones of `key`.
#[inline(always)]
pub fn addr_delta<A: Address>(key: &FlowKey<A>, flow: &Flow<A>) -> u16 {
    fold(of(flow.src) + of(flow.dst) + of_complement(key.src) + of_complement(key.dst))
}

/// What the new ports of `flow` add to the sums over the old ones of `key`.
#[inline(always)]
pub const fn port_delta<A: Address>(key: &FlowKey<A>, flow: &Flow<A>) -> u16 {
    fold(flow.sport.be as u32 + flow.dport.be as u32 + !key.sport.be as u32 + !key.dport.be as u32)
}

/// The sum of bytes, as words; an odd last byte is padded with zero.
pub fn sum(bytes: &[u8]) -> u16 {
    let mut total = 0u32;
    let mut words = bytes.chunks_exact(2);
    for word in &mut words {
        if let [first, second] = word {
            total += u16::from_ne_bytes([*first, *second]) as u32;
        }
        // Frames are at most 64 KiB, so that this cannot overflow before it is folded.
        total = fold(total) as u32;
    }
    if let [last] = words.remainder() {
        total += u16::from_ne_bytes([*last, 0]) as u32;
    }
    fold(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_common::abi::MapType as _;
    use ebpf_common::net::{Addr, Be16, Be32};
    use proptest::prelude::*;

    /// Applying the two differences gives what a computation from scratch gives.
    fn incremental_is_from_scratch<A: Address>(
        old: (A, A),
        new: (A, A),
        ports: ([u16; 2], [u16; 2]),
        rest: u16,
    ) {
        let [sport, dport] = ports.0.map(|be| Be16 { be });
        let key = FlowKey {
            src: old.0,
            dst: old.1,
            sport,
            dport,
            scope: 0,
        };
        let [sport, dport] = ports.1.map(|be| Be16 { be });
        let flow = Flow {
            src: new.0,
            dst: new.1,
            sport,
            dport,
            ..Flow::zeroed()
        };
        let whole = |addrs: (A, A), ports: [u16; 2]| {
            let mut total = sum(addrs.0.as_bytes());
            total = add(total, sum(addrs.1.as_bytes()));
            let words = [ports[0], ports[1], rest];
            words.into_iter().fold(total, add)
        };
        let before = !whole(old, ports.0);
        let after = apply(
            apply(before, addr_delta(&key, &flow)),
            port_delta(&key, &flow),
        );
        let scratch = !whole(new, ports.1);
        // Zero and all-ones are the same number here.
        assert!(after == scratch || (is_zero(after) && is_zero(scratch)));
        let one = apply(!sum(old.0.as_bytes()), address_delta(old.0, new.0));
        let scratch = !sum(new.0.as_bytes());
        assert!(one == scratch || (is_zero(one) && is_zero(scratch)));
    }

    proptest! {
        #[test]
        fn incremental_is_the_same_as_from_scratch_of_ipv4(
            a in any::<[u32; 4]>(),
            ports in any::<([u16; 2], [u16; 2])>(),
            rest in any::<u16>(),
        ) {
            let [a, b, c, d] = a.map(|be| Be32 { be });
            incremental_is_from_scratch((a, b), (c, d), ports, rest);
        }

        #[test]
        fn incremental_is_the_same_as_from_scratch_of_ipv6(
            a in any::<[[u32; 4]; 4]>(),
            ports in any::<([u16; 2], [u16; 2])>(),
            rest in any::<u16>(),
        ) {
            let [a, b, c, d] = a.map(|words| Addr { words: words.map(|be| Be32 { be }) });
            incremental_is_from_scratch((a, b), (c, d), ports, rest);
        }

        /// How the kernel's answer tells a partial checksum from a whole one.
        #[test]
        fn the_two_kinds_never_agree(check in any::<u16>(), delta in 1u16..0xffff) {
            prop_assert_ne!(apply(check, delta), add(check, delta));
        }
    }

    #[test]
    fn sum_of_the_example_in_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(sum(&bytes), u16::from_be_bytes([0xdd, 0xf2]).to_be());
        assert_eq!(sum(&[1]), u16::from_ne_bytes([1, 0]));
    }
}
