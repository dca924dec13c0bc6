//! Internet checksums, incrementally (RFC 1624): what a translation adds to a sum.
//!
//! All numbers are 16-bit words as they are loaded from the packet (network order, loaded
//! natively): ones' complement sums do not care about byte order as long as all are the same
//! (RFC 1071 2.B). Called by `stage/nat.rs`, `refuse` and tests.

use ebpf_common::conntrack::{Flow, FlowKey4};
use ebpf_common::net::Be32;

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

/// What an address adds to a sum that it takes another's place in.
#[inline(always)]
pub const fn word_delta(old: Be32, new: Be32) -> u16 {
    fold(halves(new.be) + halves(!old.be))
}

/// What the new addresses of `flow` add to the sums over the old ones of `key`.
#[inline(always)]
pub const fn addr_delta(key: &FlowKey4, flow: &Flow) -> u16 {
    fold(halves(flow.src.be) + halves(flow.dst.be) + halves(!key.src.be) + halves(!key.dst.be))
}

/// What the new ports of `flow` add to the sums over the old ones of `key`.
#[inline(always)]
pub const fn port_delta(key: &FlowKey4, flow: &Flow) -> u16 {
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
    use ebpf_common::net::Be16;
    use proptest::prelude::*;

    proptest! {
        /// Applying the two differences gives what a computation from scratch gives.
        #[test]
        fn incremental_is_the_same_as_from_scratch(
            old in any::<[u32; 3]>(),
            new in any::<[u32; 3]>(),
            rest in any::<u16>(),
        ) {
            let words = |w: [u32; 3]| {
                let mut bytes = [0; 14];
                for (chunk, word) in bytes.chunks_mut(4).zip(w) {
                    chunk.copy_from_slice(&word.to_ne_bytes()[..chunk.len()]);
                }
                bytes[12..].copy_from_slice(&rest.to_ne_bytes());
                bytes
            };
            let ports = |w: u32| (w as u16, (w >> 16) as u16);
            let key = FlowKey4 {
                src: Be32 { be: old[0] },
                dst: Be32 { be: old[1] },
                sport: Be16 { be: ports(old[2]).0 },
                dport: Be16 { be: ports(old[2]).1 },
                scope: 0,
            };
            let flow = Flow {
                src: Be32 { be: new[0] },
                dst: Be32 { be: new[1] },
                sport: Be16 { be: ports(new[2]).0 },
                dport: Be16 { be: ports(new[2]).1 },
                ..Flow::zeroed()
            };
            let before = !sum(&words(old));
            let after = apply(apply(before, addr_delta(&key, &flow)), port_delta(&key, &flow));
            let scratch = !sum(&words(new));
            // Zero and all-ones are the same number here.
            prop_assert!(after == scratch || (is_zero(after) && is_zero(scratch)));
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
