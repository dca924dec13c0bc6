//! Which ICMP messages are errors about a flow, and quote the beginning of its packet.
//!
//! Called by `stage/icmp.rs` and `family/v6.rs`.

use ebpf_common::net::{Addr, Be32, MacAddr};

/// Bytes of an ICMP header; the packet that an error is about begins behind it.
pub const HEADER: usize = 8;
/// Destination unreachable; code 4 of it is path MTU discovery.
pub const UNREACHABLE: u8 = 3;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;

/// Whether a message of this type quotes the packet that it is about (RFC 792). A redirect
/// does too, but speaks of routes, which are the node's own here.
#[inline(always)]
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

/// The same of ICMPv6 (RFC 4443): unreachable, too big, time exceeded, parameter problem.
#[inline(always)]
pub const fn is_error6(kind: u8) -> bool {
    matches!(kind, 1..=4)
}

/// Router advertisement, and redirect (RFC 4861): which router a host uses.
#[inline(always)]
pub const fn is_router_message(kind: u8) -> bool {
    matches!(kind, 134 | 137)
}

/// Messages between neighbours on a link: neighbour and router solicitation and advertisement
/// (RFC 4861), and which groups are listened to (RFC 2710, RFC 3810). Those that are for an address
/// with the scope of the link never leave it.
#[inline(always)]
pub const fn is_of_link(kind: u8, dst: Addr) -> bool {
    let first = dst.words[0].get();
    // ff02::/16, fe80::/10
    let link_scope = first >> 16 == 0xff02 || first >> 22 == 0xfe80 >> 6;
    link_scope && matches!(kind, 130..=136 | 143)
}

/// The link-local address that an interface with this Ethernet address has (RFC 4291, appendix A).
#[inline(always)]
pub const fn link_local(mac: MacAddr) -> Addr {
    let [a, b, c, d, e, f] = mac.bytes;
    Addr {
        words: [
            Be32::from_octets([0xfe, 0x80, 0, 0]),
            Be32 { be: 0 },
            Be32::from_octets([a ^ 2, b, c, 0xff]),
            Be32::from_octets([0xfe, d, e, f]),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_is_no_error() {
        assert!(is_error(3) && is_error(11) && is_error(12));
        assert!(!is_error(0) && !is_error(8) && !is_error(5));
    }

    #[test]
    fn a_link_local_address_is_made_of_the_ethernet_address() {
        let bytes = [0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde];
        let found = link_local(MacAddr { bytes });
        let wanted: core::net::IpAddr = "fe80::3656:78ff:fe9a:bcde".parse().unwrap();
        assert_eq!(core::net::IpAddr::from(found), wanted);
    }

    #[test]
    fn what_is_of_a_link() {
        let addr = |first: u32| {
            let mut addr = Addr::default();
            addr.words[0] = Be32::new(first);
            addr
        };
        for (kind, first, wanted) in [
            (135, 0xff02_0000, true),
            (136, 0xfe80_0000, true),
            (143, 0xff02_0000, true),
            (136, 0xfebf_0000, true),
            // Would be routed.
            (135, 0xfd00_0000, false),
            (135, 0xff05_0000, false),
            (136, 0xfec0_0000, false),
            (128, 0xff02_0000, false),
        ] {
            assert_eq!(is_of_link(kind, addr(first)), wanted, "{kind} {first:x}");
        }
        assert!(is_router_message(134) && is_router_message(137) && !is_router_message(135));
        assert!(is_error6(1) && is_error6(4) && !is_error6(0) && !is_error6(128));
    }
}
